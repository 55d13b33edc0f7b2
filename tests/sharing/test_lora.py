"""LoRA: identities, kernels by hand, frozen trunks, what it refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sharing_cases import forward, pair, scalar_loss

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(0), (6, 3))
HEADS = {'b': pair(2), 'a': pair(4)}
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)


def inputs(x=X):
  return {'b': x, 'a': x}


def value_and_shared_gradient(model, params, state, x):
  def loss(shared):
    outputs, _ = forward(model, {**params, 'shared': shared}, state, inputs(x))
    return sum(scalar_loss(task, y) for task, y in outputs.items()), outputs

  return jax.jit(jax.grad(loss, has_aux=True))(params['shared'])


@pytest.mark.parametrize(
  'trunk, x',
  [(trunks.MLP((4, 3)), X), (trunks.LeNet((3,), hidden=4, kernel_size=3), jax.random.normal(KEY, (2, 5, 4)))],
  ids=['dense', 'conv'],
)
def test_with_a_zero_second_factor_it_is_the_shared_trunk(trunk, x):
  model, hard = sharing.lora(trunk, HEADS), sharing.hard(trunk, HEADS)
  params, state = model.init(KEY, inputs(x))
  hard_params, hard_state = hard.init(KEY, inputs(x))
  jax.tree.map(np.testing.assert_array_equal, params['shared'], hard_params['shared'])
  own = params['tasks']['a']['lora']
  assert np.any(own['Dense_0']['kernel']['a']) and not np.any(own['Dense_0']['kernel']['b'])
  gradient, outputs = value_and_shared_gradient(model, params, state, x)
  expected, hard_outputs = value_and_shared_gradient(hard, hard_params, hard_state, x)
  for found, wanted in zip(*map(jax.tree.leaves, ((gradient, outputs), (expected, hard_outputs)))):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_kernels_by_hand():
  trunk = (
    lambda key, x: {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)},
    lambda p, x: x @ p['kernel'] + p['bias'][None],
  )
  model = sharing.lora(trunk, {'b': READ, 'a': READ}, rank=1, scale=0.5)
  x = jnp.array([[1.0, 2.0]])
  params, state = model.init(KEY, inputs(x))
  params['shared'] = {'kernel': jnp.eye(2), 'bias': jnp.array([0.0, 10.0])}
  params['tasks']['a']['lora'] = {'kernel': {'a': jnp.array([[1.0], [2.0]]), 'b': jnp.array([[3.0, -1.0]])}}
  outputs, _ = forward(model, params, state, inputs(x))
  # kernel of a: identity + .5 (1, 2)' (3, -1) = [[2.5, -.5], [3, 0]]
  np.testing.assert_allclose(outputs['a'], [[8.5, 9.5]])
  np.testing.assert_allclose(outputs['b'], [[1.0, 12.0]])


def test_a_convolution_is_one_matrix():
  model = sharing.lora(nn.Conv(3, (2, 2), use_bias=False), {'a': READ}, rank=2, scale=2.0)
  x = jax.random.normal(KEY, (1, 4, 5, 2))
  params, state = model.init(KEY, {'a': x})
  draw = np.random.default_rng(0)
  a, b = (draw.normal(size=shape).astype(np.float32) for shape in ((8, 2), (2, 3)))
  assert jax.tree.map(jnp.shape, params['tasks']['a']['lora']['kernel']) == {'a': (8, 2), 'b': (2, 3)}
  params['tasks']['a']['lora']['kernel'] = {'a': a, 'b': b}
  kernel = np.array(params['shared']['kernel'])
  for h, w, i, o in np.ndindex(2, 2, 2, 3):
    kernel[h, w, i, o] += 2.0 * sum(a[4 * h + 2 * w + i, r] * b[r, o] for r in range(2))
  expected = nn.Conv(3, (2, 2), use_bias=False).apply({'params': {'kernel': kernel}}, x)
  np.testing.assert_allclose(forward(model, params, state, {'a': x})[0]['a'], expected, rtol=1e-5, atol=1e-5)


def test_a_pattern_says_what_is_adapted_and_a_short_side_bounds_the_rank():
  model = sharing.lora(trunks.MLP((2, 7)), HEADS, rank=3, where='Dense_1/kernel')
  shapes = jax.eval_shape(lambda key: model.init(key, inputs()), KEY)[0]['tasks']['a']['lora']
  assert jax.tree.map(jnp.shape, shapes) == {'Dense_1': {'kernel': {'a': (2, 2), 'b': (2, 7)}}}


def test_a_frozen_trunk_has_no_gradient_and_stays_through_a_step():
  trunk = trunks.MLP((4,), batch_norm=True)
  values = {'Dense_0': {'kernel': np.full((3, 4), 0.25)}, 'BatchNorm_0': {'scale': np.full(4, 2.0), 'bias': np.ones(4)}}
  model = sharing.lora(trunk, HEADS, frozen=values)
  tasks = (mtl.Task('a', mtl.losses.squared_error), mtl.Task('b', mtl.losses.squared_error))
  optimizer = mtl.task_optimizer(optax.sgd(0.1), {name: optax.adamw(0.1, weight_decay=0.5) for name in 'ab'})
  batch = {'inputs': X, 'labels': {'a': jnp.ones((6, 4)), 'b': jnp.ones((6, 2))}}
  balancer = mtl.balancing.equal()
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, KEY)
  assert state.params['shared'] == {}
  frozen = state.model_state['shared']['frozen']
  assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {np.dtype('float32')}
  jax.tree.map(np.testing.assert_array_equal, frozen, values)
  new, info = jax.jit(mtl.make_train_step(model, tasks, optimizer, balancer))(state, batch)
  jax.tree.map(np.testing.assert_array_equal, new.model_state['shared']['frozen'], values)
  assert new.params['shared'] == {} and info.finite
  for task in 'ab':
    before, after = state.params['tasks'][task], new.params['tasks'][task]
    assert np.any(after['lora']['Dense_0']['kernel']['b']) and np.any(before['head']['w'] != after['head']['w'])
    mean = new.model_state['tasks'][task]['trunk']['batch_stats']['BatchNorm_0']['mean']
    assert np.any(mean)  # statistics are the task's own and move
  variables = {'params': values, **state.model_state['tasks']['a']['trunk']}
  features = trunk.apply(jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables), X)
  expected = HEADS['a'][1](state.params['tasks']['a']['head'], features)
  outputs, _ = forward(model, state.params, state.model_state, inputs())
  np.testing.assert_allclose(outputs['a'], expected, rtol=1e-5, atol=1e-6)


def test_frozen_values_outlive_the_state_that_they_are_of():
  values = {'kernel': jnp.ones((3, 4)), 'bias': jnp.zeros(4)}
  model = sharing.lora(nn.Dense(4), HEADS, frozen=values)
  jax.tree.map(lambda x: x.delete(), values)  # what becomes of a state that is donated to a step
  _, state = model.init(KEY, inputs())
  np.testing.assert_array_equal(state['shared']['frozen']['kernel'], np.ones((3, 4)))


def test_an_nnx_instance_is_frozen_with_its_own_values():
  trunk = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
  model = sharing.lora(trunk, HEADS, frozen=True)
  params, state = model.init(KEY, inputs())
  np.testing.assert_array_equal(state['shared']['frozen']['kernel'], trunk.kernel[...])
  assert params['shared'] == {} and sharing.keeps_own_values(model, inputs()) == ('trunk',)
  expected = HEADS['a'][1](params['tasks']['a']['head'], trunk(X))
  np.testing.assert_allclose(forward(model, params, state, inputs())[0]['a'], expected, rtol=1e-5)


def test_tasks_with_inputs_of_their_own_read_them():
  model = sharing.lora(nn.Dense(4), HEADS)
  given = {'a': X, 'b': 2 - X[:2]}
  params, state = model.init(KEY, given)
  for task, x in given.items():
    features, _ = model.trunk(params['shared'], state['shared'], x, tasks=(task,), train=True, key=KEY)
    own = params['tasks'][task], state['tasks'][task]
    y, _ = model.head(*own, features, inputs=x, task=task, train=True, key=KEY)
    expected = HEADS[task][1](own[0]['head'], x @ params['shared']['kernel'] + params['shared']['bias'][None])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [5, 3])
def test_parameters_are_no_features_even_where_they_have_as_many_rows_as_the_batch(size):
  model = sharing.lora(nn.Dense(3), {'a': pair(2), 'b': pair(2)})
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in 'ab')
  optimizer = mtl.task_optimizer(optax.sgd(0.1), {name: optax.sgd(0.1) for name in 'ab'})
  y = jnp.ones((size, 2))
  batch = {'inputs': jnp.ones((size, 3)), 'labels': {'a': y, 'b': y}}
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.mgda(), batch, KEY)
  step = mtl.make_train_step(model, tasks, optimizer, mtl.balancing.mgda(), at='features')
  message = r"^at='features': feature '.*' has shape \(.*\), expected a leading batch axis of .*: .* shares what is no"
  with pytest.raises(InputError, match=message):
    step(state, batch)


DENSE = {'kernel': np.zeros((3, 4)), 'bias': np.zeros(4)}


@pytest.mark.parametrize(
  'build, message',
  [
    (lambda: sharing.lora(nn.Dense(4), HEADS, rank=0), r'^lora rank: found 0, expected a whole number of at least 1'),
    (lambda: sharing.lora(nn.Dense(4), HEADS, rank=2.0), r'^lora rank: found 2.0'),
    (lambda: sharing.lora(nn.Dense(4), {}), r'^heads: found \{\}, expected a non-empty'),
    (lambda: sharing.lora(nn.Dense, HEADS), r'^trunk: found '),
    (lambda: sharing.lora(nn.Dense(4), HEADS, where='('), r"^lora where: found '\(', expected a regular expression"),
    (lambda: sharing.lora(nn.Dense(4), HEADS, where=3), r'^lora where: found 3, expected a regular expression'),
    (
      functools.partial(sharing.lora, nn.Dense(4), HEADS, where='conv'),
      r"^lora where: 'conv' matches none of the trunk's parameters \['bias', 'kernel'\]",
    ),
    (
      functools.partial(sharing.lora, nn.Dense(4), HEADS, where=''),
      r"^lora where: '' matches 'bias' of shape \(4,\), expected kernels f\[\.\.\., O\]",
    ),
    (
      functools.partial(sharing.lora, nn.Dense(4), HEADS, frozen={'kernel': np.zeros((3, 4))}),
      r"^frozen: found \['kernel'\], expected \['bias', 'kernel'\]: missing \['bias'\]",
    ),
    (
      functools.partial(sharing.lora, nn.Dense(4), HEADS, frozen={**DENSE, 'kernel': np.zeros((2, 4))}),
      r"^frozen: 'kernel' has shape \(2, 4\), expected \(3, 4\)",
    ),
    (
      functools.partial(sharing.lora, nn.Dense(4), {'a': nn.Conv(2, (3, 3, 3)), 'b': pair(2)}),
      r"^heads\['a'\] cannot take float32\[6, 4\]: ",
    ),
  ],
)
def test_bad_arguments_are_named(build, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda key: build().init(key, inputs()), KEY)
