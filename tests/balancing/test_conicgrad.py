"""ConicGrad against its problem, solved by a general method, and at the two ends of its parameter."""

import functools

import balancing_samplers as samplers
import jax
import numpy as np
import pytest
from balancing_asserts import CHEAP
from scipy import optimize

from mtljax import balancing as b

CLASSES = (samplers.random, samplers.aligned, samplers.orthogonal, samplers.conflicting, samplers.duplicate)


@functools.cache
def compiled():
  return jax.jit(lambda J, c: b.aggregate(b.conicgrad(c=c), J).direction, compiler_options=CHEAP)


def direction(J, c):
  return np.asarray(compiled()(J, c))


def best_gain(J, c):
  """max of min_t <g_t, d> over the cone and the unit ball, by SLSQP in the span of the rows."""
  g = J.mean(0)
  Q = np.linalg.qr(J.T)[0]
  rows, g = J @ Q, g @ Q / np.linalg.norm(g)
  constraints = [
    {'type': 'ineq', 'fun': lambda z: rows @ z[:-1] - z[-1]},
    {'type': 'ineq', 'fun': lambda z: 1 - z[:-1] @ z[:-1]},
    {'type': 'ineq', 'fun': lambda z: g @ z[:-1] - c * np.sqrt(z[:-1] @ z[:-1] + 1e-30)},
  ]
  start = np.append(g, (rows @ g).min())
  result = optimize.minimize(
    lambda z: -z[-1], start, constraints=constraints, method='SLSQP', options={'maxiter': 500, 'ftol': 1e-13}
  )
  # 8: it could not get any better; where nothing is gained its iterations need not end (9)
  assert result.status in (0, 8) or (result.status == 9 and abs(result.fun) < 1e-6)
  return -result.fun


@pytest.mark.parametrize('c', [0.3, 0.8, 0.95])
def test_no_direction_of_the_cone_gains_more(c, x64):
  """Where one improves all tasks; the length is that of the mean gradient, the angle within the cone."""
  gains = 0
  for sample in CLASSES:
    for seed in range(3):
      J = sample(seed)
      d, g = direction(J, c), J.mean(0)
      assert np.linalg.norm(d) == pytest.approx(np.linalg.norm(g), rel=1e-12)
      assert d @ g >= (c - 1e-12) * (g @ g)
      gain = best_gain(J, c)
      if gain > 1e-3:
        gains += 1
        assert (J @ d).min() / np.linalg.norm(d) == pytest.approx(gain, rel=1e-5)
  assert gains >= 10


def test_the_ends_of_the_cone(x64):
  for sample in (*CLASSES, samplers.row_scales, samplers.zero_row, samplers.low_rank):
    np.testing.assert_allclose(direction(sample(0), 1.0), sample(0).mean(0), rtol=1e-9, atol=1e-12)
  for sample in CLASSES:
    J = sample(0)
    shortest = np.asarray(b.aggregate(b.mgda(), J).direction)
    want = shortest / np.linalg.norm(shortest) * np.linalg.norm(J.mean(0))
    np.testing.assert_allclose(direction(J, 0.0), want, rtol=1e-9, atol=1e-12)


def test_hopeless_conflicts_end_within_the_cone(x64):
  """No direction improves all tasks: a direction of full length all the same, at every angle."""
  for sample in (samplers.opposed, samplers.stationary, samplers.low_rank):
    for c in (0.2, 0.7, 0.99):
      J = sample(1)
      d, g = direction(J, c), J.mean(0)
      assert np.linalg.norm(d) == pytest.approx(np.linalg.norm(g), rel=1e-7)
      assert d @ g >= (c - 1e-7) * (g @ g)
  parallel = np.array([[1.0, 0.0, 2.0], [-0.5, 0.0, -1.0]])
  np.testing.assert_allclose(direction(parallel, 0.5), parallel.mean(0), rtol=1e-9)


def test_a_mean_gradient_of_zero_gives_no_direction():
  assert not direction(np.array([[1.0, 2.0], [-1.0, -2.0]]), 0.5).any()
