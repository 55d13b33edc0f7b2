"""A task that a multi-input batch leaves out is one whose mask leaves all out: same state, same report, no work."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import mtljax as mtl
from mtljax.base import InputError

METHODS = {
  'losses': mtl.balancing.famo,
  'gramian': mtl.balancing.mgda,
  'jacobian': mtl.balancing.pcgrad,
  'matrix': mtl.balancing.graddrop,
  'plain': mtl.balancing.equal,
  'oracle': mtl.balancing.auto_lambda,
}


def masked(seed, value):
  """With a mask that takes or leaves all of 'size'."""
  whole = problems.multi(seed)
  return whole | {'size': {**whole['size'], 'mask': jnp.full(problems.B, value)}}


def pair(seed):
  """(without 'size', with a mask that leaves all of it out)."""
  out = masked(seed, False)
  return {'digit': out['digit']}, out


@pytest.mark.parametrize('name', METHODS)
def test_the_step_is_that_of_an_absent_task(name):
  net, data = problems.model(norm=True, dropout=0.2), masked(0, True)
  net, tasks, optimizer, balancer, state = problems.setup(METHODS[name](), net=net, data=data)
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))
  state, _ = step(state, data)
  without, out = pair(1)
  after, info = step(state, without)
  want, expected = step(state, out)
  problems.leaves_close(after, want, rtol=1e-6, atol=1e-7)
  problems.leaves_close(info, expected, rtol=1e-6, atol=1e-7)
  assert info.present.tolist() == [True, False]
  again, _ = step(after, data)
  own = lambda s: jax.flatten_util.ravel_pytree(s.params['tasks']['size'])[0]
  assert not np.allclose(own(again), own(after))


def test_the_trunk_runs_for_the_tasks_that_are_there():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal(), data=problems.multi())
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))
  flops = [step.lower(state, batch).cost_analysis()['flops'] for batch in pair(0)]
  assert flops[0] < 0.75 * flops[1]


def test_a_penalty_on_outputs_reads_the_tasks_that_are_there():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda(), data=problems.multi())
  without, out = pair(0)
  size = mtl.Penalty(0.1, lambda params, outputs: jnp.sum(outputs['size'] ** 2), task='size', on='outputs')
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(size,)))
  problems.leaves_close(step(state, without), step(state, out), rtol=1e-6, atol=1e-7)
  for_all = size._replace(task=None)
  step = mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(for_all,))
  with pytest.raises(InputError, match=r"batch: found the tasks \['digit'\], expected 'size' too: a penalty reads"):
    step(state, without)


def test_a_batch_of_no_task_and_of_unknown_ones_is_named():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal(), data=problems.multi())
  step = mtl.make_train_step(net, tasks, optimizer, balancer)
  with pytest.raises(InputError, match="unknown .'sise'."):
    step(state, {'sise': problems.multi()['size']})
  with pytest.raises(InputError, match='found no task'):
    step(state, {'outer': problems.multi()})
