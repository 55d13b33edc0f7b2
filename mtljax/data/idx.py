"""MNIST's file format: idx, plain or compressed with gzip."""

import gzip
import os
import pathlib
import zlib

import numpy as np

from mtljax.base import InputError

URL = 'https://storage.googleapis.com/cvdf-datasets/mnist/'
DTYPES = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}


def read_idx(path: str | os.PathLike) -> np.ndarray:
  """The array of an idx file; a name that ends in .gz is decompressed.

  Raises:
    InputError: no such file, one that is damaged or no idx file.

  Reference: LeCun, Cortes & Burges, The MNIST Database of Handwritten Digits, http://yann.lecun.com/exdb/mnist.
  """
  path = pathlib.Path(path)
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      content = file.read()
  except FileNotFoundError:
    raise InputError(f'{path}: found no such file, expected an idx file such as those of {URL}.') from None
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f'{path}: cannot be read, expected an idx file: {error}.') from error
  if len(content) < 4 or content[:2] != b'\0\0' or content[2] not in DTYPES or len(content) < 4 + 4 * content[3]:
    raise InputError(f'{path}: found {content[:4].hex()} at its start, expected an idx file (0000, dtype, axes).')
  dtype, start = np.dtype(DTYPES[content[2]]), 4 + 4 * content[3]
  shape = tuple(np.frombuffer(content, '>i4', content[3], 4).tolist())
  if len(content) - start != int(np.prod(shape)) * dtype.itemsize:
    raise InputError(f'{path}: found {len(content) - start} bytes, expected an array {shape} of {dtype}.')
  return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder('='))


def mnist(data_dir: str | os.PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
  """MNIST, or a data set of the same files (Fashion-MNIST): images uint8[N, 28, 28] and labels int32[N].

  Args:
    data_dir: folder of the four files, or the folder above it, called mnist; each with or without .gz.
    split: 'train' (60000) or 'test' (10000).

  Raises:
    InputError: another split, missing or damaged files, images and labels of different number.
  """
  prefix = {'train': 'train', 'test': 't10k'}.get(split)
  if prefix is None:
    raise InputError(f"mnist split: found {split!r}, expected 'train' or 'test'.")
  data_dir = pathlib.Path(os.path.expanduser(data_dir))
  names = [f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte']
  arrays = []
  for name in names:
    places = [folder / f'{name}{end}' for folder in (data_dir, data_dir / 'mnist') for end in ('.gz', '')]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
      raise InputError(f'data_dir: {str(data_dir)!r} has no {name}.gz, expected the four files of {URL}.')
    arrays.append(read_idx(found))
  images, labels = arrays
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise InputError(f'{data_dir}: found images {images.shape} and labels {labels.shape}, expected as many of both.')
  return images, labels.astype(np.int32)
