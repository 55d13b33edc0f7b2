"""Checkpoints of a run: everything that a bit-exact resume needs, written by orbax in the background.

Numbers and JSON, no code: reading a folder of somebody else's executes nothing.

`checkpoints/<step>/` holds the leaves of the state under their path labels and a manifest (library version, tasks,
balancer, config, and the path, shape and dtype of every leaf). The manifest is compared before any array is read, so
a checkpoint of another model is one clear sentence; orbax alone would cast a dtype silently.
"""

from mtljax.checkpoint._read import (
  DamagedError,
  best_step,
  discard_after,
  read_manifest,
  restore,
  restore_latest,
  steps,
)
from mtljax.checkpoint._tree import describe, flatten, params_sha256
from mtljax.checkpoint._write import Checkpoints, SaveError

__all__ = [
  'Checkpoints',
  'DamagedError',
  'SaveError',
  'best_step',
  'describe',
  'discard_after',
  'flatten',
  'params_sha256',
  'read_manifest',
  'restore',
  'restore_latest',
  'steps',
]
