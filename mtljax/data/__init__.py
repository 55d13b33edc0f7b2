"""Data: arrays from files, batches as a function of (seed, step)."""

from mtljax.data import (
  camvid,
  celeba,
  labelled_text,
  multi_digits,
  multi_mnist,
  parallel_text,
  related_tasks,
  scenes,
  schedules,
)
from mtljax.data.batching import Batches, eval_batches, select_tasks
from mtljax.data.buckets import Buckets, quantiles
from mtljax.data.sources import from_tfds, make_examples, npz, split

__all__ = [
  'Batches',
  'Buckets',
  'camvid',
  'celeba',
  'eval_batches',
  'from_tfds',
  'labelled_text',
  'make_examples',
  'multi_digits',
  'multi_mnist',
  'npz',
  'parallel_text',
  'quantiles',
  'related_tasks',
  'scenes',
  'schedules',
  'select_tasks',
  'split',
]
