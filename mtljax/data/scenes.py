"""Scenes with several labels at every pixel, an npy file each: NYUv2 and Cityscapes as released with MTAN.

The layout is folders train and val, in each of them image/0.npy, 1.npy, ... f[H, W, 3] in 0..1, and for every task a
folder of files of the same names: classes [H, W] (-1: no label), depth [H, W, 1] (0: none), normals [H, W, 3] (all
0: none). `NYUV2` (13 classes, depth in metres, normals; 795 and 654 images of 288x384), `CITYSCAPES` and
`CITYSCAPES_19` (7 or 19 classes, inverse depth; 2975 and 500 images of 128x256) say which folder is which task; data of
your own in that layout need such a table only:

>>> maps = {'material': Pixels('material', classes=5), 'height': Pixels('height', 'depth')}
>>> maps['height'].kind
'depth'

The files: https://github.com/lorenmt/mtan (Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention, CVPR
2019, https://arxiv.org/abs/1803.10704), from Silberman et al., Indoor Segmentation and Support Inference from RGBD
Images (2012), and Cordts et al., The Cityscapes Dataset (2016), https://arxiv.org/abs/1604.01685. TFDS has others of
the same origin: `nyu_depth_v2` (images and depth) and `cityscapes` (pictures, files to be put in place by hand).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.pixels import as_floats, check_classes, find_folder, nearest, resized
from mtljax.data.reading import OnBad, Reading

KINDS = ('labels', 'depth', 'inverse_depth', 'normals')
SOURCE = 'train/image/0.npy, ... as in https://github.com/lorenmt/mtan'


class Pixels(NamedTuple):
  """Labels at the pixels.

  Attributes:
    folder: of the npy files, beside 'image'.
    kind: 'labels', 'depth', 'inverse_depth' or 'normals', as for `transforms.image.augment`.
    classes: of kind 'labels': 0..classes - 1.
    void: of kind 'labels': numbers that mean that there is no label.
  """

  folder: str
  kind: str = 'labels'
  classes: int | None = None
  void: Sequence[int] = (-1,)


NYUV2 = {
  'segmentation': Pixels('label', classes=13),
  'depth': Pixels('depth', 'depth'),
  'normals': Pixels('normal', 'normals'),
}
CITYSCAPES = {'segmentation': Pixels('label_7', classes=7), 'depth': Pixels('depth', 'inverse_depth')}
CITYSCAPES_19 = {'segmentation': Pixels('label_19', classes=19), 'depth': Pixels('depth', 'inverse_depth')}
NAMES = ('nyuv2', 'NYUv2', 'cityscapes', 'Cityscapes', 'cityscapes2')


class Scenes:
  """The examples of a folder, each read when it is asked for: a source of records, as `load` stacks them.

  Args:
    folder: it has 'image' and the folders of the maps.
    maps: {task: Pixels}.
    size: (H, W) to resize to, images by the mean of the pixels covered, maps to the nearest; None keeps the files'.
    rows: which of the files, by number in their order; None takes all.

  Raises:
    InputError: no file, a map without classes or of another kind; when read, a file that is missing, damaged or of
      another shape, labels that are no classes, numbers that are not finite.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    maps: Mapping[str, Pixels],
    size: tuple[int, int] | None = None,
    rows: Sequence[int] | None = None,
  ):
    self.folder, self.maps, self.size = pathlib.Path(folder), dict(maps), size
    for task, part in self.maps.items():
      if part.kind not in KINDS or (part.kind == 'labels') != (part.classes is not None):
        expected = f"one of {KINDS}, and classes with 'labels' only"
        raise InputError(f'maps[{task!r}]: found kind {part.kind!r} and classes {part.classes}, expected {expected}.')
    files = sorted((self.folder / 'image').glob('*.npy'), key=lambda path: (len(path.stem), path.stem))  # 2 before 10
    if not files:
      raise InputError(f'{self.folder / "image"}: found no npy file, expected {SOURCE}.')
    self.names = [files[i].name for i in (range(len(files)) if rows is None else rows)]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, number: int) -> PyTree:
    """`{'inputs': f32[H, W, 3], 'labels': {task: [H, W] or f32[H, W, 3]}, 'mask': {task: bool[H, W]}}`."""
    path = self.folder / 'image' / self.names[number]
    image = _read(path)
    if image.ndim != 3:
      raise InputError(f'{path}: found shape {list(image.shape)}, expected [H, W, channels].')
    shape, image = image.shape[:2], as_floats(image, str(path))
    labels, masks = {}, {}
    for task, part in self.maps.items():
      labels[task], masks[task] = _map(self.folder / part.folder / path.name, part, shape)
    if self.size is None:
      return {'inputs': image, 'labels': labels, 'mask': masks}
    small = lambda by_task: {task: nearest(x[None], self.size)[0] for task, x in by_task.items()}
    return {'inputs': resized(image[None], self.size)[0], 'labels': small(labels), 'mask': small(masks)}


def sources(
  data_dir: str | os.PathLike,
  maps: Mapping[str, Pixels] = NYUV2,
  size: tuple[int, int] | None = None,
  *,
  names: Sequence[str] = NAMES,
  held_out: float = 0.1,
) -> dict[str, Scenes]:
  """The three splits, read image by image; the papers' test images are those of the folder val.

  Args:
    data_dir: the folder with train and val, or the one above it.
    maps: {task: Pixels}: `NYUV2`, `CITYSCAPES`, `CITYSCAPES_19` or some of their tasks.
    size: (H, W) to resize to; None keeps that of the files.
    names: of the folder, where data_dir is the one above it.
    held_out: share of the folder train, drawn once and for all, that is 'val'.

  Returns:
    {'train', 'val', 'test'} -> `Scenes`.

  Raises:
    InputError: missing folders, a share outside 0..1 or one that leaves a split without an image.
  """
  folder = find_folder(data_dir, names, f'train/{next(iter(maps.values())).folder}', SOURCE)
  everything = Scenes(folder / 'train', maps, size)
  count = round(held_out * len(everything))
  if not 0 < count < len(everything):
    raise InputError(f'held_out: found {held_out!r}, {count} of {len(everything)} images, expected some but not all.')
  order = np.random.default_rng(0).permutation(len(everything))
  parts = {'train': sorted(order[count:]), 'val': sorted(order[:count])}
  splits = {split: Scenes(folder / 'train', maps, size, rows) for split, rows in parts.items()}
  return {**splits, 'test': Scenes(folder / 'val', maps, size)}


def load(
  data_dir: str | os.PathLike,
  maps: Mapping[str, Pixels] = NYUV2,
  size: tuple[int, int] | None = None,
  *,
  names: Sequence[str] = NAMES,
  held_out: float = 0.1,
  on_bad: OnBad = 'error',
) -> dict[str, PyTree]:
  """What `sources` reads, stacked: all of NYUv2 is 2.5 GB, a quarter of that at half the size.

  Args:
    on_bad: 'skip' leaves images out that cannot be read or have no good labels, and warns.

  Returns:
    {'train', 'val', 'test'} -> `{'inputs': f32[N, H, W, 3], 'labels': {task: int32[N, H, W] classes, f32[N, H, W] depth
    or f32[N, H, W, 3] normals}, 'mask': {task: bool[N, H, W]}}`.

  Raises:
    InputError: what `sources` and `Scenes` raise, images of different sizes.
  """
  splits = sources(data_dir, maps, size, names=names, held_out=held_out)
  return {split: stacked(source, source.names, source.folder / 'image', on_bad) for split, source in splits.items()}


def stacked(
  source: Sequence[PyTree], names: Sequence[str], where: str | os.PathLike, on_bad: OnBad = 'error'
) -> PyTree:
  """All examples of a source of images, one array per leaf.

  Raises:
    InputError: what the source raises, unless they are skipped; images of different sizes.
  """
  import jax

  reading, examples = Reading(str(where), on_bad), []
  for number, name in enumerate(names):
    reading.item()
    try:
      example = source[number]
      shape, expected = example['inputs'].shape, (examples[0] if examples else example)['inputs'].shape
      if shape != expected:
        path = pathlib.Path(where) / name
        raise InputError(f'{path}: found shape {list(shape)}, expected {list(expected)} as before it; give `size`.')
    except InputError as error:
      if on_bad == 'error':
        raise
      reading.bad(name, str(error).removesuffix('.'))
    else:
      examples.append(example)
  reading.close()
  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def _map(path: pathlib.Path, part: Pixels, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Labels and mask of one image."""
  y = _read(path)
  y = y[..., 0] if y.ndim == 3 and y.shape[-1] == 1 else y
  expected = (*shape, 3) if part.kind == 'normals' else shape
  if y.shape != expected:
    raise InputError(f'{path}: found shape {list(y.shape)}, expected {list(expected)}, as the image.')
  if not np.isfinite(y).all():
    raise InputError(f'{path}: found NaN or infinite values, expected finite ones; 0 where there is no depth.')
  if part.kind == 'labels':
    if not (y == np.round(y)).all():
      raise InputError(f'{path}: found {y[y != np.round(y)][0]}, expected whole numbers of classes.')
    y = y.astype(np.int32)
    known = ~np.isin(y, list(part.void))
    check_classes(y, known, part.classes, part.void, str(path))
    return np.where(known, y, 0), known
  y = y.astype(np.float32)
  if part.kind != 'normals' and (y < 0).any():
    raise InputError(f'{path}: found a depth of {y.min():g}, expected numbers >= 0.')
  return y, (y != 0).any(axis=-1) if part.kind == 'normals' else y != 0


def _read(path: pathlib.Path) -> np.ndarray:
  try:
    with open(path, 'rb') as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
  except FileNotFoundError:
    raise InputError(
      f'{path}: found no such file, expected {SOURCE} and one of the same name for every task.'
    ) from None
  except (OSError, EOFError, ValueError) as error:
    raise InputError(f'{path}: cannot be read, expected a numeric array in an npy file: {error}') from error
  if array.dtype.kind not in 'biuf':
    raise InputError(f'{path}: found dtype {array.dtype}, expected numbers.')
  return array
