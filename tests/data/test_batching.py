"""Batches are a function of (seed, step), cover every example, and keep masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import Batches, eval_batches, select_tasks

N, B = 11, 3
SINGLE = {'inputs': np.arange(N) * 10.0, 'labels': {'a': np.arange(N), 'b': {'x': np.arange(N), 'y': np.ones((N, 2))}}}
MULTI = {
  'a': {'inputs': np.arange(N) * 10.0, 'labels': np.arange(N)},
  'b': {'inputs': np.zeros((N, 2)), 'labels': np.arange(N), 'mask': np.arange(N) % 2 == 0},
  'c': {'inputs': np.zeros(4), 'labels': np.arange(4)},
}


def test_an_epoch_is_a_permutation():
  train = Batches(SINGLE, B)
  assert train.steps_per_epoch == 3
  epochs = [np.concatenate([train.indices(0, 3 * epoch + i) for i in range(3)]) for epoch in range(4)]
  assert all(len(set(epoch)) == 9 and set(epoch) <= set(range(N)) for epoch in epochs)
  assert not any(np.array_equal(epochs[0], other) for other in epochs[1:])
  assert set(np.concatenate(epochs)) == set(range(N))  # what one epoch drops another has


def test_indices_are_a_function_of_seed_and_step():
  train, again = Batches(SINGLE, B), Batches(SINGLE, B)
  for step in (0, 5, 100_000, 3):  # in any order: a resumed run starts anywhere
    found = train.indices(7, step)
    assert found.dtype == np.int32 and found.shape == (B,)
    np.testing.assert_array_equal(found, again.indices(7, step))
    assert not np.array_equal(found, train.indices(8, step))
  np.testing.assert_array_equal(train.indices(7, 1), np.random.default_rng((7, 0)).permutation(N)[B : 2 * B])


def test_without_shuffling():
  train = Batches(SINGLE, B, shuffle=False)
  assert [train.indices(seed=0, step=s).tolist() for s in (0, 2, 3)] == [[0, 1, 2], [6, 7, 8], [0, 1, 2]]


def test_indices_cannot_be_changed():
  with pytest.raises(ValueError, match='read-only'):
    Batches(SINGLE, B).indices(0, 0)[0] = 5


def test_batch():
  train = Batches(SINGLE, B)
  rows, batch = train.indices(0, 4), train(0, 4)
  expected = {'inputs': rows * 10.0, 'labels': {'a': rows, 'b': {'x': rows, 'y': np.ones((B, 2))}}}
  chex.assert_trees_all_equal(batch, expected)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((batch, train.examples)))


def test_take_holds_no_constants():
  """Compiled with the examples as an argument, over lanes too, and once for all steps."""
  train = Batches(SINGLE, B)
  take = jax.jit(jax.vmap(chex.assert_max_traces(train.take, n=1), in_axes=(None, 0)))
  for step in range(3):
    lanes = np.stack([train.indices(seed, step) for seed in range(2)])
    batch = take(train.examples, lanes)
    np.testing.assert_array_equal(batch['labels']['a'], lanes)
  assert not jax.make_jaxpr(train.take)(train.examples, train.indices(0, 0)).consts


def test_every_task_has_its_own_epochs():
  train = Batches(MULTI, B)
  assert train.steps_per_epoch == 3
  indices = [train.indices(0, step) for step in range(6)]
  assert {name: index.shape for name, index in indices[0].items()} == {'a': (B,), 'b': (B,), 'c': (B,)}
  for name in 'ab':
    for epoch in (indices[:3], indices[3:]):
      assert len({i for index in epoch for i in index[name]}) == 9
  assert all(len(set(index['c'])) == 3 and max(index['c']) < 4 for index in indices)  # one batch is its epoch
  assert not np.array_equal(indices[0]['a'], indices[0]['b'])
  batch = train(0, 2)
  np.testing.assert_array_equal(batch['a']['inputs'], indices[2]['a'] * 10.0)
  np.testing.assert_array_equal(batch['b']['mask'], indices[2]['b'] % 2 == 0)
  assert set(batch['a']) == {'inputs', 'labels'}


def seen(batches, labels, mask):
  return np.concatenate([np.asarray(labels(batch))[np.asarray(mask(batch))] for batch in batches])


@pytest.mark.parametrize('batch_size', [1, 3, 11, 16])
def test_evaluation_covers_every_example_once(batch_size):
  batches = eval_batches(SINGLE, batch_size)
  assert len(batches) == -(-N // batch_size)
  found = seen(batches, lambda b: b['labels']['a'], lambda b: b['mask']['a'])
  np.testing.assert_array_equal(found, np.arange(N))
  chex.assert_trees_all_equal_shapes_and_dtypes(batches[0], *batches)
  assert set(batches[0]['mask']) == {'a', 'b'} and batches[-1]['inputs'].shape == (batch_size,)
  padding = np.asarray(batches[-1]['labels']['a'])[N - batch_size * (len(batches) - 1) :]
  np.testing.assert_array_equal(padding, np.arange(len(padding)))


def test_evaluation_keeps_masks():
  items = np.random.default_rng(0).random((N, 2)) < 0.5
  examples = {'inputs': np.arange(N), 'labels': {'a': np.zeros((N, 2)), 'b': np.arange(N)}, 'mask': {'a': items}}
  batches = eval_batches(examples, 4)
  assert [batch['mask']['a'].shape for batch in batches] == [(4, 2)] * 3
  found = np.concatenate([batch['mask']['a'] for batch in batches])
  np.testing.assert_array_equal(found[:N], items)
  assert not found[N:].any()
  assert [int(batch['mask']['b'].sum()) for batch in batches] == [4, 4, 3]


def test_evaluation_of_tasks_of_different_length():
  batches = eval_batches(MULTI, 3)
  assert len(batches) == 4
  for task, expected in (('a', np.arange(N)), ('b', np.arange(0, N, 2)), ('c', np.arange(4))):
    np.testing.assert_array_equal(
      seen(batches, lambda b, t=task: b[t]['labels'], lambda b, t=task: b[t]['mask']), expected
    )
  assert not batches[-1]['c']['mask'].any()


def test_select_tasks():
  one = select_tasks(SINGLE, ('a',))
  assert set(one) == {'inputs', 'labels'} and set(one['labels']) == {'a'}
  batch = eval_batches(SINGLE, 4)[0]
  assert set(select_tasks(batch, ['b'])['mask']) == {'b'}
  assert set(select_tasks(MULTI, ('c', 'a'))) == {'a', 'c'}
  rows = Batches(one, B).indices(0, 0)
  np.testing.assert_array_equal(rows, Batches(SINGLE, B).indices(0, 0))  # a single-task run sees the same batches
  np.testing.assert_array_equal(
    Batches(select_tasks(MULTI, 'b'), B).indices(0, 1)['b'], Batches(MULTI, B).indices(0, 1)['b']
  )
  for examples in (SINGLE, MULTI):
    with pytest.raises(InputError, match=r"select_tasks names: .*unknown \['z'\]"):
      select_tasks(examples, ('a', 'z'))


def replaced(**parts):
  return SINGLE | parts


@pytest.mark.parametrize(
  ('examples', 'message'),
  [
    ([], 'examples: found list'),
    ({}, 'examples: found dict'),
    ({'inputs': np.zeros(3)}, r"examples\['labels'\]: found NoneType"),
    ({'labels': {'a': np.zeros(3)}}, r"examples: found \['labels'\], expected 'inputs'"),
    (replaced(labels={}), r"examples\['labels'\]: found dict, expected .* not empty"),
    (replaced(labels=np.zeros(N)), r"examples\['labels'\]: found ndarray"),
    (replaced(labels={'a': np.zeros(7)}), 'examples/labels/a: found 7 examples, expected 11'),
    (replaced(labels={'a': np.float32(1)}), 'examples/labels/a: found a scalar'),
    (replaced(masks={}), 'examples: found .*masks'),
    (replaced(mask=np.ones(N, bool)), r"examples\['mask'\]: found ndarray"),
    (replaced(mask={'c': np.ones(N, bool)}), r"examples\['mask'\]: .*unknown \['c'\]"),
    (replaced(mask={'a': np.ones(N)}), r"examples\['mask'\]\['a'\]: found dtype float64, expected bool"),
    ({'inputs': np.zeros((0, 2)), 'labels': {'a': np.zeros(0)}}, 'examples: found no example'),
    ({'a': np.zeros(3)}, r"examples\['a'\]: found ndarray"),
    ({'a': {'inputs': np.zeros(3)}}, r"examples\['a'\]: found \['inputs'\]"),
    ({'a': {'inputs': np.zeros(3), 'labels': np.zeros(4)}}, r"examples\['a'\]/labels: found 4 examples, expected 3"),
  ],
)
def test_bad_examples(examples, message):
  with pytest.raises(InputError, match=message):
    Batches(examples, 2)
  with pytest.raises(InputError, match=message):
    eval_batches(examples, 2)


def test_bad_numbers():
  with pytest.raises(InputError, match='batch_size: found 12, expected at most 11, the number of examples'):
    Batches(SINGLE, 12)
  with pytest.raises(InputError, match="batch_size: found 5, expected at most 4, the number of examples of task 'c'"):
    Batches(MULTI, 5)
  for wrong in (0, -1, 2.0, True, None):
    with pytest.raises(InputError, match='batch_size: found'):
      Batches(SINGLE, wrong)
    with pytest.raises(InputError, match='batch_size: found'):
      eval_batches(SINGLE, wrong)
  for wrong in (-1, 0.5, None):
    with pytest.raises(InputError, match='seed: found'):
      Batches(SINGLE, B).indices(wrong, 0)


def test_dtypes_stay():
  examples = {'inputs': np.zeros((4, 2), np.uint8), 'labels': {'a': np.zeros(4, np.int32)}}
  batch = Batches(examples, 2)(0, 0)
  assert batch['inputs'].dtype == jnp.uint8 and batch['labels']['a'].dtype == jnp.int32
