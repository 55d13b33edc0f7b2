"""multi_digits: two handwritten digits on one canvas, two 10-way tasks; real images, no download.

The 1797 images of 8x8 that scikit-learn ships (Alpaydin & Kaynak 1998, https://doi.org/10.24432/C50P49, CC BY 4.0) are
split first, so that no source image is shared between train, val and test; then pairs of different classes are overlaid
on a 10x10 canvas by the pixelwise maximum, the first at the top left, the second at the bottom right: the recipe of
MultiMNIST (Sener & Koltun 2018, https://arxiv.org/abs/1810.04650). Task 'left' is the class of the first, 'right' that
of the second. A TFDS builder writes the pairs once, in array_record and without TensorFlow.
"""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Mapping

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.sources import from_tfds, make_examples

TASKS = ('left', 'right')
SOURCES = {'train': 1097, 'val': 200, 'test': 500}  # images
PAIRS = {'train': 12_000, 'val': 2_000, 'test': 2_000}
SIZE, SHIFT, INK = 8, 2, 16  # of a source, of the second against the first, the darkest value


def load(data_dir: str | os.PathLike, pairs: Mapping[str, int] = PAIRS) -> dict[str, PyTree]:
  """Examples of the three splits; the first call prepares them in some seconds, later ones read them.

  Args:
    data_dir: folder of prepared data sets; made if it is not there. An interrupted preparation is done again, and
      several processes may prepare at once.
    pairs: {split: number of pairs}.

  Returns:
    {'train', 'val', 'test'} -> {'inputs': f32[N, 10, 10, 1] in 0..1, 'labels': {'left': int32[N], 'right': int32[N]}}.

  Raises:
    InputError: pairs of other splits or without any, a folder that cannot be written.
  """
  ready = prepare(data_dir, pairs)
  return {split: _examples(from_tfds(ready, split)) for split in SOURCES}


def prepare(data_dir: str | os.PathLike, pairs: Mapping[str, int] = PAIRS):
  """The TFDS builder with its files in place; arguments as for `load`."""
  if set(pairs) != set(SOURCES) or min(pairs.values()) < 1:
    raise InputError(f'pairs: found {dict(pairs)}, expected a positive number for each of {list(SOURCES)}.')
  data_dir = os.path.expanduser(data_dir)
  make = functools.partial(_builder_class(), data_dir=data_dir, file_format='array_record', config=_config(pairs))
  builder = make()
  # TFDS writes into a folder of its own and renames it at the end: what has the final name is whole, unless somebody
  # deleted a part of it.
  if builder.data_path.exists() and not builder.is_prepared():
    shutil.rmtree(builder.data_path)
  try:
    with _quiet():
      builder.download_and_prepare()
  except OSError as error:  # also what the slower of two processes gets for its rename
    if not make().is_prepared():
      raise InputError(f'data_dir: {data_dir!r} cannot be written: {error}') from error
  return make()  # read afresh: another process may have prepared it


def draw_pairs(split: str, number: int, labels: np.ndarray) -> np.ndarray:
  """Source images of each pair, int[number, 2]: of the split's own, of different classes, each about equally often."""
  order = np.random.default_rng(0).permutation(len(labels))
  first = {'train': 0, 'val': SOURCES['train'], 'test': SOURCES['train'] + SOURCES['val']}[split]
  sources = order[first : first + SOURCES[split]]
  return pair_up(sources, labels, number, seed=(1, list(SOURCES).index(split)))


def pair_up(sources: np.ndarray, labels: np.ndarray, number: int, seed) -> np.ndarray:
  """Pairs of different classes, int[number, 2], every source about equally often in either place.

  >>> pairs = pair_up(np.array([0, 2, 3]), np.array([7, 7, 7, 8]), 6, seed=0)
  >>> sorted(pairs[:, 0].tolist()), bool((np.array([7, 7, 7, 8])[pairs[:, 0]] == 8).any())
  ([0, 0, 2, 2, 3, 3], True)
  """
  random = np.random.default_rng(seed)
  rounds = -(-number // len(sources))
  pairs = np.stack([np.concatenate([random.permutation(sources) for _ in range(rounds)])[:number] for _ in TASKS], 1)
  while (same := np.flatnonzero(labels[pairs[:, 0]] == labels[pairs[:, 1]])).size:
    pairs[same, 1] = random.choice(sources, same.size)
  return pairs


def overlay(images: np.ndarray, pairs: np.ndarray, shift: int = SHIFT) -> np.ndarray:
  """The canvas of each pair, the second image `shift` pixels further down and to the right: uint8[N, H, W, 1].

  >>> overlay(np.stack([np.full((8, 8), 3), np.full((8, 8), 5)]), np.array([[0, 1]]))[0, :3, :3, 0].tolist()
  [[3, 3, 3], [3, 3, 3], [3, 3, 5]]
  """
  size = images.shape[1]
  canvas = np.zeros((len(pairs), size + shift, size + shift, 1), np.uint8)
  canvas[:, :size, :size, 0] = images[pairs[:, 0]]
  second = canvas[:, shift:, shift:, 0]
  np.maximum(second, images[pairs[:, 1]], out=second, casting='unsafe')
  return canvas


def _examples(arrays: Mapping[str, np.ndarray]) -> PyTree:
  arrays = {'inputs': arrays['image'].astype(np.float32) / INK} | {t: arrays[t].astype(np.int32) for t in TASKS}
  return make_examples(arrays, labels={task: task for task in TASKS})


@functools.cache
def _builder_class():
  import tensorflow_datasets as tfds  # over a second

  @functools.cache
  def digits():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target

  class MultiDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pairs of digits; how many of each split is the name of the config."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=_config_name(PAIRS))]

    def _info(self):
      features = {
        'image': tfds.features.Tensor(shape=(SIZE + SHIFT, SIZE + SHIFT, 1), dtype=np.uint8),
        **{task: tfds.features.ClassLabel(num_classes=10) for task in TASKS},
      }
      return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      numbers = map(int, self.builder_config.name.split('_')[1:])
      return {split: self._generate_examples(split, number) for split, number in zip(SOURCES, numbers)}

    def _generate_examples(self, split, number):
      images, labels = digits()
      pairs = draw_pairs(split, number, labels)
      canvas = overlay(images, pairs)
      for i, (first, second) in enumerate(pairs):
        yield i, {'image': canvas[i], 'left': int(labels[first]), 'right': int(labels[second])}

    def _log_download_bytes(self):
      """Nothing is downloaded, and a library does not print."""

    _log_download_done = _log_download_bytes

  return MultiDigits


def _config_name(pairs: Mapping[str, int]) -> str:
  return '_'.join(['pairs', *(str(pairs[split]) for split in SOURCES)])


def _config(pairs: Mapping[str, int]):
  import tensorflow_datasets as tfds

  name = _config_name(pairs)
  return name if name == _config_name(PAIRS) else tfds.core.BuilderConfig(name=name)


@contextlib.contextmanager
def _quiet():
  """TFDS's progress bars on a terminal only."""
  from tensorflow_datasets.core.utils import tqdm_utils

  active = tqdm_utils._active
  tqdm_utils.display_progress_bar(active and sys.stderr.isatty())
  try:
    yield
  finally:
    tqdm_utils.display_progress_bar(active)
