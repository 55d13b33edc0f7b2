"""AdaShare: policies and penalties by hand, schedules, where state lies, a toy whose policies are found."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharing_cases import forward, pair, perturbed

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing import adashare, policies
from mtljax.sharing.adashare import sharing_term, sparsity_term
from mtljax.sharing.stages import chained

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
BOTH = {'a': X, 'b': X}
NAMES = ('a', 'b')
SCALE = (lambda key, x: {'c': jnp.ones(())}, lambda params, x: params['c'] * x)
SCALES = {'a': SCALE, 'b': SCALE}
BLOCKS = ('one', 'two', 'three')


def scales(**options):
  """A net of numbers: its blocks multiply by 2, 3 and 5, so an output tells which were run."""
  model = adashare(dict.fromkeys(BLOCKS, SCALE), SCALES, **options)
  params, state = model.init(KEY, BOTH)
  params['shared'] = {stage: {'c': jnp.asarray(c)} for stage, c in zip(BLOCKS, (2.0, 3.0, 5.0))}
  return model, params, state


def set_policy(params, task, *probabilities):
  p = jnp.array(probabilities)
  params['tasks'][task]['policy'] = dict(zip(BLOCKS, jnp.log(p / (1 - p))))


def run(model, params, state, **mode):
  outputs, new = forward(model, params, state, BOTH, **mode)
  return {task: float((y / X).mean()) for task, y in outputs.items()}, new


# Paths.


def test_evaluation_runs_the_blocks_that_are_likelier_run():
  model, params, state = scales()
  set_policy(params, 'a', 0.9, 0.2, 0.6)
  set_policy(params, 'b', 0.1, 0.51, 0.49)
  assert run(model, params, state)[0] == pytest.approx({'a': 2 * 5, 'b': 3})
  found = policies(params)
  assert found['a'] == pytest.approx({'one': 0.9, 'two': 0.2, 'three': 0.6}, rel=1e-5)


def test_at_the_start_all_tasks_run_all_blocks():
  model, params, state = scales()
  assert run(model, params, state)[0] == pytest.approx({'a': 30, 'b': 30})
  assert policies(params)['b'] == {'one': 0.5, 'two': 0.5, 'three': 0.5}
  assert list(policies(scales(start=0.9)[1])['b'].values()) == pytest.approx([0.9] * 3)


def relaxed(u, task, tau):
  """v of the three blocks under the noise of the keys that `forward` hands to a head."""
  key = jax.random.fold_in(KEY, len(task))
  noise = [float(jax.random.logistic(mtl.arrays.name_key(key, f'policy/{stage}'), ())) for stage in BLOCKS]
  return 1 / (1 + np.exp(-(np.array(u) + noise) / tau))


def test_training_mixes_by_the_gumbel_softmax_of_the_policy():
  model, params, state = scales(temperature=0.6)
  u = [0.5, -1.0, 0.2]
  params['tasks']['a']['policy'] = dict(zip(BLOCKS, map(jnp.asarray, u)))
  v = relaxed(u, 'a', 0.6)
  expected = np.prod(v * [2, 3, 5] + (1 - v))
  np.testing.assert_allclose(run(model, params, state, train=True, key=KEY)[0]['a'], expected, rtol=1e-5)


def test_logistic_noise_is_the_difference_of_two_gumbel_draws():
  u = jnp.array([[0.3, -0.8]])
  key = jax.random.key(0)
  logits = jnp.stack([u, jnp.zeros((1, 2))], axis=1)
  pair_of = jax.nn.softmax((logits + jax.random.gumbel(key, (4000, 2, 2))) / 0.7, axis=1)[:, 0]
  one = jax.nn.sigmoid((u + jax.random.logistic(key, (4000, 2))) / 0.7)
  np.testing.assert_allclose(np.quantile(pair_of, (0.2, 0.5, 0.8), 0), np.quantile(one, (0.2, 0.5, 0.8), 0), atol=0.04)


def test_a_hard_policy_runs_or_skips_with_the_derivative_of_the_soft():
  model, params, state = scales(temperature=0.6, hard=True)
  u = [0.5, -1.0, 0.2]
  params['tasks']['a']['policy'] = dict(zip(BLOCKS, map(jnp.asarray, u)))
  v = relaxed(u, 'a', 0.6)
  run_or_skip = v >= 0.5

  def mean(policy):
    tasks = {**params['tasks'], 'a': {**params['tasks']['a'], 'policy': policy}}
    outputs, _ = forward(model, {**params, 'tasks': tasks}, state, BOTH, train=True, key=KEY)
    return (outputs['a'] / X).mean()

  value, grads = jax.value_and_grad(mean)(params['tasks']['a']['policy'])
  gains = np.where(run_or_skip, [2, 3, 5], 1)
  np.testing.assert_allclose(value, np.prod(gains), rtol=1e-6)
  for stage, slope, gain, factor in zip(BLOCKS, v * (1 - v) / 0.6, gains, (2, 3, 5)):
    np.testing.assert_allclose(grads[stage], np.prod(gains) / gain * (factor - 1) * slope, rtol=1e-4)


# Schedules.


def test_warm_up_runs_everything_and_the_curriculum_frees_blocks_from_the_last():
  model, params, state = scales(warmup=1, curriculum=2)
  set_policy(params, 'a', 0.1, 0.1, 0.1)
  seen = []
  for _ in range(6):
    seen.append(round(run(model, params, state)[0]['a']))  # evaluation follows
    _, state = run(model, params, state, train=True, key=KEY)
  assert seen == [30, 6, 6, 2, 2, 1]
  assert {int(n) for n in jax.tree.leaves(state)} == {6}


def test_the_sparsity_of_a_block_starts_with_its_policy():
  model, params, _ = scales(warmup=1, curriculum=2, sparsity=0.5, sharing=0.0)
  for task in NAMES:
    set_policy(params, task, 0.5, 0.75, 0.875)
  three, two, one = (2 * np.log(x) / 3 for x in (8, 4, 2))  # -log(1 - alpha) of two tasks, a third of it per block

  def total(step):
    return float(sum(p.weight(jnp.asarray(step)) * p.value(params) for p in model.penalties))

  expected = [0, three, three, three + two, three + two, three + two + one, three + two + one]
  np.testing.assert_allclose([total(n) for n in range(7)], 0.5 * np.array(expected), rtol=1e-5)


def test_without_a_curriculum_sparsity_is_one_penalty_and_schedules_are_followed():
  model, params, _ = scales(warmup=2, sparsity=lambda n: 0.1 * n, sharing=0.3)
  sparse, share = model.penalties
  assert [float(sparse.weight(jnp.asarray(n))) for n in (1, 2, 5)] == pytest.approx([0.0, 0.2, 0.5])
  np.testing.assert_allclose(sparse.value(params), 2 * np.log(2), rtol=1e-6)
  assert share.weight == 0.3 and float(share.value(params)) == 0
  assert scales(sparsity=0.0, sharing=0.0)[0].penalties == ()


# Penalties.


def test_penalties_by_hand():
  logits = lambda *p: jnp.log(jnp.array(p) / (1 - jnp.array(p)))
  np.testing.assert_allclose(sparsity_term(logits(0.5, 0.75)), np.log(2) + np.log(4), rtol=1e-5)
  three = [logits(0.9, 0.5), logits(0.5, 0.5), logits(0.4, 0.1)]
  expected = (0.4 + 0.1 + 0.5) + 0.5 * (0.4 + 0.4)  # weights 1 and 1/2 of |differences| of the three pairs
  np.testing.assert_allclose(sharing_term(three), expected, rtol=1e-5)


@pytest.mark.parametrize('stems', [None, {'a': SCALE, 'b': SCALE}])
def test_penalties_find_the_policies(stems):
  model = adashare(dict.fromkeys(BLOCKS, SCALE), SCALES, sparsity=1.0, sharing=1.0, stems=stems)
  params, _ = model.init(KEY, BOTH)
  own = params['tasks']['a'] if stems is None else params['tasks']['a']['head']
  own['policy'] = {'one': jnp.log(3.0), 'two': jnp.zeros(()), 'three': -jnp.log(3.0)}  # 3/4, 1/2, 1/4
  sparse, share = (float(penalty.value(params)) for penalty in model.penalties)
  assert sparse == pytest.approx((np.log(4) + np.log(2) + np.log(4 / 3) + 3 * np.log(2)) / 3, rel=1e-5)
  assert share == pytest.approx(0.25 + 0.25 / 3, rel=1e-5)
  assert policies(params)['a'] == pytest.approx({'one': 0.75, 'two': 0.5, 'three': 0.25})


# Where parameters and state lie.


def test_a_net_that_skips_nothing_is_hard_sharing():
  net, heads = trunks.MLP((6, 6, 6)), {'a': nn.Dense(2), 'b': pair(3)}
  model = adashare(net, heads, warmup=9)
  params, state = model.init(KEY, BOTH)
  params = perturbed(params)
  plain = {'shared': params['shared'], 'tasks': {task: own['head'] for task, own in params['tasks'].items()}}
  empty = {'shared': {f'layer_{i}': {} for i in range(3)}, 'tasks': {'a': {}, 'b': {}}}
  expected, _ = forward(sharing.hard(chained(net), heads), plain, empty, BOTH)
  found, _ = forward(model, params, state, BOTH, train=True, key=KEY)
  for task in heads:
    np.testing.assert_allclose(found[task], expected[task], rtol=1e-6)


def test_paths_part_at_the_first_block_and_state_from_there_is_the_tasks():
  model = adashare(trunks.MLP((6, 6, 6), batch_norm=True), {'a': nn.Dense(2), 'b': nn.Dense(2)}, skippable=(2,))
  params, state = jax.eval_shape(model.init, KEY, BOTH)
  assert set(params['shared']) == {'layer_0', 'layer_1', 'layer_2'} and set(state['shared']) == {'layer_0', 'layer_1'}
  assert {stage: u.shape for stage, u in params['tasks']['a']['policy'].items()} == {'layer_2': ()}
  assert set(state['tasks']['b']['stages']) == {'layer_2'}


def test_only_its_own_loss_reaches_a_policy():
  model, params, state = scales()
  grads = jax.grad(lambda p: forward(model, p, state, BOTH, train=True, key=KEY)[0]['a'].sum())(params)
  assert all(g != 0 for g in grads['tasks']['a']['policy'].values())
  assert all(g == 0 for g in grads['tasks']['b']['policy'].values())
  assert all(np.any(g) for g in jax.tree.leaves(grads['shared']))


def test_bf16_stays_bf16_on_the_path():
  seen = []
  spy = sharing.Module(
    lambda key, x: ({}, {}), lambda params, state, x, *, train, key: (seen.append(x.dtype) or x, state)
  )
  net = trunks.MLP((3, 3), dtype=jnp.bfloat16)  # the first block's input is float32
  model = adashare(net, {'a': spy, 'b': spy})
  params, state = model.init(KEY, BOTH)
  seen.clear()
  forward(model, params, state, BOTH, train=True, key=KEY)
  assert set(seen) == {np.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}


def test_each_task_comes_to_run_what_it_needs():
  """One task is linear in the inputs, the other in their absolute values: one block, needed by one of them."""
  absolute = (lambda key, x: {'c': jnp.ones(())}, lambda params, x: params['c'] * jnp.abs(x))
  x = np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32)
  batch = {'inputs': x, 'labels': {'a': np.abs(x).sum(1, keepdims=True), 'b': x.sum(1, keepdims=True)}}
  model = adashare({'absolute': absolute}, {'a': nn.Dense(1), 'b': nn.Dense(1)})
  tasks = tuple(mtl.Task(t, mtl.losses.squared_error) for t in NAMES)
  optimizer = mtl.task_optimizer(optax.adam(3e-2), {t: optax.adam(3e-2) for t in NAMES})
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.equal(), batch, KEY)
  step = mtl.make_train_step(model, tasks, optimizer, mtl.balancing.equal())
  state = jax.jit(lambda s: jax.lax.scan(lambda s, _: (step(s, batch)[0], None), s, length=300)[0])(state)
  found = policies(state.params)
  assert found['a']['absolute'] > 0.8 and found['b']['absolute'] < 0.2
  assert {int(own['clock'][task]) for task, own in state.model_state['tasks'].items()} == {300}


# Bad input.


@pytest.mark.parametrize(
  'options, message',
  [
    ({'skippable': ('layer_5',)}, "skippable: found 'layer_5', which the trunk does not have"),
    ({'start': 1.0}, 'start: found 1.0, expected a probability between 0 and 1'),
    ({'temperature': -1}, 'temperature: found -1, expected a number > 0, an optax schedule or None'),
    ({'warmup': 0.5}, 'warmup: found 0.5, expected a whole number of steps >= 0'),
    ({'curriculum': -3}, 'curriculum: found -3, expected a whole number of steps >= 0'),
    ({'hard': 1}, 'hard: found 1, expected True or False'),
    ({'sparsity': -0.1}, 'sparsity: found -0.1, expected a number >= 0 or a schedule'),
    ({'sharing': 'much'}, "sharing: found 'much', expected a number >= 0 or a schedule"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(InputError, match=message):
    adashare(trunks.MLP((4, 4)), {'a': nn.Dense(2)}, **options)


def test_blocks_that_change_the_shape_are_refused():
  with pytest.raises(
    InputError, match=r"skippable: found '0', which makes float32\[4, 5\] of float32\[4, 3\], expected"
  ):
    jax.eval_shape(adashare([pair(5), pair(5)], {'a': pair(2)}, skippable=(0,)).init, KEY, {'a': X})
  with pytest.raises(
    InputError, match=r"stages: none of \['0', '1'\] keeps the shape of its inputs, expected one or more"
  ):
    jax.eval_shape(adashare([pair(5), pair(6)], {'a': pair(2)}).init, KEY, {'a': X})


def test_parameters_are_no_features_even_where_they_have_as_many_rows_as_the_batch():
  model = adashare(trunks.MLP((8, 8)), {'a': pair(2), 'b': pair(2)})
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in NAMES)
  batch = {'inputs': jnp.ones((8, 8)), 'labels': dict.fromkeys(NAMES, jnp.ones((8, 2)))}
  optimizer, balancer = optax.sgd(0.1), mtl.balancing.mgda()
  state = jax.eval_shape(lambda key: mtl.init_state(model, tasks, optimizer, balancer, batch, key), KEY)
  step = mtl.make_train_step(model, tasks, optimizer, balancer, at='features')
  with pytest.raises(InputError, match=r"shares what is no feature; use at='params'"):
    jax.eval_shape(step, state, batch)


def test_policies_of_other_parameters_are_refused():
  with pytest.raises(InputError, match=r"found \['kernel'\] in a task, expected 'policy' as in those of `adashare`"):
    policies({'shared': {}, 'tasks': {'a': {'kernel': X}}})
