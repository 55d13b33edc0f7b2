"""Molecules of a made-up npz file: features, gaps, splits, and what is refused."""

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import molecules

BITS = np.random.default_rng(0).integers(0, 2, (8, 16))


def write(path, **changes):
  arrays = dict(
    fp_bits=np.packbits(BITS, axis=1),
    descriptors=np.arange(16, dtype=np.float32).reshape(8, 2),
    y=np.array([[1, 0], [0, np.nan], [np.nan, 1], [0, 0], [1, 1], [0, 1], [1, np.nan], [0, 0]], np.float32),
    task_names=np.array(['a', 'b']),
    split_scaffold=np.array([0, 0, 0, 0, 1, 1, 2, 2], np.uint8),
    split_random=np.array([2, 1, 0, 0, 0, 0, 0, 0], np.uint8),
  )
  np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
  return path


def test_features_labels_and_splits(tmp_path):
  write(tmp_path / 'tox21.npz')
  found = molecules.tox21(tmp_path)
  inputs = found['train']['inputs']
  assert [len(found[part]['inputs']) for part in ('train', 'val', 'test')] == [4, 2, 2]
  assert inputs.shape == (4, 18) and inputs.dtype == np.float32
  np.testing.assert_array_equal(inputs[:, :16], BITS[:4])
  np.testing.assert_allclose(inputs[:, 16:].mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(inputs[:, 16:].std(axis=0), 1, rtol=1e-6)
  assert found['val']['inputs'][0, 16] == pytest.approx((8 - 3) / np.std([0, 2, 4, 6]))  # the scale of training
  assert found['train']['mask']['a'].tolist() == [True, True, False, True]
  assert found['test']['mask']['b'].tolist() == [False, True] and found['val']['labels']['b'].tolist() == [1, 1]


def test_random_split_and_other_layouts(tmp_path):
  (tmp_path / 'tox21').mkdir()
  write(tmp_path / 'tox21' / 'tox21.npz')
  found = molecules.tox21(tmp_path, 'random')
  np.testing.assert_array_equal(found['test']['inputs'][:, :16], BITS[:1])
  path = write(tmp_path / 'other.npz', fp_bits=None, part=np.array([0, 1, 2, 0, 0, 0, 0, 0]))
  assert molecules.load(path, bits=None, split='part')['train']['inputs'].shape == (6, 2)
  assert molecules.load(write(path), descriptors=None)['train']['inputs'].shape == (4, 16)


REFUSED = {
  'no labels': (dict(y=None), "labels is 'y', which is no array there"),
  'unpacked bits': (dict(fp_bits=BITS.astype(np.int32)), "'fp_bits' is int32"),
  'bits of another type': (dict(fp_bits=BITS.astype(np.uint16)), 'uint16, expected uint8'),
  'an endless number': (dict(descriptors=np.full((8, 2), np.inf)), "'descriptors' is not finite in row 0"),
  'fewer molecules': (dict(descriptors=np.zeros((7, 2))), "'descriptors' has 7 rows, expected 8"),
  'an unknown part': (dict(split_scaffold=np.arange(8)), 'expected 0 train, 1 val and 2 test'),
  'nothing to test': (dict(split_scaffold=np.arange(8) % 2), "has no 2, expected a molecule in 'test'"),
  'a task without a label': (
    dict(y=np.array([[1, np.nan]] * 4 + [[1, 1]] * 4)),
    "task 'b' has no label in the training part",
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(tmp_path, case):
  changes, message = REFUSED[case]
  with pytest.raises(InputError, match=f'tox21.npz: .*{message}'):
    molecules.tox21(write(tmp_path / 'tox21.npz', **changes).parent)


def test_arguments_that_are_refused(tmp_path):
  with pytest.raises(InputError, match='has no tox21.npz'):
    molecules.tox21(tmp_path)
  path = write(tmp_path / 'tox21.npz')
  with pytest.raises(InputError, match="expected 'scaffold' or 'random'"):
    molecules.tox21(tmp_path, 'time')
  with pytest.raises(InputError, match='bits and descriptors are None'):
    molecules.load(path, bits=None, descriptors=None)
  path.write_bytes(path.read_bytes()[:200])
  with pytest.raises(InputError, match=r'tox21\.npz'):
    molecules.load(path)


@pytest.mark.data
def test_tox21(data_dir):
  found = molecules.tox21(data_dir)
  assert sum(len(part['inputs']) for part in found.values()) == 7823 and found['train']['inputs'].shape[1] == 1040
  masks = np.concatenate([np.stack(list(part['mask'].values())) for part in found.values()], axis=1)
  assert masks.shape == (12, 7823) and 0.82 < masks.mean() < 0.84
