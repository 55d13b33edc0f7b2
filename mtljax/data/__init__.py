"""Data: arrays from files, batches as a function of (seed, step)."""

from mtljax.data import (
  audio,
  camvid,
  celeba,
  clips,
  labelled_text,
  librispeech,
  molecules,
  multi_digits,
  multi_mnist,
  parallel_text,
  pixels,
  related_tasks,
  scenes,
  schedules,
  spectrograms,
  spoken_digits,
  tables,
  yesno,
)
from mtljax.data.batching import Batches, eval_batches, select_batches, select_tasks
from mtljax.data.buckets import Buckets, quantiles
from mtljax.data.sources import from_tfds, make_examples, npz, split
from mtljax.data.streaming import EvalStream, Stream

__all__ = [
  'Batches',
  'Buckets',
  'EvalStream',
  'Stream',
  'audio',
  'camvid',
  'celeba',
  'clips',
  'eval_batches',
  'from_tfds',
  'labelled_text',
  'librispeech',
  'make_examples',
  'molecules',
  'multi_digits',
  'multi_mnist',
  'npz',
  'parallel_text',
  'pixels',
  'quantiles',
  'related_tasks',
  'scenes',
  'schedules',
  'select_batches',
  'select_tasks',
  'spectrograms',
  'split',
  'spoken_digits',
  'tables',
  'yesno',
]
