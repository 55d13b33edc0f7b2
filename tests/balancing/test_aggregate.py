"""What holds for every method through `aggregate`: pytrees, dtypes, one task, no gradient through the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balancing_asserts import CHEAP, aggregate
from balancing_cases import CASES

from mtljax import balancing as b

FEW = ('mgda', 'nash_mtl', 'krum', 'go4align', 'ldc_mtl', 'trimmed_mean')  # the others with -m full
FLAT = np.float32(np.random.default_rng(0).normal(size=(3, 12)))


def tree(rows):
  """[..., 12] as a pytree of three leaves."""
  return {'w': rows[..., :6].reshape(*rows.shape[:-1], 2, 3), 'b': (rows[..., 6:11], rows[..., 11])}


@pytest.mark.parametrize('balancer', [b.aligned_mtl(), b.graddrop(), b.db_mtl(), b.trimmed_mean(), b.excess_mtl()])
def test_a_pytree_is_its_concatenation(balancer):
  uniform = np.float32(np.random.default_rng(1).uniform(size=12))
  want = aggregate(balancer, FLAT, uniform=uniform).direction
  found = aggregate(balancer, tree(FLAT), uniform=tree(uniform)).direction
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, tree(np.asarray(want)))


@pytest.mark.parametrize('name', [n if n in FEW else pytest.param(n, marks=pytest.mark.full) for n in CASES])
def test_one_task(name):
  """A single task keeps its direction."""
  J = jnp.asarray(FLAT[:1])
  direction = aggregate(CASES[name].make((0,)), J, jnp.array([1.3]), uniform=jnp.full(12, 0.5)).direction
  share = direction @ J[0] / (J[0] @ J[0])
  assert share > 0
  np.testing.assert_allclose(direction, share * J[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('balancer', [b.famo(), b.cagrad(), b.gradnorm()])
def test_no_gradient_through_the_weights(balancer):
  probe = jnp.arange(12.0)
  losses = jnp.array([1.0, 2.0, 0.5])

  def value(J, losses):
    return b.aggregate(balancer, J, losses).direction @ probe

  gradient = jax.jit(jax.grad(value, argnums=(0, 1)), compiler_options=CHEAP)
  by_rows, by_losses = gradient(jnp.asarray(FLAT), losses)
  weights = aggregate(balancer, FLAT, losses).weights
  np.testing.assert_allclose(by_rows, weights[:, None] * probe[None, :], rtol=1e-5, atol=1e-6)
  assert not np.any(by_losses)


def test_no_gradient_through_a_direction():
  gradient = jax.grad(lambda J: jnp.sum(b.aggregate(b.graddrop(leak=0.5), J).direction))(jnp.asarray(FLAT))
  assert not np.any(gradient)


@pytest.mark.parametrize('balancer', [b.mgda(), b.moco()])
def test_half_precision_rows(balancer):
  result = b.aggregate(balancer, jnp.asarray(FLAT, jnp.bfloat16))
  assert result.direction.dtype == jnp.bfloat16 and np.all(np.isfinite(np.asarray(result.direction, np.float32)))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result.state))


def test_defaults():
  """Losses are ones, all tasks present, the key that of 0; what a method does not need is ignored."""
  want = b.aggregate(b.rlw(), FLAT, jnp.ones(3), present=jnp.ones(3, bool), key=jax.random.key(0))
  found = b.aggregate(b.rlw(), FLAT, anything=1, order=None)
  np.testing.assert_array_equal(found.weights, want.weights)
  assert b.aggregate(b.graddrop(), FLAT).weights is None


@pytest.mark.parametrize('balancer', [b.rlw(), b.pcgrad(), b.gradvac(), b.graddrop()])
def test_draws_come_from_the_key(balancer):
  found = [np.asarray(b.aggregate(balancer, FLAT, key=jax.random.key(k)).direction) for k in (0, 0, *range(1, 6))]
  np.testing.assert_array_equal(found[0], found[1])
  assert any(np.abs(other - found[0]).max() > 1e-4 for other in found[2:])


def test_nothing_to_observe_when_all_are_absent():
  first = b.aggregate(b.famo(), FLAT, losses_after=jnp.full(3, 0.5))
  after = b.aggregate(b.famo(), FLAT, state=first.state, present=jnp.zeros(3, bool), losses_after=jnp.full(3, jnp.nan))
  jax.tree.map(np.testing.assert_array_equal, after.state, first.state)


@pytest.mark.parametrize('balancer', [b.cagrad(c=1.5), b.mgda(), b.dualproj(regularization=1e-9)])
def test_no_task_is_harmed_where_the_rows_are_dependent(balancer, x64):
  rng = np.random.default_rng(3)
  rows = rng.normal(size=(24, 5, 12))
  rows[:8, :, 3:] = 0  # more tasks than dimensions
  rows[8:16, 1] = -0.3 * rows[8:16, 0]
  rows[16:, 1] = 0
  directions = jax.jit(jax.vmap(lambda J: b.aggregate(balancer, J).direction), compiler_options=CHEAP)(rows)
  sizes = np.linalg.norm(rows, axis=(1, 2))
  gains = np.einsum('ntp,np->nt', rows, directions) / sizes[:, None] ** 2
  assert gains.min() > -1e-7


@pytest.mark.parametrize('name', ['famo', 'imtl_g', 'graddrop'])
def test_eager_is_jit(name):
  balancer = CASES[name].make((0, 1, 2))
  eager, compiled = (f(balancer, FLAT, jnp.array([1.0, 2.0, 0.5])) for f in (b.aggregate, aggregate))
  np.testing.assert_allclose(eager.direction, compiled.direction, rtol=1e-4, atol=1e-5)
