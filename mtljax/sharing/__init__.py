"""Sharing architectures: functions that make a `Model` of trunks and heads, one file per architecture."""

from mtljax.sharing.adashare import adashare, policies
from mtljax.sharing.cgc import cgc
from mtljax.sharing.connection_wise import connection_wise, magnitude_masks
from mtljax.sharing.cross_stitch import cross_stitch
from mtljax.sharing.cross_task_attention import cross_task_attention
from mtljax.sharing.distill import distill, follow
from mtljax.sharing.dselect_k import dselect_k
from mtljax.sharing.graph import graph
from mtljax.sharing.hard import hard
from mtljax.sharing.knowledge import class_prototypes, class_statistics, knowledge
from mtljax.sharing.layer_wise import layer_wise
from mtljax.sharing.learning_to_branch import branches, learned_tree, learning_to_branch
from mtljax.sharing.lora import lora
from mtljax.sharing.mmoe import mmoe
from mtljax.sharing.modules import Module, keeps_own_values
from mtljax.sharing.mtan import mtan
from mtljax.sharing.nddr import nddr
from mtljax.sharing.parsing import parse
from mtljax.sharing.ple import ple
from mtljax.sharing.residual_adapters import residual_adapters
from mtljax.sharing.sluice import sluice
from mtljax.sharing.soft import soft
from mtljax.sharing.stages import chained
from mtljax.sharing.tree import tree

# Name -> factory, for `mtljax list`.
ARCHITECTURES = {
  'hard': hard,
  'adashare': adashare,
  'cgc': cgc,
  'connection_wise': connection_wise,
  'cross_stitch': cross_stitch,
  'cross_task_attention': cross_task_attention,
  'dselect_k': dselect_k,
  'graph': graph,
  'knowledge': knowledge,
  'layer_wise': layer_wise,
  'learning_to_branch': learning_to_branch,
  'lora': lora,
  'mmoe': mmoe,
  'mtan': mtan,
  'nddr': nddr,
  'ple': ple,
  'residual_adapters': residual_adapters,
  'sluice': sluice,
  'soft': soft,
  'tree': tree,
}

__all__ = [
  'ARCHITECTURES',
  'Module',
  'adashare',
  'branches',
  'cgc',
  'chained',
  'class_prototypes',
  'class_statistics',
  'connection_wise',
  'cross_stitch',
  'cross_task_attention',
  'distill',
  'dselect_k',
  'graph',
  'follow',
  'hard',
  'keeps_own_values',
  'knowledge',
  'layer_wise',
  'learned_tree',
  'learning_to_branch',
  'lora',
  'magnitude_masks',
  'mmoe',
  'mtan',
  'nddr',
  'parse',
  'ple',
  'policies',
  'residual_adapters',
  'sluice',
  'soft',
  'tree',
]
