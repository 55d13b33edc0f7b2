"""Arrays from npz files and TFDS builders; what is wrong with a file is said by name."""

import types

import jax
import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import Batches, from_tfds, make_examples, npz, split

ARRAYS = {'inputs': np.arange(12.0).reshape(6, 2), 'labels/a': np.arange(6), 'mask/a': np.arange(6) % 2 == 0}


@pytest.fixture
def save(tmp_path):
  def save(**arrays):
    np.savez(tmp_path / 'own.npz', **arrays)
    return tmp_path / 'own.npz'

  return save


def test_npz_by_name(save):
  examples = npz(save(**ARRAYS))
  assert set(examples) == {'inputs', 'labels', 'mask'} and set(examples['labels']) == {'a'}
  np.testing.assert_array_equal(examples['mask']['a'], ARRAYS['mask/a'])
  assert Batches(examples, 2)(0, 0)['inputs'].shape == (2, 2)


def test_npz_with_other_names(save):
  path = save(x=np.zeros((3, 2)), digit=np.arange(3), even=np.ones(3, int), seen=np.array([True, False, True]))
  examples = npz(path, inputs='x', labels={'digit': 'digit', 'parity': 'even'}, masks={'parity': 'seen'})
  assert set(examples['labels']) == {'digit', 'parity'} and set(examples['mask']) == {'parity'}
  assert 'mask' not in npz(path, inputs='x', labels={'digit': 'digit'})


def test_npz_missing_arrays(save):
  path = save(x=np.zeros(3), y=np.zeros(3))
  with pytest.raises(InputError, match=r"own.npz: inputs is 'inputs', which is no array there; found \['x', 'y'\]"):
    npz(path, labels={'a': 'y'})
  with pytest.raises(InputError, match=r"own.npz: labels\['a'\] is 'z', which is no array there; found \['x', 'y'\]"):
    npz(path, inputs='x', labels={'a': 'z'})
  with pytest.raises(InputError, match=r"masks\['a'\] is 'm'"):
    npz(path, inputs='x', labels={'a': 'y'}, masks={'a': 'm'})
  with pytest.raises(InputError, match=r"own.npz: found \['x', 'y'\], expected arrays 'labels/<task>'"):
    npz(path, inputs='x')


def test_npz_bad_arrays(save):
  with pytest.raises(InputError, match='own.npz: .*labels/a: found 5 examples, expected 6'):
    npz(save(**ARRAYS | {'labels/a': np.arange(5)}))
  with pytest.raises(InputError, match='own.npz: .*no example'):
    npz(save(**{'inputs': np.zeros((0, 3)), 'labels/a': np.zeros(0)}))
  with pytest.raises(InputError, match="own.npz: array 'labels/a' holds Python objects"):
    npz(save(**ARRAYS | {'labels/a': np.array([{}] * 6, object)}))


@pytest.mark.parametrize('compress', [np.savez, np.savez_compressed])
def test_npz_damaged(tmp_path, compress):
  path = tmp_path / 'own.npz'
  compress(path, **ARRAYS | {'inputs': np.random.default_rng(0).normal(size=(6, 50))})
  whole = bytearray(path.read_bytes())
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match='own.npz: the file cannot be read'):
    npz(path)
  whole[400:420] = b'x' * 20  # in the inputs
  path.write_bytes(whole)
  with pytest.raises(InputError, match="own.npz: array 'inputs' cannot be read"):
    npz(path)
  path.write_bytes(b'')
  with pytest.raises(InputError, match='own.npz: the file cannot be read'):
    npz(path)


def test_npz_of_another_kind(tmp_path):
  with pytest.raises(InputError, match='none.npz: found no such file'):
    npz(tmp_path / 'none.npz')
  np.save(tmp_path / 'one.npy', np.zeros(3))
  with pytest.raises(InputError, match='one.npy: found a single array'):
    npz(tmp_path / 'one.npy')


def test_split():
  examples = {'inputs': np.arange(20), 'labels': {'a': {'x': np.arange(20)}}, 'mask': {'a': np.ones(20, bool)}}
  parts = split(examples, {'train': 0.75, 'val': 0.1, 'test': 0.15}, seed=3)
  assert {name: len(part['inputs']) for name, part in parts.items()} == {'train': 15, 'val': 2, 'test': 3}
  assert sorted(np.concatenate([part['inputs'] for part in parts.values()])) == list(range(20))
  for part in parts.values():
    np.testing.assert_array_equal(part['inputs'], part['labels']['a']['x'])
  again = split(examples, {'train': 0.75, 'val': 0.1, 'test': 0.15}, seed=3)
  np.testing.assert_array_equal(parts['train']['inputs'], again['train']['inputs'])
  other = split(examples, {'train': 0.75, 'val': 0.1, 'test': 0.15}, seed=4)
  assert not np.array_equal(parts['train']['inputs'], other['train']['inputs'])


def test_split_task_by_task():
  examples = {name: {'inputs': np.arange(n), 'labels': np.arange(n)} for name, n in (('a', 10), ('b', 4))}
  parts = split(examples, {'train': 0.5, 'test': 0.5})
  assert jax.tree.map(len, parts['test']) == {'a': {'inputs': 5, 'labels': 5}, 'b': {'inputs': 2, 'labels': 2}}


@pytest.mark.parametrize('fractions', [{}, {'a': 0.5}, {'a': 1.5, 'b': -0.5}, {'a': 1.0, 'b': 0.0}])
def test_split_refuses_fractions(fractions):
  with pytest.raises(InputError, match='split fractions: found'):
    split({'inputs': np.arange(3), 'labels': {'a': np.arange(3)}}, fractions)


def test_split_refuses_an_empty_part():
  with pytest.raises(InputError, match="split fractions: 'b' gets none of the 3 examples"):
    split({'inputs': np.arange(3), 'labels': {'a': np.arange(3)}}, {'a': 0.9, 'b': 0.1})


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """A TFDS builder that is not prepared."""
  import tensorflow_datasets as tfds

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      tensor = tfds.features.Tensor(shape=(2,), dtype=np.float32)
      features = {
        'x': tensor,
        'ragged': tfds.features.Tensor(shape=(None,), dtype=np.int32),
        'label': tfds.features.ClassLabel(num_classes=3),
        'text': tfds.features.Text(),
        'nested': {'z': tensor},
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'same': self._generate_examples(1), 'differ': self._generate_examples(2)}

    def _generate_examples(self, lengths):
      for i in range(5):
        x = np.full(2, i, np.float32)
        ragged = np.zeros(1 + i % lengths, np.int32)
        yield i, {'x': x, 'ragged': ragged, 'label': i % 3, 'text': f'{i}\0', 'nested': {'z': x}}

  return Toy(data_dir=tmp_path_factory.mktemp('toy'), file_format='array_record')


def test_tfds(toy):
  with pytest.raises(InputError, match=r"toy\['same'\]: cannot be read, expected a prepared builder"):
    from_tfds(toy, 'same')
  toy.download_and_prepare()
  arrays = from_tfds(toy, 'same')
  order = np.argsort(arrays['x'][:, 0])
  assert arrays['x'].shape == (5, 2) and arrays['x'].dtype == np.float32
  np.testing.assert_array_equal(arrays['label'][order], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(arrays['nested']['z'], arrays['x'])
  assert arrays['text'][order].tolist() == [f'{i}\0'.encode() for i in range(5)]
  assert len(from_tfds(toy, 'same[:40%]')['x']) == 2
  examples = make_examples(arrays, inputs='x', labels={'a': 'label'})
  assert examples['labels']['a'].shape == (5,)
  with pytest.raises(InputError, match=r"toy\['other'\]: cannot be read, expected .* one of \['differ', 'same'\]"):
    from_tfds(toy, 'other')
  with pytest.raises(InputError, match=r"toy\['differ'\]\['ragged'\]: found examples of shapes \[\(1,\), \(2,\)\]"):
    from_tfds(toy, 'differ')


def test_tfds_without_examples():
  empty = types.SimpleNamespace(name='empty', as_data_source=lambda split: [])
  with pytest.raises(InputError, match=r"empty\['train'\]: found no example"):
    from_tfds(empty, 'train')
