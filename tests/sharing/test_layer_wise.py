"""Layer-wise sharing: identities, a net by hand, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import forward, pair, scalar_loss

from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.stages import chained

KEY = jax.random.key(6)
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
def test_all_layers_shared_is_hard_sharing(trunk, x):
  model, hard = sharing.layer_wise(trunk, HEADS, shared='.*'), sharing.hard(trunk, HEADS)
  params, state = model.init(KEY, inputs(x))
  hard_params, hard_state = hard.init(KEY, inputs(x))
  jax.tree.map(np.testing.assert_array_equal, params['shared'], hard_params['shared'])
  assert params['tasks']['a']['layers'] == {}
  jax.tree.map(np.testing.assert_array_equal, params['tasks']['a']['head'], hard_params['tasks']['a'])
  found = value_and_shared_gradient(model, params, state, x)
  expected = value_and_shared_gradient(hard, hard_params, hard_state, x)
  for p, q in zip(*map(jax.tree.leaves, (found, expected))):
    np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5)


def test_a_layer_in_the_middle_by_hand():
  net = trunks.MLP((1, 1, 1), activation=lambda x: x)
  model = sharing.layer_wise(net, {'b': READ, 'a': READ}, shared='Dense_1')
  x = jnp.array([[1.0], [2.0]])
  params, state = model.init(KEY, inputs(x))
  assert set(params['shared']) == {'Dense_1'} and set(params['tasks']['a']['layers']) == {'Dense_0', 'Dense_2'}
  layer = lambda kernel, bias=0.0: {'kernel': jnp.array([[kernel]]), 'bias': jnp.array([bias])}
  params['shared'] = {'Dense_1': layer(3.0, 0.5)}
  params['tasks']['a']['layers'] = {'Dense_0': layer(2.0), 'Dense_2': layer(-1.0)}
  params['tasks']['b']['layers'] = {'Dense_0': layer(1.0, 1.0), 'Dense_2': layer(5.0)}
  outputs, _ = forward(model, params, state, inputs(x))
  np.testing.assert_allclose(outputs['a'], [[-6.5], [-12.5]])  # -(3 (2 x) + .5)
  np.testing.assert_allclose(outputs['b'], [[32.5], [47.5]])  # 5 (3 (x + 1) + .5)
  total = lambda p: sum(y.sum() for y in forward(model, p, state, inputs(x))[0].values())
  grad = jax.grad(total)(params)
  np.testing.assert_allclose(grad['shared']['Dense_1']['kernel'], [[-(2.0 + 4.0) + 5 * (2.0 + 3.0)]])
  np.testing.assert_allclose(grad['tasks']['b']['layers']['Dense_0']['kernel'], [[5 * 3 * (1.0 + 2.0)]])


def test_own_layers_are_drawn_anew_and_statistics_are_the_tasks():
  model = sharing.layer_wise(trunks.MLP((4, 4), batch_norm=True), HEADS, shared='Dense_0|BatchNorm')
  params, state = model.init(KEY, inputs())
  assert set(params['shared']) == {'Dense_0', 'BatchNorm_0', 'BatchNorm_1'} and state['shared'] == {}
  a, b = (params['tasks'][task]['layers']['Dense_1']['kernel'] for task in 'ab')
  assert np.any(a != b)
  _, new = jax.jit(lambda p, s: forward(model, p, s, inputs(), train=True, key=KEY))(params, state)
  means = [new['tasks'][task]['trunk']['batch_stats'] for task in 'ab']
  np.testing.assert_allclose(means[0]['BatchNorm_0']['mean'], means[1]['BatchNorm_0']['mean'], rtol=1e-6)
  assert np.any(means[0]['BatchNorm_0']['mean'])
  assert np.any(np.abs(means[0]['BatchNorm_1']['mean'] - means[1]['BatchNorm_1']['mean']) > 1e-4)


def test_layers_without_parameters_are_kept():
  pool = (lambda key, x: {}, lambda params, x: 2 * x)
  trunk = chained({'in': pair(4), 'pool': pool, 'out': pair(3)})
  model = sharing.layer_wise(trunk, HEADS, shared='in/')
  params, state = model.init(KEY, inputs())
  assert set(params['shared']) == {'in', 'pool'} and set(params['tasks']['a']['layers']) == {'out'}
  own = params['tasks']['a']
  expected = X
  for values, apply in zip(
    (params['shared']['in'], {}, own['layers']['out'], own['head']), (pair(4)[1], pool[1], pair(3)[1], HEADS['a'][1])
  ):
    expected = apply(values, expected)
  np.testing.assert_allclose(forward(model, params, state, inputs())[0]['a'], expected, rtol=1e-6)


LISTS = (lambda key, x: {'layers': [jnp.ones((3, 2))]}, lambda params, x: x @ params['layers'][0])


@pytest.mark.parametrize(
  'trunk, shared, message',
  [
    (
      nn.Dense(4),
      'Conv',
      r"^layer_wise shared: 'Conv' matches none of the trunk's parameters \['bias', 'kernel'\]\.",
    ),
    (nn.Dense(4), '[', r"^layer_wise shared: found '\[', expected a regular expression"),
    (nn.Dense(4), None, r'^layer_wise shared: found None, expected a regular expression'),
    (LISTS, '.*', r"^layer_wise trunk: its parameters are in a list at 'layers', expected nested dictionaries"),
    (nn.Conv(4, (3, 3, 3)), '.*', r"^trunk \(inputs of 'b'\) cannot take float32\[6, 3\]: "),
  ],
)
def test_bad_arguments_are_named(trunk, shared, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda key: sharing.layer_wise(trunk, HEADS, shared=shared).init(key, inputs()), KEY)
