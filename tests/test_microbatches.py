"""A batch in parts, and passes that are made again: the same step, in less memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl

SPLITS = {'parts': {'accumulate': 4}, 'remat': {'remat': True}, 'parts of one': {'accumulate': problems.B}}


def steps(balancer, batches, *, net=None, at='params', mode=None, count=3, penalties=(), **split):
  """State and last info after some steps."""
  net, tasks, optimizer, balancer, state = problems.setup(balancer, net=net, data=batches[0])
  step = mtl.make_train_step(net, tasks, optimizer, balancer, at=at, penalties=penalties, **split)
  step = mtl.compile_step(step, mode) if mode else jax.jit(step)
  for index in range(count):
    state, info = step(state, batches[index % len(batches)])
  return state, info


def check_same(found, expected, **tolerance):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
      continue
    np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **(tolerance or {'atol': 2e-5}))


@pytest.mark.parametrize(('name', 'kind', 'split'), [*zip(problems.BALANCERS, ('single', 'items') * 4, [*SPLITS] * 3)])
def test_same_steps(name, kind, split):
  """Masks are uneven over the parts, and one task is absent in one of three batches."""
  make, at = problems.BALANCERS[name]
  batches = problems.masked_batches(kind)
  found = steps(make(), batches, at=at, **SPLITS[split])
  check_same(found, steps(make(), batches, at=at))


@pytest.mark.parametrize('name', ['famo', 'mgda', 'graddrop'])
def test_same_steps_multi_input(name):
  make, at = problems.BALANCERS[name]
  batches = problems.masked_batches('multi')
  check_same(steps(make(), batches, at=at, accumulate=2), steps(make(), batches, at=at))


def test_oracle_level():
  batches = [problems.batch(size=24)]  # three parts of it are what the method wants
  check_same(steps(mtl.balancing.modo(), batches, accumulate=2), steps(mtl.balancing.modo(), batches))


@pytest.mark.parametrize('mode', ['shard_map', 'sharded'])
def test_on_several_devices(mode):
  batches = problems.masked_batches('single')
  found = steps(mtl.balancing.mgda(), batches, mode=mode, accumulate=2)
  check_same(found, steps(mtl.balancing.mgda(), batches))


def test_penalty_on_outputs_sees_the_whole_batch():
  """Not a sum over examples: it would change if it were taken part by part."""
  penalty = mtl.Penalty(0.3, lambda params, outputs: jnp.var(outputs['size']), on='outputs')
  batches = [problems.batch()]
  check_same(
    steps(mtl.balancing.mgda(), batches, penalties=(penalty,), accumulate=4),
    steps(mtl.balancing.mgda(), batches, penalties=(penalty,)),
  )


def test_batch_norm_sees_parts_and_its_statistics_move_through_them():
  batch = problems.batch()
  whole, _ = steps(mtl.balancing.equal(), [batch], net=problems.model(norm=True), count=1)
  parts, _ = steps(mtl.balancing.equal(), [batch], net=problems.model(norm=True), count=1, accumulate=2)
  again, _ = steps(mtl.balancing.equal(), [batch], net=problems.model(norm=True), count=1, remat=True)
  check_same(again, whole)
  _, _, _, _, start = problems.setup(mtl.balancing.equal(), net=problems.model(norm=True), data=batch)
  x = np.asarray(batch['inputs']) @ np.asarray(start.params['shared']['Dense_0']['kernel'])
  mean = start.model_state['shared']['batch_stats']['BatchNorm_0']['mean']
  for part in (x[::2], x[1::2]):
    mean = 0.99 * mean + 0.01 * part.mean(axis=0)
  found = parts.model_state['shared']['batch_stats']['BatchNorm_0']['mean']
  np.testing.assert_allclose(found, mean, atol=1e-6)


def test_dropout_is_the_same_in_both_passes():
  """What is made again is what was there: the step of a function of its key is the gradient of its loss."""
  net, batch = problems.model(dropout=0.5), problems.batch()
  first = steps(mtl.balancing.mgda(), [batch], net=net, remat=True)
  check_same(first, steps(mtl.balancing.mgda(), [batch], net=net))


def test_counters_advance_once_a_step():
  model = mtl.sharing.learning_to_branch(mtl.trunks.MLP((8, 8)), {'digit': nn.Dense(3), 'size': nn.Dense(2)})
  state, _ = steps(mtl.balancing.equal(), [problems.batch()], net=model, accumulate=4)
  counters = [x for x in jax.tree.leaves(state.model_state) if jnp.issubdtype(x.dtype, jnp.integer)]
  assert counters and {int(x) for x in counters} == {3}


@pytest.mark.parametrize(('at', 'balancer'), [('params', 'equal'), ('params', 'mgda'), ('features', 'mgda')])
def test_memory_falls(at, balancer):
  tasks = tuple(mtl.Task(f't{i}', loss=mtl.losses.squared_error) for i in range(2))
  model = mtl.sharing.hard(mtl.trunks.MLP((64,) * 12), {task.name: nn.Dense(1) for task in tasks})
  x = jnp.ones((2048, 16))
  batch = {'inputs': x, 'labels': {task.name: x[:, :1] for task in tasks}}
  optimizer = mtl.task_optimizer(shared=optax.sgd(1e-2), tasks={task.name: optax.sgd(1e-2) for task in tasks})
  balancer = mtl.balancing.parse(balancer)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  sizes = []
  for accumulate in (1, 8):
    step = mtl.make_train_step(model, tasks, optimizer, balancer, at=at, accumulate=accumulate)
    compiled = jax.jit(step).lower(state, batch).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ({'accumulate': 0}, 'accumulate: found 0, expected a positive integer'),
    ({'accumulate': 2.0}, 'accumulate: found 2.0, expected a positive integer'),
    ({'accumulate': 3}, 'accumulate: found 3 with a batch of 8, expected a number that divides it'),
    ({'remat': 1}, 'remat: found 1, expected a bool'),
    ({'accumulate': 2, 'objectives': 'examples'}, "accumulate: found 2 with objectives='examples', expected 1"),
  ],
)
def test_bad_input(split, message):
  with pytest.raises(mtl.InputError, match=message):
    steps(mtl.balancing.mgda(), [problems.batch()], **split)


def test_shared_parameters_are_no_features():
  model = mtl.sharing.lora(mtl.trunks.MLP((8,)), {'digit': nn.Dense(3), 'size': nn.Dense(2)})
  with pytest.raises(mtl.InputError, match='the trunk returns .* expected a leading batch axis of 8'):
    steps(mtl.balancing.equal(), [problems.batch()], net=model, accumulate=2)
