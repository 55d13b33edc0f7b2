"""related_tasks: that the tasks have the relations that a tree or a graph says."""

import jax
import numpy as np
import pytest

import mtljax as mtl
from mtljax.data import related_tasks
from mtljax.relations import TaskGraph, TaskTree

TREE = TaskTree((('a', 'b'), (('c', 'd'), 'e'), 'f'))
SIZES = {'train': 30, 'val': 10, 'test': 20}


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_covariance_of_a_tree_by_hand():
  """rho = .6, three groups: r = 1 - c 3/2; c and d have two inner nodes in common, 1 - .4^2."""
  names, groups, sigma = related_tasks.covariance(TREE, conflict=0.5, relatedness=0.6)
  assert names == tuple('abcdef') and groups.tolist() == [0, 0, 1, 1, 1, 2]
  o = 0.6 * 0.25
  expected = [
    [1, 0.6, o, o, o, o],
    [0.6, 1, o, o, o, o],
    [o, o, 1, 0.84, 0.6, o],
    [o, o, 0.84, 1, 0.6, o],
    [o, o, 0.6, 0.6, 1, o],
    [o, o, o, o, o, 1],
  ]
  np.testing.assert_allclose(sigma, expected, atol=1e-12)


def test_covariance_of_a_graph_by_hand():
  """Two parts: a - b with weight 1, (I + L)^-1 = [[2, 1], [1, 2]] / 3, so half; c alone."""
  graph = TaskGraph(('a', 'c', 'b'), {('b', 'a'): 1.0}, directed=True)
  names, groups, sigma = related_tasks.covariance(
    TaskGraph(graph.nodes, {('a', 'b'): 1.0}), conflict=1, relatedness=0.8
  )
  assert names == ('a', 'c', 'b') and groups.tolist() == [0, 1, 0]
  np.testing.assert_allclose(sigma, [[1, -0.8, 0.9], [-0.8, 1, -0.8], [0.9, -0.8, 1]], atol=1e-12)
  # half of the weight goes each way
  kernel = np.linalg.inv([[1.5, -0.5], [-0.5, 1.5]])
  directed = related_tasks.covariance(graph, conflict=1, relatedness=0.0)[2]
  assert directed[0, 2] == pytest.approx(kernel[0, 1] / kernel[0, 0])


def test_parts_of_a_long_graph():
  nodes = tuple('abcdefgh')
  chain = TaskGraph(nodes, {pair: 0.1 for pair in (('a', 'h'), ('h', 'b'), ('b', 'g'), ('g', 'c'), ('d', 'e'))})
  assert related_tasks.covariance(chain)[1].tolist() == [0, 0, 0, 1, 1, 2, 0, 0]


@pytest.mark.parametrize('relations', [TREE, TaskTree(('a', 'b', 'c')), TaskGraph(tuple('abcd'), {('a', 'b'): 3.0})])
@pytest.mark.parametrize('relatedness', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('conflict', [0.0, 0.4, 1.0])
def test_every_covariance_is_one(relations, relatedness, conflict):
  _, groups, sigma = related_tasks.covariance(relations, conflict=conflict, relatedness=relatedness)
  np.testing.assert_allclose(np.diag(sigma), 1)
  np.testing.assert_array_equal(sigma, sigma.T)
  assert np.linalg.eigvalsh(sigma).min() > -1e-9
  number = groups.max() + 1
  between = sigma[groups[:, None] != groups]
  np.testing.assert_allclose(between, relatedness * (1 - conflict * number / (number - 1)), atol=1e-9)


def test_conflict_of_two_groups_goes_from_agreement_to_opposition():
  two = TaskTree((('a', 'b'), ('c', 'd')))
  found = [related_tasks.covariance(two, conflict=c, relatedness=1.0)[2][0, 2] for c in (0, 0.5, 1)]
  np.testing.assert_allclose(found, [1, 0, -1])
  made = related_tasks.make(two, conflict=1.0, relatedness=1.0, noise=0.0, sizes=SIZES)
  labels = made.splits['train']['labels']
  np.testing.assert_allclose(labels['a'], labels['b'], atol=1e-5)
  np.testing.assert_allclose(labels['a'], -labels['c'], atol=1e-5)
  assert np.abs(labels['a']).max() > 0.5


def test_one_group():
  made = related_tasks.make(TaskTree('a'), conflict=1.0, sizes=SIZES)
  assert made.covariance.tolist() == [[1]] and made.groups.tolist() == [0]


def test_drawn_weights_have_the_covariance():
  """Entries of a sample covariance of n draws are off by at most sqrt(2 / n) (standard deviation)."""
  _, _, sigma = related_tasks.covariance(TREE, conflict=0.8, relatedness=0.7)
  weights = related_tasks.draw_weights(sigma, 40_000, seed=3)
  np.testing.assert_allclose(weights @ weights.T / 40_000, sigma, atol=5 * np.sqrt(2 / 40_000))
  made = related_tasks.make(TREE, conflict=0.8, relatedness=0.7, num_features=50, sizes=SIZES, seed=3)
  np.testing.assert_array_equal(made.weights, related_tasks.draw_weights(sigma, 50, seed=3))
  np.testing.assert_array_equal(made.covariance, sigma)


def test_labels_have_the_covariance_too():
  """Features are correlated, so a label's covariance over examples is that of the weights on average over tasks."""
  sizes = {**SIZES, 'train': 4000}
  made = related_tasks.make(TREE, conflict=1.0, noise=0.5, sizes=sizes, num_features=200, num_inputs=100)
  labels = np.stack([made.splits['train']['labels'][name] for name in made.names])
  found = labels @ labels.T / labels.shape[1]
  np.testing.assert_allclose(found, made.covariance + 0.25 * np.eye(6), atol=0.35)
  off = ~np.eye(6, dtype=bool)
  assert np.corrcoef(found[off], made.covariance[off])[0, 1] > 0.9


def test_a_linear_map_of_the_inputs_does_not_do():
  sizes = {**SIZES, 'train': 2000}
  split = related_tasks.make(TREE, noise=0.0, sizes=sizes).splits['train']
  x = np.c_[split['inputs'], np.ones(2000)]
  y = split['labels']['a']
  residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
  assert 0.05 < residual.var() / y.var() < 0.6


def test_same_seed_same_tasks():
  make = lambda **kwargs: related_tasks.make(TREE, **{'sizes': SIZES, **kwargs})
  assert_same(make().splits, make().splits)
  other = make(seed=1)
  assert np.abs(other.weights - make().weights).max() > 0.1
  assert np.abs(other.splits['val']['inputs'] - make().splits['val']['inputs']).max() > 0.1
  # sizes of one split change nothing else
  larger = make(sizes={**SIZES, 'train': 40})
  assert_same(larger.splits['test'], make().splits['test'])
  np.testing.assert_array_equal(larger.weights, make().weights)
  # nor does noise change the inputs
  assert_same(make(noise=2.0).splits['train']['inputs'], make().splits['train']['inputs'])
  train, test = make().splits['train']['inputs'], make().splits['test']['inputs']
  assert not np.isin(test, train).any()


def test_classification():
  number = related_tasks.make(TREE, sizes=SIZES).splits['train']['labels']
  found = related_tasks.make(TREE, sizes=SIZES, kind='classification').splits['train']['labels']
  for name in TREE.leaves:
    np.testing.assert_array_equal(found[name], number[name] > 0)
    assert found[name].dtype == np.float32 and 0 < found[name].mean() < 1


def test_inputs_of_their_own():
  sizes = {**SIZES, 'train': {name: 10 + t for t, name in enumerate(TREE.leaves)}}
  made = related_tasks.make(TREE, sizes=sizes, noise=0.0)
  train = made.splits['train']
  assert {name: len(part['labels']) for name, part in train.items()} == sizes['train']
  assert not np.isin(train['a']['inputs'], train['b']['inputs']).any()
  assert mtl.data.Batches(train, 5)(0, 0)['f']['inputs'].shape == (5, 16)
  assert made.splits['val']['inputs'].shape == (10, 16)
  again = related_tasks.make(TREE, sizes={**sizes, 'train': {**sizes['train'], 'b': 99}}, noise=0.0)
  assert_same(again.splits['train']['a'], train['a'])


def test_examples_are_float32_and_make_batches():
  split = related_tasks.make(TREE, sizes=SIZES).splits['train']
  assert {leaf.dtype for leaf in jax.tree.leaves(split)} == {np.dtype(np.float32)}
  batch = mtl.data.Batches(split, 8)(0, 0)
  assert batch['inputs'].shape == (8, 16) and sorted(batch['labels']) == list(TREE.leaves)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(conflict=1.1), 'conflict: found 1.1, expected a number from 0 to 1'),
    (dict(relatedness=-0.1), 'relatedness: found -0.1'),
    (dict(kind='ranking'), "kind: found 'ranking', expected one of"),
    (dict(noise=-1.0), 'noise: found -1.0'),
    (dict(num_features=0), 'num_features: found 0, expected a whole number'),
    (dict(sizes={'train': 5}), r"sizes: found \['train'\].*missing \['test', 'val'\]"),
    (dict(sizes={**SIZES, 'val': 0}), r"sizes\['val'\]: found 0"),
    (dict(sizes={**SIZES, 'val': {'a': 1}}), r"sizes\['val'\]: found \['a'\].*missing"),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(mtl.InputError, match=message):
    related_tasks.make(TREE, **{'sizes': SIZES, **options})


def test_other_relations_are_refused():
  with pytest.raises(mtl.InputError, match='relations: found tuple, expected a TaskTree or a TaskGraph'):
    related_tasks.make((('a', 'b'), 'c'))
