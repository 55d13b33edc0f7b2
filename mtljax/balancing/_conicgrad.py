"""Gradients within a cone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer

ROUNDS = 48  # at most; rarely more than six


def conicgrad(c: float = 0.5) -> Balancer:
  """Improves the worst task among the directions that make a small angle with the mean gradient.

  d = argmax of min_t <g_t, d> over <g_0, d> >= c |g_0| |d|, |d| = |g_0|, g_0 the mean row.

  Args:
    c: cosine of the half-angle of the cone, in [0, 1]; 1 is the mean gradient, 0 the direction of `mgda`. May be
      traced.

  Returns:
    A balancer of level gramian. Zero gradients have no say but count in the mean.

  The solution is the direction of the shortest convex combination of the rows where that lies in the cone. Otherwise
  it lies on the cone's surface and on the path of `cagrad` from g_0 to there, d = g_0 + s g_w, w on the tasks with the
  least <g_t, d>: the radius of the ball is searched for with which d makes the angle. The path is made of straight
  pieces, each solved in closed form.

  Departure: solved exactly in every step. Where no direction in the cone improves all tasks, and the problem has no
  unique solution, d is again where the path leaves the cone, or where it ends within.

  Needs: c, which bounds the loss of mean progress.
  Helps: the worst task, with steps as long as those of the mean loss, also where gradients nearly cancel.
  Breaks: gradients of unlike norm: the largest makes the mean and so the axis of the cone.

  References: Hassanpour et al., Fantastic Multi-Task Gradient Updates and How to Find Them In a Cone, 2025,
  https://arxiv.org/abs/2502.00217

  >>> from mtljax import balancing
  >>> J = jnp.array([[3.0, 0.0], [0.0, 1.0]])
  >>> [round(float(x), 3) for x in balancing.aggregate(balancing.conicgrad(c=0.8), J).direction]
  [0.9, 1.3]
  """
  _base.check_number('conicgrad', 'c', c, 'a number in [0, 1]', lambda x: (x >= 0) & (x <= 1))

  def update(G, state, *, present, **_):
    mean = _base.preference_weights(None, present, G.dtype)
    return _within_cone(_base.over_trace(G), mean, jnp.asarray(c, G.dtype), present), state

  return _base.make('gramian', update)


class _Search(NamedTuple):
  """Weights f[T] of two d on the path, one within the cone and one without, and their radii |d - g_0| / |g_0|."""

  low: Array
  low_radius: Array
  high: Array
  high_radius: Array
  done: Array
  count: Array


def _within_cone(G: Array, mean: Array, c: Array, present: Array) -> Array:
  """Weights f[T] of d for a Gramian of trace 1."""
  eps = jnp.finfo(G.dtype).eps
  pull = linalg.matvec(G, mean)
  length = linalg.combined_norm(G, mean)
  dot = lambda a, b: jnp.sum(a * linalg.matvec(G, b))
  along = lambda e: _base.divide(jnp.sum(pull * e), length)

  def excess(e):
    """How far inside the cone: <d, g_0> / |g_0| - c |d|, in units of |d|; -1 for what cannot be told from 0."""
    norm = _norm(G, e)
    return jnp.where(norm > 0, _base.divide(along(e), norm) - c, -1)

  def cross(s):
    """The point between both, in a straight line, that makes the angle: a quadratic equation."""
    step = s.high - s.low
    p, q = along(s.low), along(step)
    A, B, C = q**2 - c**2 * dot(step, step), p * q - c**2 * dot(s.low, step), p**2 - c**2 * dot(s.low, s.low)
    root = jnp.sqrt(jnp.maximum(B**2 - A * C, 0))
    # the smaller positive root of A x^2 + 2 B x + C with C >= 0, without cancellation; towards 0 no angle changes
    share = jnp.clip(_base.divide(jnp.maximum(C, 0), root - B), 0, 1)
    e = s.low + jnp.where(_norm(G, s.high) > 0, share, 0) * step
    return jnp.where(jnp.abs(excess(s.low)) <= 16 * eps, s.low, e)

  def search(s):
    guess = _base.divide(linalg.combined_norm(G, cross(s) - mean), length)
    inner = jnp.maximum(2 * s.low_radius, jnp.sqrt(1 - c**2))  # the largest ball within the cone
    middle = jnp.where(jnp.isfinite(s.high_radius), (s.low_radius + s.high_radius) / 2, inner)
    use = (guess > s.low_radius) & (guess < s.high_radius) & (s.count % 3 > 0)
    radius = jnp.where(s.count == 0, 2, jnp.where(use, guess, middle))  # 2: the end of the path
    new = mean + linalg.conflict_averse(G, radius, present)
    found = excess(new)
    keep = (found >= 0) & (s.count > 0)
    low, low_radius = jnp.where(keep, new, s.low), jnp.where(keep, radius, s.low_radius)
    high, high_radius = jnp.where(keep, s.high, new), jnp.where(keep, s.high_radius, jnp.where(s.count == 0, 1, radius))
    end = (s.count == 0) & (found >= 0)
    short = linalg.combined_norm(G, low) < 1e-3 * length
    narrow = high_radius - low_radius <= 16 * eps * low_radius
    done = end | (jnp.abs(found) <= 16 * eps) | short | narrow
    return _Search(low, low_radius, high, high_radius, done, s.count + 1)

  # d at the two ends of the path, the far one made as long as g_0 for the first straight line
  shortest = linalg.min_norm(G, present & (jnp.diagonal(G) > 0))
  stationary = _norm(G, shortest) == 0
  far = shortest * _base.divide(length, linalg.combined_norm(G, shortest))
  done = (~stationary & (excess(far) >= 0)) | (jnp.abs(excess(mean)) <= 16 * eps) | (length == 0)
  zero, inf = jnp.zeros((), G.dtype), jnp.full((), jnp.inf, G.dtype)
  start = _Search(mean, zero, far, inf, done, jnp.where(stationary, 0, 1))
  s = jax.lax.while_loop(lambda s: ~s.done & (s.count < ROUNDS), search, start)
  e = jnp.where(excess(s.high) >= 0, s.high, cross(s))
  return e * _base.divide(length, _norm(G, e))


def _norm(G: Array, e: Array) -> Array:
  """|d|, 0 where it cannot be told from 0."""
  norms = jnp.sqrt(jnp.maximum(jnp.diagonal(G), 0))
  noise = 16 * jnp.finfo(G.dtype).eps * jnp.sum(jnp.abs(e) * norms) ** 2
  square = jnp.sum(e * linalg.matvec(G, e))
  return jnp.sqrt(jnp.where(square > noise, square, 0))
