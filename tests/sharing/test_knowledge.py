"""Heads that read a matrix: values by hand, fixed and learned, what it is made of, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from sharing_cases import forward, pair, perturbed

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (5, 3))
HEADS = {'b': pair(2), 'a': pair(3)}
SAME = (lambda key, x: {}, lambda params, x: x)  # a trunk or a head that hands on what it reads
LN3 = float(np.log(3))
TASKS = tuple(mtl.Task(t, mtl.losses.squared_error) for t in 'ab')
K = np.array([[1, 0, 2], [0, 1, -1], [3, 3, 0], [-1, 0, 0]], np.float32)


def test_by_hand():
  """Rows (0, 1) and (1, 1) of K with the keys 0 and ln 3, and the values 2 and 2 + 4."""
  model = sharing.knowledge(SAME, {'a': SAME, 'b': SAME}, matrix=np.array([[0.0, 1.0], [1.0, 1.0]]), width=1)
  x = jnp.array([[1.0], [-2.0], [0.0]])
  memory = {'key': jnp.array([[[LN3]], [[0.0]]]), 'value': jnp.array([[[4.0]], [[2.0]]])}
  _, state = model.init(KEY, {'a': x, 'b': x})
  own = {t: {'query': jnp.full((1, 1, 1), q), 'head': {}} for t, q in (('a', 1.0), ('b', -1.0))}
  outputs, _ = forward(model, {'shared': {'trunk': {}, 'memory': memory}, 'tasks': own}, state, {'a': x, 'b': x})
  # logits (0, q x ln 3): weights of the second row q x = 1: 3/4, -1: 1/4, 2: 9/10, -2: 1/10, 0: 1/2
  np.testing.assert_allclose(outputs['a'], [[1, 2 + 4 * 0.75], [-2, 2 + 4 * 0.1], [0, 4]], rtol=1e-6)
  np.testing.assert_allclose(outputs['b'], [[1, 2 + 4 * 0.25], [-2, 2 + 4 * 0.9], [0, 4]], rtol=1e-6)


def test_heads_and_positions_one_by_one():
  """f[B, N, C] features: every position asks, with two attention heads, against loops in float64."""
  model = sharing.knowledge(SAME, {'a': SAME}, matrix=K, num_heads=2, width=4)
  x = jax.random.normal(KEY, (2, 3, 5))
  params, state = model.init(KEY, {'a': x})
  params = perturbed(params)
  found, _ = jax.jit(lambda p: forward(model, p, state, {'a': x}))(params)
  assert found['a'].shape == (2, 3, 5 + 4)
  memory, query = params['shared']['memory'], np.asarray(params['tasks']['a']['query'], float)
  for place in np.ndindex(2, 3):
    z, read = np.asarray(x[place], float), []
    for h in range(2):
      logits = (K @ memory['key'][:, h]) @ (z @ query[:, h]) / np.sqrt(2)
      read.append(scipy.special.softmax(np.asarray(logits, float)) @ (K @ memory['value'][:, h]))
    np.testing.assert_allclose(found['a'][place], np.concatenate([z, *read]), rtol=1e-4, atol=1e-5)


def batch_of(multi=False):
  draw = np.random.default_rng(0)
  numbers = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  x, labels = numbers(6, 3), {'a': numbers(6, 3), 'b': numbers(6, 2)}
  if multi:
    return {t: {'inputs': numbers(6, 3), 'labels': labels[t]} for t in 'ab'}
  return {'inputs': x, 'labels': labels}


@pytest.mark.parametrize('multi', [False, True], ids=['single input', 'multi-input'])
def test_a_fixed_matrix_keeps_its_bits_and_everything_else_moves(multi):
  given = jnp.asarray(K)
  model = sharing.knowledge(trunks.MLP((8,)), HEADS, matrix=given)
  given.delete()  # a donated array: the model has a copy
  optimizer, balancer, batch = optax.adamw(0.1, weight_decay=0.1), mtl.balancing.equal(), batch_of(multi)
  state = jax.jit(lambda batch: mtl.init_state(model, TASKS, optimizer, balancer, batch, KEY))(batch)
  assert set(state.params['shared']['memory']) == {'key', 'value'}
  step = mtl.compile_step(mtl.make_train_step(model, TASKS, optimizer, balancer))
  before = jax.tree.map(np.array, state.params)
  for _ in range(3):
    state, info = step(state, batch)
  assert info.finite
  np.testing.assert_array_equal(state.model_state['shared']['memory']['matrix'], K)
  assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, state.params))))


def test_a_learned_matrix_is_shared_and_another_fixed_one_can_take_its_place():
  learned = sharing.knowledge(trunks.MLP((8,)), HEADS, size=(4, 3))
  inputs = {'a': X, 'b': X}
  params, state = learned.init(KEY, inputs)
  assert params['shared']['memory']['matrix'].shape == (4, 3) and not jax.tree.leaves(state['shared'])
  fixed = sharing.knowledge(trunks.MLP((8,)), HEADS, matrix=K)
  memory = dict(params['shared']['memory'])
  matrix = memory.pop('matrix')
  expected, _ = forward(learned, params, state, inputs)
  shared = {**params['shared'], 'memory': memory}
  swapped = {**state, 'shared': {**state['shared'], 'memory': {'matrix': matrix}}}
  found, _ = forward(fixed, {**params, 'shared': shared}, swapped, inputs)
  for task in inputs:
    np.testing.assert_array_equal(found[task], expected[task])
  wrong = {**state, 'shared': {**state['shared'], 'memory': {'matrix': jnp.ones((4, 2))}}}
  with pytest.raises(InputError, match=r'^knowledge matrix: found shape \[4, 2\], expected \[N, 3\]'):
    forward(fixed, {**params, 'shared': shared}, wrong, inputs)


def test_the_default_is_a_learned_matrix():
  params, _ = jax.eval_shape(sharing.knowledge(trunks.MLP((8,)), HEADS).init, KEY, {'a': X})
  assert params['shared']['memory']['matrix'].shape == (64, 64)


def test_at_features_names_what_is_no_feature():
  model = sharing.knowledge(trunks.MLP((8,)), HEADS, matrix=K)
  optimizer, balancer, batch = optax.sgd(0.1), mtl.balancing.mgda(), batch_of()
  state = mtl.init_state(model, TASKS, optimizer, balancer, batch, KEY)
  step = mtl.make_train_step(model, TASKS, optimizer, balancer, at='features')
  with pytest.raises(InputError, match=r"feature 'keys' has shape \(4, 1, 3\).*use at='params'"):
    jax.eval_shape(step, state, batch)


def test_at_features_refuses_a_matrix_with_as_many_rows_as_the_batch():
  batch = batch_of()
  model = sharing.knowledge(trunks.MLP((8,)), HEADS, size=(len(batch['inputs']), 3))
  optimizer, balancer = optax.sgd(0.1), mtl.balancing.mgda()
  state = jax.eval_shape(lambda key: mtl.init_state(model, TASKS, optimizer, balancer, batch, key), KEY)
  step = mtl.make_train_step(model, TASKS, optimizer, balancer, at='features')
  with pytest.raises(InputError, match=r"shares what is no feature; use at='params'"):
    jax.eval_shape(step, state, batch)


FEATURES = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
LABELS = np.array([[0, 2, 2, -1], [0, 0, 5, 2], [2, 0, 4, 0]])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_prototypes_and_statistics_of_classes(dtype):
  features = jnp.asarray(FEATURES, dtype)
  exact = np.asarray(features, np.float32)
  means, statistics = (
    jax.jit(function, static_argnums=2)(features, LABELS, 4)
    for function in (sharing.class_prototypes, sharing.class_statistics)
  )
  assert means.dtype == statistics.dtype == jnp.float32
  np.testing.assert_array_equal(statistics[:, :2], means)
  for c in (0, 2):
    np.testing.assert_allclose(means[c], exact[LABELS == c].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics[c, 2:], exact[LABELS == c].std(axis=0), rtol=1e-5)
  assert not np.any(statistics[jnp.array([1, 3])])  # labels -1, 4 and 5 count for none


@pytest.mark.parametrize(
  'features, labels, classes, message',
  [
    (FEATURES, LABELS[0], 4, r'found features float32\[3, 4, 2\] and labels int64\[4\], expected floats'),
    (FEATURES, LABELS.astype(np.float32), 4, r'labels float32\[3, 4\]'),
    (LABELS, LABELS[:, 0], 4, r'features int64'),
    (FEATURES, LABELS, 0, r'num_classes: found 0'),
  ],
)
def test_labels_that_are_no_classes_are_named(features, labels, classes, message):
  with pytest.raises(InputError, match=message.replace('int64', r'int\d\d')):
    sharing.class_prototypes(features, labels, classes)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'matrix': K, 'size': (4, 3)}, r'^knowledge: found matrix and size, expected'),
    ({'matrix': K[0]}, r'^knowledge matrix: found float32\[3\], expected floats \[N, D\] with N >= 2'),
    ({'matrix': K[:1]}, r'^knowledge matrix: found float32\[1, 3\]'),
    ({'matrix': K.astype(int)}, r'^knowledge matrix: found int\d\d\[4, 3\]'),
    ({'matrix': K * np.nan}, r'^knowledge matrix: found NaN or infinity'),
    ({'matrix': K, 'num_heads': 2}, r'width of the matrix: found 3, expected a multiple of num_heads=2'),
    ({'matrix': K, 'num_heads': 2, 'width': 5}, r'^knowledge width: found 5, expected a multiple of num_heads=2'),
    ({'size': 4}, r'^knowledge size: found 4, expected \(N, D\)'),
    ({'size': (1, 4)}, r'^knowledge size: N: found 1, expected a whole number of at least 2'),
    ({'size': (4, 0)}, r'^knowledge size: D: found 0'),
    ({'num_heads': 0}, r'^knowledge num_heads: found 0'),
    ({'width': 0}, r'^knowledge width: found 0'),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(InputError, match=message):
    sharing.knowledge(nn.Dense(4), HEADS, **options)


def test_a_trunk_of_several_features_is_named():
  two = (lambda key, x: {}, lambda params, x: {'u': x, 'v': x})
  model = sharing.knowledge(two, HEADS, matrix=K)
  with pytest.raises(InputError, match=r'knowledge trunk: found features \{u: float32\[5, 3\]'):
    jax.eval_shape(model.init, KEY, {'a': X})
