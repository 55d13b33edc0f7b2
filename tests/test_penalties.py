"""R(f) against their formulas, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl

PARAMS = {'shared': {'k': jnp.array([[1.0, -2.0]]), 'b': jnp.array([3.0])}, 'tasks': {'a': {'k': jnp.array([-4.0])}}}


def test_values():
  assert mtl.penalties.l2(1.0).value(PARAMS) == 0.5 * (1 + 4 + 9 + 16)
  assert mtl.penalties.l1(1.0).value(PARAMS) == 10
  assert mtl.penalties.l1(1.0, where='/k').value(PARAMS) == 7
  start = jax.tree.map(lambda x: x - 1, PARAMS)
  assert mtl.penalties.l2_sp(1.0, start, where='shared').value(PARAMS) == 1.5


def test_gradient_of_l2_is_weight_decay():
  grads = jax.grad(mtl.penalties.l2(1.0, where='shared').value)(PARAMS)
  np.testing.assert_array_equal(grads['shared']['k'], PARAMS['shared']['k'])
  assert grads['tasks']['a']['k'] == 0


def test_bad_input_is_named():
  with pytest.raises(mtl.InputError, match=r"where='bias' matches no parameter"):
    mtl.penalties.l2(1.0, where='bias').value(PARAMS)
  with pytest.raises(mtl.InputError, match="no parameter 'tasks/a/k'"):
    mtl.penalties.l2_sp(1.0, {'shared': PARAMS['shared']}).value(PARAMS)
  with pytest.raises(mtl.InputError, match=r'shape \(2,\), expected \(1,\)'):
    mtl.penalties.l2_sp(1.0, {**PARAMS, 'tasks': {'a': {'k': jnp.zeros(2)}}}).value(PARAMS)


def test_l2_sp_outlives_the_donation_of_its_start():
  import problems

  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  penalty = mtl.penalties.l2_sp(0.1, state.params, where='shared')
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(penalty,)))
  state, _ = step(state, problems.batch())
  state, info = step(state, problems.batch(size=4))  # another shape: a new trace
  assert info.penalty > 0
