"""Sharing architectures: functions that make a `Model` of trunks and heads, one file per architecture."""

from mtljax.sharing.cgc import cgc
from mtljax.sharing.cross_stitch import cross_stitch
from mtljax.sharing.dselect_k import dselect_k
from mtljax.sharing.hard import hard
from mtljax.sharing.mmoe import mmoe
from mtljax.sharing.modules import Module, keeps_own_values
from mtljax.sharing.mtan import mtan
from mtljax.sharing.nddr import nddr
from mtljax.sharing.parsing import parse
from mtljax.sharing.ple import ple
from mtljax.sharing.sluice import sluice
from mtljax.sharing.soft import soft

# Name -> factory, for `mtljax list`.
ARCHITECTURES = {
  'hard': hard,
  'cgc': cgc,
  'cross_stitch': cross_stitch,
  'dselect_k': dselect_k,
  'mmoe': mmoe,
  'mtan': mtan,
  'nddr': nddr,
  'ple': ple,
  'sluice': sluice,
  'soft': soft,
}

__all__ = [
  'ARCHITECTURES',
  'Module',
  'cgc',
  'cross_stitch',
  'dselect_k',
  'hard',
  'keeps_own_values',
  'mmoe',
  'mtan',
  'nddr',
  'parse',
  'ple',
  'sluice',
  'soft',
]
