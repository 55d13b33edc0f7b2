import gzip
import struct

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import idx, multi_mnist


def idx_bytes(array: np.ndarray) -> bytes:
  code = {'uint8': 8, 'int32': 12, 'float64': 14}[array.dtype.name]
  return (
    struct.pack(f'>HBB{array.ndim}I', 0, code, array.ndim, *array.shape)
    + array.astype(array.dtype.newbyteorder('>')).tobytes()
  )


def write_mnist(folder, train=40, test=10, compress=True):
  draw = np.random.default_rng(0)
  for prefix, number in (('train', train), ('t10k', test)):
    arrays = {
      f'{prefix}-images-idx3-ubyte': draw.integers(1, 256, (number, 28, 28)).astype(np.uint8),
      f'{prefix}-labels-idx1-ubyte': draw.integers(0, 10, number).astype(np.uint8),
    }
    for name, array in arrays.items():
      if compress:
        (folder / f'{name}.gz').write_bytes(gzip.compress(idx_bytes(array)))
      else:
        (folder / name).write_bytes(idx_bytes(array))


@pytest.mark.parametrize(
  'array', [np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([-1, 70000], np.int32), np.array(2.5)]
)
def test_arrays_of_any_dtype_and_rank(tmp_path, array):
  (tmp_path / 'x').write_bytes(idx_bytes(array))
  (tmp_path / 'x.gz').write_bytes(gzip.compress(idx_bytes(array)))
  for name in ('x', 'x.gz'):
    found = idx.read_idx(tmp_path / name)
    assert found.dtype == array.dtype and found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('compress', [True, False])
def test_canvases_show_both_digits_and_their_labels(tmp_path, monkeypatch, compress):
  monkeypatch.setattr(multi_mnist, 'VAL_SOURCES', 15)
  (tmp_path / 'mnist').mkdir()
  write_mnist(tmp_path / 'mnist', compress=compress)
  pairs = {'train': 30, 'val': 5, 'test': 12}
  splits = multi_mnist.load(tmp_path, pairs)
  sources = {'train': slice(0, 25), 'val': slice(25, 40), 'test': slice(None)}
  for split, examples in splits.items():
    x, labels = examples['inputs'], examples['labels']
    assert x.shape == (pairs[split], 36, 36, 1) and x.dtype == np.float32 and x.max() <= 1
    assert np.all(labels['left'] != labels['right']) and labels['left'].dtype == np.int32
    images, digits = idx.mnist(tmp_path, 'test' if split == 'test' else 'train')
    images, digits = images[sources[split]] / 255, digits[sources[split]]
    for row in range(pairs[split]):
      left = np.flatnonzero((np.abs(images[:, :8] - x[row, :8, :28, 0]) < 1e-6).all(axis=(1, 2)))
      right = np.flatnonzero((np.abs(images[:, 20:] - x[row, 28:, 8:, 0]) < 1e-6).all(axis=(1, 2)))
      assert digits[left] == labels['left'][row] and digits[right] == labels['right'][row]
  again = multi_mnist.load(tmp_path, pairs)
  np.testing.assert_array_equal(again['train']['inputs'], splits['train']['inputs'])


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('x', None, 'x: found no such file, expected an idx file'),
    ('x.gz', b'no gzip', 'x.gz: cannot be read, expected an idx file'),
    ('x.gz', gzip.compress(idx_bytes(np.zeros((2, 3), np.uint8)), mtime=0)[:-12], 'x.gz: cannot be read'),
    ('x', b'\0\0\x07\x01', 'x: found 00000701 at its start, expected an idx file'),
    ('x', idx_bytes(np.zeros((2, 3), np.uint8))[:-1], r'x: found 5 bytes, expected an array \(2, 3\) of uint8'),
  ],
  ids=['no file', 'no gzip', 'cut gzip', 'no idx', 'cut idx'],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    idx.read_idx(tmp_path / name)


def test_missing_files_and_wrong_arguments_are_named(tmp_path):
  with pytest.raises(InputError, match=r'data_dir: .* has no train-images-idx3-ubyte.gz, expected the four files of'):
    multi_mnist.load(tmp_path)
  with pytest.raises(InputError, match=r"mnist split: found 'val'"):
    idx.mnist(tmp_path, 'val')
  with pytest.raises(InputError, match=r"pairs: found \{'train': 3\}"):
    multi_mnist.load(tmp_path, {'train': 3})
  write_mnist(tmp_path)
  (tmp_path / 'train-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx_bytes(np.zeros(39, np.uint8))))
  with pytest.raises(InputError, match=r'found images \(40, 28, 28\) and labels \(39,\), expected as many of both'):
    multi_mnist.load(tmp_path)


@pytest.mark.data
def test_the_real_files(data_dir):
  splits = multi_mnist.load(data_dir)
  assert {split: len(part['inputs']) for split, part in splits.items()} == multi_mnist.PAIRS
  assert 0.25 < splits['train']['inputs'].mean() * 36**2 / 28**2 < 0.27  # two images of 0.13, overlaid
  shares = np.bincount(splits['train']['labels']['right'], minlength=10) / len(splits['train']['inputs'])
  assert np.all((shares > 0.08) & (shares < 0.125))
