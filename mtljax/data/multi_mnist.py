"""Multi-MNIST: two handwritten digits of MNIST on one canvas, two 10-way tasks; the field's first benchmark.

Two images of 28x28 of different classes lie on a canvas of 36x36, the first at the top left, the second at the bottom
right, joined by the pixelwise maximum (Sener & Koltun 2018, https://arxiv.org/abs/1810.04650; Lin et al. 2019,
https://arxiv.org/abs/1912.12854). Task 'left' is the class of the first, 'right' that of the second. The papers draw
their pairs at random and publish neither seed nor files, so accuracies are comparable within a run, not with theirs.
"""

import os
from collections.abc import Mapping

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.idx import mnist
from mtljax.data.multi_digits import TASKS, overlay, pair_up

PAIRS = {'train': 20_000, 'val': 2_000, 'test': 5_000}
VAL_SOURCES = 5_000  # the last images of the training file
SHIFT = 8


def load(data_dir: str | os.PathLike, pairs: Mapping[str, int] = PAIRS) -> dict[str, PyTree]:
  """Examples of the three splits; no source image is in two of them, and the test images are MNIST's.

  Args:
    data_dir: folder of MNIST's four files, see `idx.mnist`.
    pairs: {split: number of pairs}.

  Returns:
    {'train', 'val', 'test'} -> {'inputs': f32[N, 36, 36, 1] in 0..1, 'labels': {'left': int32[N], 'right': int32[N]}}.

  Raises:
    InputError: pairs of other splits or without any; what `idx.mnist` raises.
  """
  if set(pairs) != set(PAIRS) or min(pairs.values()) < 1:
    raise InputError(f'pairs: found {dict(pairs)}, expected a positive number for each of {list(PAIRS)}.')
  images, labels = mnist(data_dir, 'train')
  test_images, test_labels = mnist(data_dir, 'test')
  parts = {
    'train': (images[:-VAL_SOURCES], labels[:-VAL_SOURCES]),
    'val': (images[-VAL_SOURCES:], labels[-VAL_SOURCES:]),
    'test': (test_images, test_labels),
  }
  examples = {}
  for index, (split, (x, y)) in enumerate(parts.items()):
    chosen = pair_up(np.arange(len(y)), y, pairs[split], seed=(2, index))
    classes = {task: y[chosen[:, place]] for place, task in enumerate(TASKS)}
    examples[split] = {'inputs': overlay(x, chosen, SHIFT).astype(np.float32) / 255, 'labels': classes}
  return examples
