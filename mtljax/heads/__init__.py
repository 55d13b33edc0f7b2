"""Heads (flax linen modules): what a task adds to the shared features."""

from mtljax.heads.beam import Search, beam_search
from mtljax.heads.ctc import CTC, ctc, ctc_decode, ctc_greedy
from mtljax.heads.decoder import Decoder, NextToken, shifted
from mtljax.heads.dense import Dense, classify, multilabel, regress
from mtljax.heads.pixelwise import Pixelwise, pixelwise
from mtljax.heads.tagging import Pooled, Tagging, pooled, tagging

__all__ = [
  'CTC',
  'Pixelwise',
  'Pooled',
  'Tagging',
  'ctc',
  'ctc_decode',
  'ctc_greedy',
  'pixelwise',
  'pooled',
  'tagging',
  'Decoder',
  'NextToken',
  'Search',
  'beam_search',
  'shifted',
  'Dense',
  'classify',
  'multilabel',
  'regress',
]
