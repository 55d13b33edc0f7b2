"""The Jacobian as a pytree, and the small exact problems against scipy, over sizes, scales and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solver_oracles
from balancing_asserts import CHEAP
from solver_oracles import DEPENDENT, REGULARIZATION, jacobians

from mtljax import balancing, linalg
from mtljax.base import InputError

DTYPES = ('float32', 'float64')
DEFAULT = ((2, 'float32'), (40, 'float32'), (64, 'float64'))  # compiling takes the time: the others with -m full
GRID = [
  pytest.param(T, dtype, marks=() if (T, dtype) in DEFAULT else pytest.mark.full)
  for T in (2, 8, 40, 64)
  for dtype in DTYPES
]
TOLERANCE = {'float32': 1e-5, 'float64': 1e-9}  # the contract asks for 1e-4 and 1e-6
both = pytest.mark.parametrize('dtype', DTYPES)
grid = pytest.mark.parametrize(('T', 'dtype'), GRID)


@pytest.fixture(autouse=True)
def precision(request):
  """Double precision for the tests that ask for it."""
  dtype = getattr(request.node, 'callspec', None) and request.node.callspec.params.get('dtype')
  with jax.enable_x64(dtype == 'float64'):
    yield


def solve(function, T, dtype):
  """A solver on every Jacobian: f[7, ...] in double precision."""
  run = jax.jit(lambda J: function(linalg.gramian(J), jnp.ones(T, bool)), compiler_options=CHEAP)
  return np.stack([np.asarray(run(J), np.float64) for J in jnp.asarray(jacobians(T), dtype)])


def directions(weights, T):
  return np.einsum('nt,ntp->np', weights, jacobians(T))


def sizes_of(T):
  return np.linalg.norm(jacobians(T), axis=(1, 2))


@pytest.mark.parametrize('size', [2 * linalg.PIECE - 1, 2 * linalg.PIECE, 3 * linalg.PIECE + 5])
def test_gramian_of_long_rows(size):
  """In pieces, on a CPU; also of several stacks of rows at once, and of rows in bfloat16."""
  rows = np.random.default_rng(size).normal(size=(2, 3, size)).astype(np.float32)
  exact = np.einsum('bsi,bti->bst', *[rows.astype(np.float64)] * 2)
  found = jax.jit(jax.vmap(linalg.gramian))({'w': jnp.asarray(rows).reshape(2, 3, 1, size)})
  np.testing.assert_allclose(found, exact, atol=1e-6 * size)
  coarse = linalg.gramian({'w': jnp.asarray(rows[0], jnp.bfloat16)})
  assert coarse.dtype == jnp.float32
  np.testing.assert_allclose(coarse, exact[0], atol=1e-2 * size)


@grid
def test_min_norm_is_that_of_scipy(T, dtype):
  weights = solve(linalg.min_norm, T, dtype)
  assert np.all(weights >= 0) and np.allclose(weights.sum(1), 1, atol=1e-5)
  for J, d, size in zip(jacobians(T), directions(weights, T), sizes_of(T)):
    assert np.linalg.norm(d - np.float64(solver_oracles.min_norm(J))) <= TOLERANCE[dtype] * size


@grid
def test_cone_weights_are_those_of_scipy(T, dtype):
  def weights(G, present):
    M = G / jnp.trace(G) + REGULARIZATION * jnp.eye(T, dtype=G.dtype)
    return linalg.cone_weights(M, jnp.eye(T, dtype=G.dtype) / T, present)

  for J, w, size in zip(jacobians(T), solve(weights, T, dtype), sizes_of(T)):
    want = np.float64(solver_oracles.cone_weights(J, np.eye(T) / T))
    assert np.linalg.norm((w - want) @ J) <= TOLERANCE[dtype] * size


def test_cone_weights_of_one_bound():
  """Rows (1, 0) and (-2, 1): the mean row is projected onto the face where the second row is not harmed."""
  G = jnp.array([[1.0, -2.0], [-2.0, 5.0]]) + 1e-6 * jnp.eye(2)
  w = linalg.cone_weights(G, jnp.array([1.0, 0.25]), jnp.ones(2, bool))
  np.testing.assert_allclose(w, [1.0, 0.4], rtol=1e-4)


@grid
def test_conflict_averse_closes_the_duality_gap(T, dtype):
  """min_t <g_t, d> on the ball is bounded by the dual value of any point of the simplex; at the optimum they meet."""
  c = 0.4
  extra = solve(lambda G, present: linalg.conflict_averse(G, jnp.asarray(c, dtype), present), T, dtype)
  assert np.all(extra >= 0)
  for J, w in zip(jacobians(T), extra):
    gap, outside = solver_oracles.conflict_averse_gap(J, w, c)
    assert gap <= TOLERANCE[dtype] and outside <= TOLERANCE[dtype]


@grid
@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0])
def test_power_fair_solves_its_equation(T, dtype, alpha):
  weights = solve(lambda G, present: linalg.power_fair(G, jnp.asarray(alpha, dtype), present), T, dtype)
  weights, J = np.delete(weights, DEPENDENT, 0), np.delete(jacobians(T), DEPENDENT, 0)  # 0 in the hull: no solution
  gains = np.einsum('nt,ntp,nsp->ns', weights, J, J)
  assert np.all(weights > 0)
  # the rounding of the Gramian alone turns a direction by eps times its condition; the equation in units of the whole
  lengths = np.linalg.norm(J, axis=2) * np.linalg.norm(np.einsum('nt,ntp->np', weights, J), axis=1)[:, None]
  assert np.all(np.abs(gains - weights ** (-1 / alpha)) <= TOLERANCE[dtype] * lengths)


@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0])
def test_the_oracle_of_power_fair_solves_its_equation(alpha):
  """It is what benchmarks/solver_accuracy.py measures against."""
  share = np.linspace(0.5, 1.5, 8)
  for J in np.delete(jacobians(8), DEPENDENT, 0):
    w, J = solver_oracles.power_fair(J, alpha, share), solver_oracles.exact(J)
    np.testing.assert_allclose(np.float64(J @ (w @ J)), np.float64((share / w) ** (1 / alpha)), rtol=1e-10)


@pytest.mark.parametrize('T', [2, 8])
def test_closed_forms_are_those_of_numpy(T):
  """Equal projections, equal angles and aligned components, in double precision."""
  methods = {
    'equal_projections': balancing.imtl_g(),
    'equal_angles': balancing.config(),
    'aligned': balancing.aligned_mtl(),
  }
  with jax.enable_x64(True):
    for name, method in methods.items():
      run = jax.jit(lambda J, method=method: balancing.aggregate(method, J).direction, compiler_options=CHEAP)
      for J, size in zip(jacobians(T), sizes_of(T)):
        extra = (np.finfo(np.float64).eps,) if name == 'aligned' else ()
        want = np.float64(getattr(solver_oracles, name)(J, *extra))
        assert np.linalg.norm(np.asarray(run(jnp.asarray(J))) - want) <= TOLERANCE['float64'] * size, name


@both
def test_power_fair_with_shares(dtype):
  J = jnp.asarray(jacobians(2)[0], dtype)
  share = jnp.array([0.5, 2.0], dtype)
  w = linalg.power_fair(linalg.gramian(J), jnp.asarray(2.0, dtype), jnp.ones(2, bool), share)
  np.testing.assert_allclose(linalg.gramian(J) @ w, (share / w) ** 0.5, rtol=1e-4 if dtype == 'float32' else 1e-10)


@both
def test_nonnegative_leaves_what_is_not_allowed(dtype):
  M = jnp.asarray([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype)
  q = jnp.asarray([-3.0, -4.0, -5.0], dtype)
  everything = jnp.ones(3, bool)
  np.testing.assert_allclose(linalg.nonnegative(M, q, everything), [2 / 3, 5 / 3, 0], rtol=1e-6)
  np.testing.assert_allclose(linalg.nonnegative(M, q, everything.at[1].set(False)), [1.5, 0, 0], rtol=1e-6)


def test_gramian_is_summed_over_leaves():
  J = np.float32(np.random.default_rng(0).normal(size=(3, 10)))
  tree = {'w': jnp.asarray(J[:, :6]).reshape(3, 2, 3), 'b': (jnp.asarray(J[:, 6:9]), jnp.asarray(J[:, 9]))}
  np.testing.assert_allclose(linalg.gramian(tree), J @ J.T, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(linalg.row_norms(tree), np.linalg.norm(J, axis=1), rtol=1e-5)
  jaxpr = str(jax.make_jaxpr(linalg.gramian)(tree))
  assert 'concatenate' not in jaxpr and 'HIGHEST' in jaxpr


def test_half_precision_is_accumulated_in_single():
  J = jnp.ones((2, 1000), jnp.bfloat16)
  G = linalg.gramian(J)
  assert G.dtype == jnp.float32 and np.all(np.asarray(G) == 1000)
  combined = linalg.combine(jnp.array([0.5, 0.25]), J)
  assert combined.dtype == jnp.bfloat16 and np.all(np.asarray(combined, np.float32) == 0.75)


def test_combine_and_rows():
  J = {'a': jnp.arange(6.0).reshape(2, 3), 'b': jnp.array([1.0, -1.0])}
  np.testing.assert_array_equal(linalg.combine(jnp.array([1.0, 2.0]), J)['a'], [6.0, 9.0, 12.0])
  assert linalg.combine(jnp.array([1.0, 2.0]), J)['b'] == -1
  masked = linalg.mask_rows(jnp.array([True, False]), {'a': J['a'].at[1].set(jnp.nan)})
  np.testing.assert_array_equal(masked['a'], [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
  np.testing.assert_array_equal(linalg.scale_rows(jnp.array([2.0, 0.5]), J)['b'], [2.0, -0.5])


def test_gramian_without_leaves_is_refused():
  with pytest.raises(InputError, match='jacobian'):
    linalg.gramian({})
