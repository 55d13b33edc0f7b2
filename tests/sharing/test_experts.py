"""Mixtures of experts: identities, values worked out by hand, where parameters live, what is refused."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sharing_cases import NnxTrunk, counting_module, forward, noisy_pair, pair, perturbed, scalar_loss

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.dselect_k import mixture_weights, selectors, smooth_step

KEY = jax.random.key(5)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32))
BOTH = {'a': X, 'b': X}
HEADS = {'a': nn.Dense(2), 'b': nn.Dense(3)}
LN3 = float(np.log(3))
# Small nets for numbers by hand: an expert multiplies by c, a head multiplies the sum by v.
SCALE = (lambda key, x: {'c': jnp.ones(())}, lambda params, x: params['c'] * x)
SUM = (lambda key, x: {'v': jnp.ones(())}, lambda params, x: params['v'] * x.sum(axis=1))


def outputs_of(model, params, state, inputs=BOTH):
  return jax.jit(lambda *args: forward(model, *args)[0])(params, state, inputs)


def init(model, inputs=BOTH):
  def run(key, inputs):
    params, state = model.init(key, inputs)
    return perturbed(params), state

  return jax.jit(run)(KEY, inputs)


def test_one_expert_is_hard_sharing():
  params, state = init(sharing.hard(trunks.MLP((8,)), HEADS))
  expected = outputs_of(sharing.hard(trunks.MLP((8,)), HEADS), params, state)
  for model in (
    sharing.mmoe(trunks.MLP((8,)), HEADS, num_experts=1),
    sharing.dselect_k(trunks.MLP((8,)), HEADS, k=1, num_experts=1),
  ):
    own, own_state = init(model)
    same = {
      'shared': {'experts': jax.tree.map(lambda p: p[None], params['shared'])},
      'tasks': {task: {'gate': {}, 'head': params['tasks'][task]} for task in HEADS},
    }
    chex.assert_trees_all_equal_shapes(own, same)
    chex.assert_trees_all_close(outputs_of(model, same, own_state), expected, rtol=1e-6)


def test_cgc_without_own_experts_is_mmoe():
  mmoe = sharing.mmoe(pair(8), HEADS, num_experts=3)
  bare = sharing.cgc(pair(8), None, HEADS, num_shared=3)
  params, state = init(mmoe)
  chex.assert_trees_all_equal(init(bare), (params, state))
  expected = outputs_of(mmoe, params, state)
  chex.assert_trees_all_equal(outputs_of(bare, params, state), expected)

  cgc = sharing.cgc(pair(8), pair(8), HEADS, num_shared=3, num_own=2)
  more, more_state = init(cgc)
  more['shared'] = params['shared']
  for task in HEADS:  # two own experts whose gate is shut come first
    gate = params['tasks'][task]['gate']
    shut = {'kernel': jnp.pad(gate['kernel'], ((0, 0), (2, 0))), 'bias': jnp.pad(gate['bias'], (2, 0))}
    shut['bias'] = shut['bias'].at[:2].set(-1e4)
    more['tasks'][task].update(gate=shut, head=params['tasks'][task]['head'])
  chex.assert_trees_all_close(outputs_of(cgc, more, more_state), expected, rtol=1e-5)


def test_ple_of_one_level_is_cgc():
  parts = [pair(8), nn.Dense(8)]
  params, state = init(sharing.cgc(pair(8), parts, HEADS, num_shared=3))
  expected = outputs_of(sharing.cgc(pair(8), parts, HEADS, num_shared=3), params, state)
  ple = sharing.ple(pair(8), [{'b': parts, 'a': parts}], HEADS, num_shared=3)
  chex.assert_trees_all_equal(init(ple), (params, state))
  chex.assert_trees_all_equal(outputs_of(ple, params, state), expected)


def test_k_open_selectors_span_the_mixtures_of_mmoe():
  """Selector i settled on expert i: the weights of the selectors are the gate of MMoE."""
  count, bits = 3, 2
  z = jnp.asarray([[1.0 if i >> (bits - 1 - b) & 1 else -1.0 for b in range(bits)] for i in range(count)])

  def gate_init(key, x):
    return {'w': jax.random.normal(key, (x.shape[1], count))}

  def gate_apply(params, x):
    settled = jnp.broadcast_to(z.reshape(1, -1), (x.shape[0], z.size))
    return jnp.concatenate([settled, x @ params['w']], axis=1)

  mmoe = sharing.mmoe(pair(8), HEADS, num_experts=count)
  dselect = sharing.dselect_k(pair(8), HEADS, k=count, num_experts=count, gamma=2.0, gates=(gate_init, gate_apply))
  params, state = init(mmoe)
  for task in HEADS:
    params['tasks'][task]['gate']['bias'] *= 0
  same = {'shared': params['shared'], 'tasks': {t: dict(p) for t, p in params['tasks'].items()}}
  for task in HEADS:
    same['tasks'][task]['gate'] = {'w': params['tasks'][task]['gate']['kernel']}
  chex.assert_trees_all_close(outputs_of(dselect, same, state), outputs_of(mmoe, params, state), rtol=1e-5, atol=1e-6)


def test_mmoe_by_hand():
  model = sharing.mmoe(SCALE, {'a': SUM, 'b': SUM}, num_experts=2)
  x = jnp.array([[1.0, 2.0], [2.0, 0.0]])
  _, state = jax.eval_shape(model.init, KEY, {'a': x, 'b': x})  # an empty one
  gates = {
    'a': {'kernel': jnp.array([[LN3, 0.0], [0.0, 0.0]]), 'bias': jnp.zeros(2)},  # weights (3/4, 1/4) and (9/10, 1/10)
    'b': {'kernel': jnp.zeros((2, 2)), 'bias': jnp.array([0.0, LN3])},  # (1/4, 3/4)
  }
  params = {
    'shared': {'experts': {'c': jnp.array([1.0, 3.0])}},
    'tasks': {t: {'gate': gates[t], 'head': {'v': jnp.array(v)}} for t, v in (('a', 1.0), ('b', 2.0))},
  }
  found = outputs_of(model, params, state, {'a': x, 'b': x})
  np.testing.assert_allclose(found['a'], [1.5 * 3, 1.2 * 2], rtol=1e-6)
  np.testing.assert_allclose(found['b'], [2 * 2.5 * 3, 2 * 2.5 * 2], rtol=1e-6)


def test_ple_by_hand():
  """One shared expert and one own; every number of the two levels is written out."""
  model = sharing.ple([SCALE, SCALE], [SCALE, SCALE], {'a': SUM, 'b': SUM}, num_shared=1, num_own=1)
  x = jnp.ones((1, 1))
  params, state = jax.eval_shape(model.init, KEY, {'a': x, 'b': x})
  expert = lambda c: {'c': jnp.array([float(c)])}
  gate = lambda kernel, bias: {'kernel': jnp.array([kernel]), 'bias': jnp.array(bias)}
  by_hand = {
    'shared': {
      'level1': {
        'shared': expert(6),
        'own': {'a': expert(2), 'b': expert(4)},
        'gate': gate([0.0, float(np.log(2)), 0.0], [0.0, 0.0, 0.0]),  # (1/4, 1/2, 1/4) of a, b, shared: x_s = 4
      },
      'level2': {'shared': expert(0.5)},  # 2
    },
    'tasks': {
      'a': {
        'level1': {'gate': gate([LN3, 0.0], [0.0, 0.0])},  # 3/4 2 + 1/4 6 = 3
        'level2': {'own': expert(1), 'gate': gate([LN3 / 3, 0.0], [0.0, 0.0])},  # reads 3: 3/4 3 + 1/4 2 = 11/4
        'head': {'v': jnp.array(2.0)},
      },
      'b': {
        'level1': {'gate': gate([0.0, 0.0], [0.0, 0.0])},  # 1/2 4 + 1/2 6 = 5
        'level2': {'own': expert(2), 'gate': gate([0.0, 0.0], [LN3, 0.0])},  # 3/4 10 + 1/4 2 = 8
        'head': {'v': jnp.array(1.0)},
      },
    },
  }
  chex.assert_trees_all_equal_shapes(params, by_hand)
  found = outputs_of(model, by_hand, state, {'a': x, 'b': x})
  np.testing.assert_allclose(found['a'], [5.5], rtol=1e-6)
  np.testing.assert_allclose(found['b'], [8.0], rtol=1e-6)


def numpy_ple(params, x, levels):
  """Progressive layered extraction as the paper writes it, for experts tanh(x w + b) and linear heads."""
  softmax = lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
  experts = lambda p, x: [np.tanh(x @ w + b) for w, b in zip(p['w'], p['b'])]
  mixed = lambda p, x, f: sum(w[:, None] * y for w, y in zip(softmax(x @ p['kernel'] + p['bias']).T, f, strict=True))
  shared, tasks = params['shared'], params['tasks']
  stream, streams = x, dict.fromkeys(tasks, x)
  for j in range(1, levels + 1):
    level = shared[f'level{j}']
    s = experts(level['shared'], stream)
    o = {
      t: experts(level['own'][t] if j < levels else tasks[t][f'level{j}']['own'], z) for t, z in sorted(streams.items())
    }
    gates = {t: level['gates'][t] if j < levels - 1 else tasks[t][f'level{j}']['gate'] for t in tasks}
    if j < levels:
      stream = mixed(level['gate'], stream, [f for t in sorted(o) for f in o[t]] + s)
    streams = {t: mixed(gates[t], streams[t], o[t] + s) for t in tasks}
  return {t: z @ tasks[t]['head']['kernel'] + tasks[t]['head']['bias'] for t, z in streams.items()}


def test_ple_of_three_levels_is_the_recurrence_of_the_paper_and_every_task_reaches_what_is_shared():
  """What every task reaches belongs to the balancer; that a task's own parameters are its own is in the contract."""
  model = sharing.ple(
    [pair(6), pair(7), pair(8)], [pair(6), pair(7), pair(8)], {'a': nn.Dense(1), 'b': nn.Dense(3)}, num_own=1
  )
  params, state = init(model)
  assert {level: set(parts) for level, parts in params['shared'].items()} == {
    'level1': {'shared', 'own', 'gate', 'gates'},
    'level2': {'shared', 'own', 'gate'},
    'level3': {'shared'},
  }
  own = {'level2': {'gate'}, 'level3': {'own', 'gate'}, 'head': {'kernel', 'bias'}}
  assert {part: set(tree) for part, tree in params['tasks']['a'].items()} == own

  @jax.jit
  def run(params):
    def losses(shared):
      outputs, _ = forward(model, {**params, 'shared': shared}, state, BOTH)
      return {task: scalar_loss(task, y) for task, y in outputs.items()}, outputs

    return jax.jacrev(losses, has_aux=True)(params['shared'])

  grads, outputs = run(params)
  expected = numpy_ple(jax.tree.map(np.asarray, params), np.asarray(X), 3)
  chex.assert_trees_all_close(outputs, expected, rtol=1e-4, atol=1e-5)
  for task, grad in grads.items():
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grad) if not np.any(g)]
    assert not dead, f'{task}: no gradient at {dead}'


@pytest.mark.parametrize('gamma', [1.0, 4.0])
def test_smooth_step(gamma):
  t = gamma * jnp.array([-0.7, -0.5, -0.25, 0.0, 0.25, 0.5, 0.7])
  np.testing.assert_allclose(smooth_step(t, gamma), [0, 0, 0.15625, 0.5, 0.84375, 1, 1], atol=1e-6)
  slope = jax.vmap(jax.grad(smooth_step), (0, None))(t, gamma)  # 3/(2 gamma) (1 - 4 t^2 / gamma^2)
  np.testing.assert_allclose(slope, np.array([0, 0, 1.125, 1.5, 1.125, 0, 0]) / gamma, atol=1e-6)


def test_selectors_by_hand():
  z = jnp.array([[0.0, 0.5], [3.0, -3.0]])  # S_2: (.5, .84375) and (1, 0)
  four = [[0.5 * 0.15625, 0.5 * 0.84375, 0.5 * 0.15625, 0.5 * 0.84375], [0, 0, 1, 0]]
  np.testing.assert_allclose(selectors(z, 4, 2.0), four, atol=1e-6)
  three = [[0.5 * 0.15625 + 0.5 * 0.84375, 0.5 * 0.84375, 0.5 * 0.15625], [0, 0, 1]]  # code 3 is expert 0 again
  np.testing.assert_allclose(selectors(z, 3, 2.0), three, atol=1e-6)
  weights = mixture_weights(z, jnp.array([0.0, LN3]), 4, 2.0)
  np.testing.assert_allclose(weights, 0.25 * np.array(four[0]) + 0.75 * np.array(four[1]), atol=1e-6)
  np.testing.assert_allclose(mixture_weights(z[1:], None, 4, 2.0), four[1], atol=1e-6)
  assert np.any(selectors(z, 4, 4.0) != selectors(z, 4, 2.0))


@pytest.mark.parametrize('count,k', [(2, 1), (5, 3)])
def test_a_settled_gate_selects_at_most_k(count, k):
  draw = np.random.default_rng(count)
  z = jnp.asarray(2 * np.sign(draw.normal(size=(9, k, (count - 1).bit_length()))))
  weights = mixture_weights(z, jnp.asarray(draw.normal(size=(9, k))) if k > 1 else None, count, 1.0)
  assert weights.shape == (9, count)
  np.testing.assert_allclose(weights.sum(axis=1), np.ones(9), rtol=1e-6)
  assert np.all((weights > 0).sum(axis=1) <= k)


def test_the_entropy_acts_on_the_gate_of_every_task():
  model = sharing.dselect_k(
    pair(8), {t: nn.Dense(2) for t in 'abc'}, num_experts=6, gamma=2.0, entropy=lambda step: 0.5, gates='static'
  )
  tasks = tuple(mtl.Task(t, lambda outputs, labels: 0 * outputs.sum(axis=1)) for t in 'abc')
  batch = {'inputs': X, 'labels': dict.fromkeys('abc', np.zeros(4)), 'mask': {'c': np.zeros(4, bool)}}
  optimizer, balancer = optax.sgd(0.1), mtl.balancing.equal()
  state = jax.jit(lambda key: mtl.init_state(model, tasks, optimizer, balancer, batch, key))(KEY)
  params = jax.tree.map(np.asarray, state.params)
  assert params['tasks']['a']['gate']['z'].shape == (2, 3)
  assert [penalty.task for penalty in model.penalties] == list('abc')
  found = jax.jit(lambda params: [jax.value_and_grad(penalty.value)(params) for penalty in model.penalties])(params)
  for task, (value, grads) in zip('abc', jax.tree.map(np.asarray, found)):
    r = np.asarray(selectors(params['tasks'][task]['gate']['z'], 6, 2.0), np.float64)
    np.testing.assert_allclose(value, -(r * np.log(r)).sum(), rtol=1e-4)
    assert np.all(grads['tasks'][task]['gate']['z'])
    moved = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grads) if np.any(g)]
    assert moved == [f"['tasks']['{task}']['gate']['z']"]

  # In a step whose losses are 0 it is all that acts, and not for a task without labels.
  new, _ = jax.jit(mtl.make_train_step(model, tasks, optimizer, balancer))(state, batch)
  expected = jax.tree.map(lambda p, a, b: p - 0.1 * 0.5 * (a + b), params, found[0][1], found[1][1])
  chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-6)


def test_the_entropy_of_static_gates_finds_them_behind_stems():
  plain, stemmed = (
    sharing.dselect_k(pair(8), {'a': pair(2)}, num_experts=4, entropy=0.1, gates='static', stems=stems)
    for stems in (None, {'a': pair(5)})
  )
  gate = {'z': jnp.array([[0.1, -0.2], [0.3, 0.0]])}
  values = [
    model.penalties[0].value({'shared': {}, 'tasks': {'a': own}})
    for model, own in ((plain, {'gate': gate}), (stemmed, {'stem': {}, 'head': {'gate': gate}}))
  ]
  assert values[0] == values[1] > 0
  params, _ = jax.eval_shape(stemmed.init, KEY, {'a': X})
  assert params['tasks']['a']['head']['gate']['z'].shape == (2, 2)


def test_the_entropy_of_gates_that_read_inputs_is_the_mean_over_the_batch():
  model = sharing.dselect_k(pair(8), HEADS, k=1, num_experts=2, gamma=4.0, entropy=0.5)
  params, state = model.init(KEY, dict.fromkeys(HEADS, X))
  params['tasks']['a']['gate'] = {'kernel': jnp.zeros((5, 1)).at[0, 0].set(2.0), 'bias': jnp.full((1,), 0.5)}
  penalty = model.penalties[0]
  assert penalty.task == 'a' and penalty.on == 'outputs'
  s = np.asarray([np.clip((2.0 * x[0] + 0.5) / 4.0, -0.5, 0.5) for x in np.asarray(X, float)])
  s = 0.5 + 1.5 * s - 2 * s**3
  expected = -np.mean(s * np.log(s + 1e-6) + (1 - s) * np.log(1 - s + 1e-6))
  inputs = dict.fromkeys(HEADS, X)
  np.testing.assert_allclose(jax.jit(penalty.value)(params, {}, inputs=inputs), expected, rtol=1e-5)
  # In a step whose losses are 0 it is all that acts.
  tasks = tuple(mtl.Task(t, lambda outputs, labels: 0 * outputs.sum(axis=1)) for t in HEADS)
  batch = {'inputs': X, 'labels': dict.fromkeys(HEADS, np.zeros(4))}
  tx = mtl.task_optimizer(shared=optax.sgd(1.0), tasks=dict.fromkeys(HEADS, optax.sgd(1.0)))
  step = jax.jit(mtl.make_train_step(model, tasks, tx, mtl.balancing.equal()))
  init = jax.jit(lambda key: mtl.init_state(model, tasks, tx, mtl.balancing.equal(), batch, key))
  before = init(KEY).replace(params=params)
  after, info = step(before, batch)
  gradient = jax.jit(jax.grad(lambda p: sum(0.5 * r.value(p, {}, inputs=inputs) for r in model.penalties)))(params)
  expected = jax.tree.map(jnp.subtract, params, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, expected)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient['tasks']['b']['gate'])) and info.penalty > 0


def test_an_open_gate_and_a_settled_one_have_finite_gradients_of_the_entropy():
  penalty = sharing.dselect_k(pair(8), HEADS, entropy=0.1, gates='static').penalties[0]
  run = jax.jit(jax.value_and_grad(lambda z: penalty.value({'tasks': {'a': {'gate': {'z': z}}}})))
  for z in (0.0, 1.0, -0.5):
    value, grad = run(jnp.full((2, 2), z))
    np.testing.assert_allclose(value, 4 * np.log(2) if z == 0 else 0, atol=1e-4)
    np.testing.assert_allclose(grad, np.zeros((2, 2)), atol=1e-6)  # the maximum, and bits that are settled


def test_experts_start_apart_and_run_once_for_all_tasks():
  calls = []

  def apply(params, x):
    calls.append(1)
    return params['c'] * x

  model = sharing.mmoe((lambda key, x: {'c': jax.random.normal(key, ())}, apply), HEADS, num_experts=3)
  params, state = model.init(KEY, BOTH)
  assert len(set(params['shared']['experts']['c'].tolist())) == 3
  calls.clear()
  outputs_of(model, params, state)
  assert len(calls) == 1


def test_features_may_be_any_pytree_and_what_is_not_floating_is_kept():
  expert = (
    lambda key, x: {'c': jnp.ones(())},
    lambda params, x: {'z': params['c'] * x, 'length': jnp.full((x.shape[0],), 5)},
  )
  head = (lambda key, f: {'v': jnp.ones(())}, lambda params, f: params['v'] * f['z'].sum(axis=1) / f['length'])
  for experts in (expert, [expert, expert]):
    model = sharing.mmoe(experts, {'a': head}, num_experts=2)
    params, state = model.init(KEY, {'a': X})
    np.testing.assert_allclose(outputs_of(model, params, state, {'a': X})['a'], X.sum(axis=1) / 5, rtol=1e-5)


def test_dropout_differs_between_copies():
  model = sharing.mmoe((lambda key, x: {}, noisy_pair(8)[1]), HEADS, num_experts=2)
  shared = {'experts': {'w': jnp.zeros((2, 5, 8)), 'b': jnp.zeros((2, 8))}}
  features, _ = jax.jit(lambda: model.trunk(shared, {'experts': {}}, X, tasks=('a', 'b'), train=True, key=KEY))()
  assert features.shape == (4, 2, 8) and np.any(features[:, 0] != features[:, 1])


MODELS = {
  'mmoe': lambda: sharing.mmoe(trunks.MLP((8,), batch_norm=True, dropout=0.2), HEADS),
  'cgc': lambda: sharing.cgc(trunks.MLP((8,), batch_norm=True), [pair(8), counting_module(8)], HEADS),
  'ple': lambda: sharing.ple([trunks.MLP((8,), batch_norm=True), pair(6)], [NnxTrunk, pair(6)], HEADS),
  'dselect_k': lambda: sharing.dselect_k(pair(8), HEADS, entropy=0.1, gates='static'),
}


@pytest.mark.parametrize('name', MODELS)
def test_a_step_takes_both_kinds_of_batch(name):
  """Traced, not run: the numbers are the contract's and the engine's."""
  model = MODELS[name]()
  tasks = tuple(mtl.Task(t, mtl.losses.softmax_cross_entropy) for t in HEADS)
  optimizer, balancer = optax.sgd(0.1), mtl.balancing.mgda()
  labels = {t: jnp.zeros(4, jnp.int32) for t in HEADS}
  single = {'inputs': X, 'labels': labels}
  multi = {t: {'inputs': X, 'labels': labels[t]} for t in HEADS}

  def run(batch, at='params'):
    state = jax.eval_shape(lambda: mtl.init_state(model, tasks, optimizer, balancer, batch, KEY))
    new, _ = jax.eval_shape(mtl.make_train_step(model, tasks, optimizer, balancer, at=at), state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)

  run(single)
  run(multi)
  if name == 'ple':
    with pytest.raises(InputError, match=r"at='features': feature 'own/.' is not read by task"):
      run(single, at='features')
  else:
    run(single, at='features')


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^num_experts: found 0 \(of experts\), expected a whole number .* >= 1'):
    sharing.mmoe(pair(8), HEADS, num_experts=0)
  with pytest.raises(InputError, match=r'^num_experts: found 0'):
    sharing.mmoe([], HEADS)
  with pytest.raises(InputError, match=r'^num_experts: found 3, expected None or 2, the length of the list experts'):
    sharing.mmoe([pair(8), pair(8)], HEADS, num_experts=3)
  with pytest.raises(InputError, match=r'^experts\[1\]: found 3, expected a flax linen module'):
    sharing.mmoe([pair(8), 3], HEADS)
  with pytest.raises(InputError, match=r'^experts: found an nnx instance, whose 4 copies would all be the same'):
    sharing.mmoe(nnx.Linear(5, 8, rngs=nnx.Rngs(0)), HEADS)
  with pytest.raises(InputError, match=r'^heads: found \{\}, expected a non-empty dictionary'):
    sharing.mmoe(pair(8), {})
  with pytest.raises(InputError, match=r"^gates: found \['a'\], expected \['a', 'b'\]: missing \['b'\]"):
    sharing.mmoe(pair(8), HEADS, gates={'a': None})
  with pytest.raises(InputError, match=r'^num_own: found -1 \(of own\)'):
    sharing.cgc(pair(8), pair(8), HEADS, num_own=-1)
  with pytest.raises(InputError, match=r"^own: found \['a'\], expected \['a', 'b'\]"):
    sharing.cgc(pair(8), {'a': pair(8)}, HEADS)


def test_bad_arguments_of_ple_and_dselect_k_are_named():
  with pytest.raises(InputError, match=r'^ple: found 2 levels of shared and 1 of own experts'):
    sharing.ple([pair(8), pair(8)], [pair(8)], HEADS)
  with pytest.raises(InputError, match=r'^ple: found 0 levels'):
    sharing.ple([], [], HEADS)
  with pytest.raises(InputError, match=r'^own: found None, expected own experts at every level'):
    sharing.ple([pair(8)], [None], HEADS)
  with pytest.raises(InputError, match=r'^gates: found .*, expected a function number of experts -> module'):
    sharing.ple(pair(8), pair(8), HEADS, gates=nn.Dense(4))
  for k in (0, 5, 1.5):
    with pytest.raises(InputError, match=rf'^k: found {k}, expected a whole number from 1 to .* experts, 4'):
      sharing.dselect_k(pair(8), HEADS, k=k)
  for gamma in (0, -1.0, 'wide', float('nan')):
    with pytest.raises(InputError, match=rf'^gamma: found {gamma!r}, expected a number > 0'):
      sharing.dselect_k(pair(8), HEADS, gamma=gamma)
  with pytest.raises(InputError, match=r'^entropy: found -1, expected a number >= 0'):
    sharing.dselect_k(pair(8), HEADS, entropy=-1, gates='static')
  with pytest.raises(InputError, match=r"^entropy: found 0.1 with gates that read what stems make, expected gates='st"):
    sharing.dselect_k(pair(8), HEADS, entropy=0.1, stems={t: nn.Dense(5) for t in HEADS})
  model = sharing.dselect_k(pair(8), HEADS, entropy=0.1, gates=mtl.trunks.MLP((6,), batch_norm=True))
  params, _ = model.init(KEY, dict.fromkeys(HEADS, X))
  with pytest.raises(InputError, match=r"^dselect_k: gates\['a'\] has state .*mean.*, expected none with an entropy"):
    model.penalties[0].value(params, {}, inputs=dict.fromkeys(HEADS, X))
  with pytest.raises(InputError, match=r"^gates: found 'fixed', expected None, 'static'"):
    sharing.dselect_k(pair(8), HEADS, gates='fixed')


def test_what_does_not_fit_is_named_while_initialising():
  traced_init = lambda model, inputs=BOTH: jax.eval_shape(model.init, KEY, inputs)
  mixed = sharing.mmoe([pair(8), pair(7)], HEADS)
  with pytest.raises(
    InputError, match=r'experts\[1\]: found .*\[4, 7\], expected the shapes of experts\[0\], .*\[4, 8\]'
  ):
    traced_init(mixed)
  own = sharing.cgc(pair(8), {'a': pair(8), 'b': pair(7)}, HEADS)
  with pytest.raises(
    InputError, match=r"shared: found .*\[4, 8\], expected the shapes of own experts of 'b', .*\[4, 7\]"
  ):
    traced_init(own)
  with pytest.raises(InputError, match=r"gates\['a'\]: found outputs float32\[4, 3\], expected logits f\[4, 4\]"):
    traced_init(sharing.mmoe(pair(8), HEADS, gates=pair(3)))
  with pytest.raises(
    InputError, match=r'experts: found outputs float32\[8\], expected floating ones that lead with B=4'
  ):
    traced_init(sharing.mmoe((lambda key, x: {}, lambda params, x: jnp.ones(8)), HEADS))
  with pytest.raises(InputError, match=r"heads: found \['a', 'b'\], .* no head for \['c'\]"):
    traced_init(sharing.mmoe(pair(8), HEADS), {'a': X, 'c': X})
  with pytest.raises(InputError, match=r'experts cannot take float32\[4, 5\]: '):
    traced_init(sharing.mmoe(pair(None), HEADS))
  model = sharing.mmoe(pair(8), HEADS)
  with pytest.raises(InputError, match=r"head of task 'a': inputs is None"):
    model.head({}, {}, jnp.ones((4, 4, 8)), task='a', train=False, key=None)
