"""Residual adapters: identities, adapters by hand, frozen stages, what they refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharing_cases import forward, pair, scalar_loss

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.residual_adapters import _aligned
from mtljax.sharing.stages import chained

KEY = jax.random.key(8)
X = jax.random.normal(jax.random.key(0), (6, 3))
IMAGES = jax.random.normal(jax.random.key(1), (2, 6, 5, 1))
HEADS = {'b': pair(2), 'a': pair(4)}
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)
SCALE = (lambda key, x: {'scale': jnp.full((), 2.0)}, lambda params, x: params['scale'] * x)
HALVE = (lambda key, x: {}, lambda params, x: x[:, 1::2, ::2])  # fewer pixels: rows 1, 3, ..., columns 0, 2, ...


def inputs(x=X):
  return {'b': x, 'a': x}


def kernel(model_params, task, cut, value):
  model_params['tasks'][task]['adapters'][cut]['Dense_0']['kernel'] = jnp.asarray(value)


@pytest.mark.parametrize(
  'trunk, x, options',
  [
    (trunks.MLP((4, 3), batch_norm=True), X, dict()),
    (trunks.MLP((4, 3)), X, dict(kind='parallel')),
    (trunks.LeNet((3,), hidden=4, kernel_size=3), IMAGES, dict(kind='parallel', cuts=('conv_0',))),
  ],
  ids=['series', 'parallel', 'parallel-conv'],
)
def test_zero_adapters_are_the_shared_trunk(trunk, x, options):
  model, hard = sharing.residual_adapters(trunk, HEADS, **options), sharing.hard(chained(trunk), HEADS)
  params, state = model.init(KEY, inputs(x))
  heads = {task: params['tasks'][task]['head'] for task in 'ab'}
  states = {'shared': state['tasks']['a']['trunk']['stages'], 'tasks': dict.fromkeys('ab', {})}
  results = []
  for net, own, net_state in ((model, params['tasks'], state), (hard, heads, states)):

    def loss(shared, net=net, own=own, net_state=net_state):
      outputs, _ = forward(net, {'shared': shared, 'tasks': own}, net_state, inputs(x))
      return sum(scalar_loss(task, y) for task, y in outputs.items()), outputs

    results.append(jax.jit(jax.grad(loss, has_aux=True))(params['shared']))
  for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_series_adapters_by_hand():
  model = sharing.residual_adapters([SCALE, SCALE], {'b': READ, 'a': READ}, cuts=(0,), batch_norm=False)
  x = jnp.array([[1.0, 2.0]])
  params, state = model.init(KEY, inputs(x))
  assert set(params['shared']) == {'0', '1'} and set(params['tasks']['a']['adapters']) == {'0'}
  kernel(params, 'a', '0', [[1.0, 0.5], [-1.0, 0.0]])
  outputs, _ = forward(model, params, state, inputs(x))
  # y = (2, 4), A y = (2 - 4, 1): 2 (y + A y)
  np.testing.assert_allclose(outputs['a'], [[0.0, 10.0]])
  np.testing.assert_allclose(outputs['b'], [[4.0, 8.0]])


def test_the_series_adapter_reads_what_is_normalised():
  model = sharing.residual_adapters([SCALE], {'b': READ, 'a': READ})
  x = jnp.array([[1.0], [3.0]])
  params, state = model.init(KEY, inputs(x))
  kernel(params, 'a', '0', [[10.0]])
  outputs, new = forward(model, params, state, inputs(x), train=True, key=KEY)
  np.testing.assert_allclose(outputs['a'], [[2.0 - 10.0], [6.0 + 10.0]], rtol=1e-4)  # y = (2, 6), mean 4, deviation 2
  np.testing.assert_allclose(outputs['b'], [[2.0], [6.0]])
  assert new['tasks']['a']['trunk']['adapters']['0']['batch_stats']['BatchNorm_0']['mean'] > 0


def test_parallel_adapters_by_hand():
  model = sharing.residual_adapters([HALVE, SCALE], {'b': READ, 'a': READ}, kind='parallel')
  x = jnp.arange(1.0, 13.0).reshape(1, 4, 3, 1)
  params, state = model.init(KEY, inputs(x))
  kernel(params, 'a', '0', [[10.0]])
  kernel(params, 'b', '1', [[3.0]])
  outputs, _ = forward(model, params, state, inputs(x))
  halved, corners = np.array([[4.0, 6.0], [10.0, 12.0]]), np.array([[1.0, 3.0], [7.0, 9.0]])  # stride 2 from the corner
  np.testing.assert_allclose(outputs['a'][0, ..., 0], 2 * (halved + 10 * corners))
  np.testing.assert_allclose(outputs['b'][0, ..., 0], 2 * halved + 3 * halved)


@pytest.mark.parametrize('size, left, expected', [(7, 4, [0, 2, 4, 6]), (7, 3, [0, 2, 4]), (4, 4, [0, 1, 2, 3])])
def test_a_parallel_adapter_reads_every_so_many_pixels(size, left, expected):
  x = jnp.arange(float(size)).reshape(1, size, 1)
  assert _aligned(x, jnp.zeros((1, left, 3)), 'stage').ravel().tolist() == expected


def test_frozen_stages_stay_through_a_step_and_adapters_learn():
  values = {'layer_0': {'Dense_0': {'kernel': np.full((3, 4), 0.25), 'bias': np.ones(4)}}}
  model = sharing.residual_adapters(trunks.MLP((4,)), HEADS, kind='parallel', frozen=values)
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in 'ab')
  optimizer = mtl.task_optimizer(optax.sgd(0.1), {name: optax.sgd(0.1) for name in 'ab'})
  batch = {'inputs': X, 'labels': {'a': jnp.ones((6, 4)), 'b': jnp.ones((6, 2))}}
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.equal(), batch, KEY)
  assert state.params['shared'] == {}
  new, _ = jax.jit(mtl.make_train_step(model, tasks, optimizer, mtl.balancing.equal()))(state, batch)
  jax.tree.map(np.testing.assert_array_equal, new.model_state['shared']['frozen'], values)

  def loss(own):
    z = jax.nn.relu(X @ jnp.full((3, 4), 0.25) + 1) + X @ own['adapters']['layer_0']['Dense_0']['kernel']
    return mtl.losses.squared_error(HEADS['a'][1](own['head'], z), batch['labels']['a']).mean()

  before = state.params['tasks']['a']
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(loss)(before))
  for p, q in zip(*map(jax.tree.leaves, (new.params['tasks']['a'], expected)), strict=True):
    np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)
  assert np.any(new.params['tasks']['a']['adapters']['layer_0']['Dense_0']['kernel'])


def build(stages, x=X, **options):
  return lambda: sharing.residual_adapters(stages, HEADS, **options).init(KEY, inputs(x))


@pytest.mark.parametrize(
  'build, message',
  [
    (build([SCALE], kind='both'), r"^residual_adapters kind: found 'both', expected one of \['series', 'parallel'\]"),
    (build(nn.Dense(4)), r'^stages: found Dense\('),
    (build(trunks.MLP((4,)), cuts=('layer_1',)), r"^cuts: found 'layer_1', which the trunk does not have"),
    (
      build([nn.Dense(4), (lambda key, x: {}, lambda params, x: (x, x))]),
      r"^residual_adapters stages: '1' gives \(float32\[6, 4\], float32\[6, 4\]\), expected one array \[B, \.\.\., C\]",
    ),
    (
      build(trunks.LeNet((3,), hidden=4, kernel_size=3), IMAGES, kind='parallel'),
      r"^residual_adapters: stage 'dense' makes float32\[2, 4\] of float32\[2, 3, 2, 3\], which no parallel",
    ),
    (
      build([nn.Conv(2, (3, 3), padding='VALID')], IMAGES, kind='parallel'),
      r"^residual_adapters: stage '0' makes float32\[2, 4, 3, 2\] of float32\[2, 6, 5, 1\], .* use other cuts or kind=",
    ),
    (
      build([nn.Embed(7, 4)], jnp.zeros((2, 3), jnp.int32), kind='parallel'),
      r"^residual_adapters: stage '0' makes float32\[2, 3, 4\] of int32\[2, 3\]",
    ),
    (
      build(trunks.MLP((4,)), frozen={'Dense_0': {'kernel': np.ones((3, 4))}}),
      r"^frozen: found \['Dense_0/kernel'\], expected \['layer_0/Dense_0/bias', 'layer_0/Dense_0/kernel'\]",
    ),
  ],
)
def test_bad_arguments_are_named(build, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(build)
