"""Attention between the streams of tasks: values by hand, identities, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from sharing_cases import forward, pair, perturbed, scalar_loss

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.stages import chained

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (5, 3))
HEADS = {'b': pair(2), 'a': pair(3)}
SCALE = (lambda key, x: {'scale': jnp.ones(())}, lambda params, x: params['scale'] * x)  # a stage of one number
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)  # a head that hands on what it reads
LN3 = float(np.log(3))


def one_number(x):
  return jnp.asarray(x, jnp.float32).reshape(2, 1, 1, 1)


def test_by_hand():
  """Streams of one number, x_a = 1 and x_b = 2."""
  model = sharing.cross_task_attention([SCALE], {'a': READ, 'b': READ})
  unit = {
    'query': one_number([1, -0.5]),  # q_a = 1, q_b = -1
    'key': one_number([0, LN3 / 2]),  # k_a = 0, k_b = ln 3: a listens with (1/4, 3/4), b with (3/4, 1/4)
    'value': one_number([1, 2]),  # v_a = 1, v_b = 4
    'gate': jnp.array([[0.5], [1.0]]),
  }
  stream = {task: {'0': {'scale': jnp.float32(scale)}} for task, scale in (('a', 1), ('b', 2))}
  params = {'shared': {'streams': stream, 'units': {'0': unit}}, 'tasks': {t: {'w': jnp.ones(())} for t in 'ab'}}
  x = jnp.ones((1, 1))
  _, state = jax.eval_shape(model.init, KEY, {'a': x, 'b': x})
  outputs, _ = forward(model, params, state, {'a': x, 'b': x})
  np.testing.assert_allclose(outputs['a'], [[1 + 0.5 * (0.25 * 1 + 0.75 * 4)]], rtol=1e-6)
  np.testing.assert_allclose(outputs['b'], [[2 + 1.0 * (0.75 * 1 + 0.25 * 4)]], rtol=1e-6)


def test_heads_and_positions_one_by_one():
  """Three tasks, two attention heads, 2x2 positions of 4 channels against loops in float64."""
  model = sharing.cross_task_attention([nn.Dense(4)], {t: READ for t in 'abc'}, num_heads=2, width=6)
  x = jax.random.normal(KEY, (2, 2, 2, 4))
  inputs = dict.fromkeys('abc', x)
  params, state = model.init(KEY, inputs)
  params = perturbed(params)
  found, _ = jax.jit(lambda p: forward(model, p, state, inputs))(params)
  shared = jax.tree.map(lambda p: np.asarray(p, float), params['shared'])
  unit, dense = shared['units']['0'], [shared['streams'][t]['0'] for t in 'abc']
  for place in np.ndindex(2, 2, 2):
    xs = [np.asarray(x, float)[place] @ layer['kernel'] + layer['bias'] for layer in dense]
    for t, task in enumerate('abc'):
      answers = []
      for h in range(2):
        q = xs[t] @ unit['query'][t][:, h]
        logits = [q @ (xs[s] @ unit['key'][s][:, h]) / np.sqrt(3) for s in range(3)]
        weights = scipy.special.softmax(logits)
        answers.append(sum(weights[s] * (xs[s] @ unit['value'][s][:, h]) for s in range(3)))
      expected = xs[t] + unit['gate'][t] * np.concatenate(answers)
      head = float(params['tasks'][task]['w'])
      np.testing.assert_allclose(found[task][place], head * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('tasks, gate', [(('a', 'b'), 0.0), (('a',), 0.1)], ids=['gate 0', 'one task'])
def test_single_task_nets(tasks, gate):
  trunk = trunks.MLP((4, 6))
  model = sharing.cross_task_attention(trunk, {t: HEADS[t] for t in tasks}, gate=gate)
  inputs = dict.fromkeys(tasks, X)
  params, state = model.init(KEY, inputs)
  outputs, _ = forward(model, params, state, inputs)
  alone = chained(trunk)
  for task in tasks:
    z, _ = alone.apply(params['shared']['streams'][task], dict.fromkeys(trunk.stages, {}), X, train=False, key=None)
    np.testing.assert_allclose(outputs[task], HEADS[task][1](params['tasks'][task], z), rtol=1e-6)
  assert bool(jax.tree.leaves(params['shared']['units'])) == (len(tasks) > 1)


@pytest.mark.parametrize('tasks', [('a',), ('a', 'b')])
def test_the_start_is_close_to_single_task_nets_and_everything_has_a_gradient(tasks):
  build = lambda gate: sharing.cross_task_attention(
    trunks.MLP((4, 6)), {t: HEADS[t] for t in tasks}, cuts=('layer_1',), gate=gate
  )
  inputs = dict.fromkeys(tasks, X)
  params, state = build(0.1).init(KEY, inputs)

  def losses(params):
    outputs, _ = forward(build(0.1), params, state, inputs)
    return {task: scalar_loss(task, y) for task, y in outputs.items()}, outputs

  grads, outputs = jax.jit(jax.jacrev(losses, has_aux=True))(params)
  total = jax.tree.map(lambda *leaves: sum(map(np.abs, leaves)), *[grad['shared'] for grad in grads.values()])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(total))
  units = {cut: jax.tree.map(jnp.zeros_like, unit) for cut, unit in params['shared']['units'].items()}
  alone, _ = forward(build(0.1), {**params, 'shared': {**params['shared'], 'units': units}}, state, inputs)
  for task in tasks:
    apart, size = np.linalg.norm(outputs[task] - alone[task]), np.linalg.norm(alone[task])
    assert apart < 0.3 * size and (apart > 0) == (len(tasks) > 1)


def test_bfloat16_stays_and_a_step_trains_on_two_inputs():
  model = sharing.cross_task_attention(
    trunks.MLP((4, 6), dtype=jnp.bfloat16), {t: nn.Dense(2) for t in 'ab'}, num_heads=2
  )
  tasks = tuple(mtl.Task(t, mtl.losses.squared_error) for t in 'ab')
  draw = np.random.default_rng(0)
  batch = {t: {'inputs': draw.normal(size=(4, 3)), 'labels': draw.normal(size=(4, 2))} for t in 'ab'}
  batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
  state = jax.jit(lambda batch: mtl.init_state(model, tasks, optax.sgd(0.1), mtl.balancing.equal(), batch, KEY))(batch)
  features, _ = jax.eval_shape(
    lambda p, s: model.trunk(p, s, X, tasks=('a', 'b'), train=False, key=None),
    state.params['shared'],
    state.model_state['shared'],
  )
  assert {z.dtype for z in features.values()} == {jnp.dtype('bfloat16')}
  new, info = jax.jit(mtl.make_train_step(model, tasks, optax.sgd(0.1), mtl.balancing.equal()))(state, batch)
  assert info.finite
  moved = jax.tree.map(lambda a, b: np.any(a != b), new.params, state.params)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_heads': 0}, r'num_heads: found 0, expected a whole number of at least 1'),
    ({'num_heads': True}, r'num_heads: found True'),
    ({'width': 2.0}, r'width: found 2.0, expected a whole number of at least 1'),
    ({'gate': 1.5}, r'gate: found 1.5, expected a number from 0 to 1'),
    ({'cuts': ('stem',)}, r"^cuts: found 'stem', which the trunk does not have, expected some of \['layer_0'\]"),
    ({'num_heads': 4}, r'channels at a cut: found 6, expected a multiple of num_heads=4'),
    ({'num_heads': 2, 'width': 3}, r'width: found 3, expected a multiple of num_heads=2'),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(InputError, match=message):
    model = sharing.cross_task_attention(trunks.MLP((6,)), HEADS, **options)
    jax.eval_shape(model.init, KEY, {'a': X, 'b': X})
