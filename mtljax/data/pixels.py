"""Tasks that follow from classes of pixels, and what loaders of images share: places, pictures, arrays in folders."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mtljax.base import InputError


def boundaries(labels: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
  """1 where a pixel and its neighbour (above, below, left, right) are of different classes, int32 of the labels' shape.

  >>> print(boundaries(np.array([[[0, 0, 1], [0, 0, 1], [0, 0, 0]]])))
  [[[0 1 1]
    [0 1 1]
    [0 0 1]]]

  Args:
    labels: classes int[N, H, W].
    known: bool[N, H, W]; a pixel that is not makes no boundary. None: all are.
  """
  known = np.ones(labels.shape, bool) if known is None else known
  edge = np.zeros(labels.shape, bool)
  for axis in (1, 2):
    first, second = (np.s_[:, :-1], np.s_[:, 1:]) if axis == 1 else (np.s_[:, :, :-1], np.s_[:, :, 1:])
    differ = (labels[first] != labels[second]) & known[first] & known[second]
    edge[first] |= differ
    edge[second] |= differ
  return edge.astype(np.int32)


def presence(labels: np.ndarray, num_classes: int, known: np.ndarray | None = None) -> np.ndarray:
  """1 for each class that has a pixel in the image: int32[N, num_classes].

  >>> presence(np.array([[[0, 2]], [[1, 255]]]), 3).tolist()
  [[1, 0, 1], [0, 1, 0]]
  """
  known = np.ones(labels.shape, bool) if known is None else known
  found = [((labels == c) & known).any(axis=(1, 2)) for c in range(num_classes)]
  return np.stack(found, axis=1).astype(np.int32)


def segmented(images: np.ndarray, labels: np.ndarray, num_classes: int, void: Sequence[int], where: str) -> dict:
  """Examples of three tasks from images and the classes of their pixels.

  Args:
    images: uint8 or f[N, H, W, C]; uint8 is divided by 255.
    labels: integers [N, H, W].
    num_classes: classes are 0..num_classes - 1.
    void: labels that say nothing: masked in 'segmentation' and 'boundary'.
    where: the file or folder, for messages.

  Returns:
    `{'inputs': f32[N, H, W, C], 'labels': {'segmentation': int32[N, H, W], 'boundary': int32[N, H, W], 'presence':
    int32[N, num_classes]}, 'mask': {'segmentation': bool[N, H, W], 'boundary': bool[N, H, W]}}`.

  Raises:
    InputError: shapes that do not fit together, a label that is neither a class nor void.
  """
  if (
    images.ndim != 4
    or labels.shape != images.shape[:3]
    or not np.issubdtype(labels.dtype, np.integer)
    or not len(labels)
  ):
    raise InputError(
      f'{where}: found images {images.dtype}{list(images.shape)} and labels {labels.dtype}{list(labels.shape)}, '
      'expected [N, H, W, C] and integers [N, H, W].'
    )
  labels = labels.astype(np.int32)
  known = ~np.isin(labels, list(void))
  check_classes(labels, known, num_classes, void, where)
  clean = np.where(known, labels, 0)
  return {
    'inputs': as_floats(images, where),
    'labels': {
      'segmentation': clean,
      'boundary': boundaries(labels, known),
      'presence': presence(labels, num_classes, known),
    },
    'mask': {'segmentation': known, 'boundary': known},
  }


def check_classes(labels: np.ndarray, known: np.ndarray, num_classes: int, void: Sequence[int], where: str) -> None:
  """Raises an InputError that names the place of the first label that is neither a class nor void."""
  bad = np.argwhere(known & ((labels < 0) | (labels >= num_classes)))
  if len(bad):
    place = tuple(bad[0].tolist())
    expected = f'a class 0..{num_classes - 1}' + (f' or {", ".join(map(str, void))} (no label)' if len(void) else '')
    raise InputError(f'{where}: found label {labels[place]} at {list(place)}, expected {expected}.')


def as_floats(images: np.ndarray, where: str) -> np.ndarray:
  """uint8 divided by 255, floats as they are; float32.

  Raises:
    InputError: another dtype, numbers that are not finite.
  """
  if images.dtype == np.uint8:
    return images.astype(np.float32) / 255
  if not np.issubdtype(images.dtype, np.floating):
    raise InputError(f'{where}: found images of dtype {images.dtype}, expected uint8 or floats in 0..1.')
  if not np.isfinite(images).all():
    raise InputError(f'{where}: found images with NaN or infinite values, expected finite ones.')
  return images.astype(np.float32)


def nearest(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[N, H, W, ...] resized to the size, each pixel the one at its centre: labels, depth, masks.

  >>> nearest(np.arange(6).reshape(1, 1, 6), (2, 3)).tolist()
  [[[1, 3, 5], [1, 3, 5]]]
  """
  rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, x.shape[1:3]))
  return x[:, rows][:, :, columns]


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """f[N, H, W, C] resized to the size, each pixel the mean of those it covers, in part too.

  >>> resized(np.arange(6.0).reshape(1, 1, 6, 1), (1, 3)).ravel().tolist()
  [0.5, 2.5, 4.5]
  """
  return np.einsum('ih,nhwc,jw->nijc', *_covered(images, size), optimize=True).astype(images.dtype)


def _covered(images, size):
  weights = []
  for n, old in zip(size, images.shape[1:3]):
    ends = np.arange(n + 1) * old / n
    pixels = np.arange(old)
    share = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    weights.append(np.maximum(share, 0) * n / old)
  return weights[0], images, weights[1]


def find_folder(data_dir: str | os.PathLike, names: Sequence[str], has: str, source: str) -> pathlib.Path:
  """`data_dir`, or the first of its folders of these names, that has the file or folder `has` (a glob).

  Raises:
    InputError: none has.
  """
  data_dir = pathlib.Path(os.path.expanduser(data_dir))
  for folder in (data_dir, *(data_dir / name for name in names)):
    if any(folder.glob(has)):
      return folder
  raise InputError(
    f'data_dir: {str(data_dir)!r} has no {has}, nor has a folder {" or ".join(names)} within it; expected {source}.'
  )


def read_image(
  path: str | os.PathLike, size: tuple[int, int] | None = None, *, mode: str = 'RGB', nearest: bool = False
) -> np.ndarray:
  """A picture of any format that Pillow reads: uint8[H, W, 3], or [H, W] of mode 'L'; labels as they are stored.

  Args:
    path: the file.
    size: (H, W) to resize to: each pixel the mean of those it covers, or the nearest one.
    mode: of Pillow: 'RGB', 'L', or 'P' for numbers of classes, which are not converted.
    nearest: takes the nearest pixel, as labels need.

  Raises:
    InputError: no such file, or one that cannot be read.
  """
  from PIL import Image

  try:
    with Image.open(path) as image:
      if mode != 'P':
        image = image.convert(mode)
      elif image.mode not in ('P', 'L', 'I', 'I;16'):
        raise InputError(f'{path}: found a picture of mode {image.mode}, expected one number of a class per pixel.')
      if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.NEAREST if nearest else Image.Resampling.BOX)
      return np.array(image)
  except FileNotFoundError:
    raise InputError(f'{path}: found no such file, expected a picture.') from None
  except (OSError, SyntaxError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{path}: cannot be read, expected a picture: {error}') from error
