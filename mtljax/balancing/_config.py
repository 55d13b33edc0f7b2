"""Conflict-free inverse gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


def config(preference: Any = None) -> Balancer:
  """The direction at equal angles to all gradients, as long as their projections onto it together.

  U the unit rows, x = pinv(U) preference, u = x / |x|, d = (sum_t <g_t, u>) u. From the Gramian: with the cosines C,
  y = pinv(C) preference, x = U'y.

  Args:
    preference: f[T] >= 0, cosines in these proportions; None: ones.

  Returns:
    A balancer of level gramian. A zero gradient has no say; eigenvalues of C below 4 T eps of the largest count as 0.

  Needs: gradients that are linearly independent.
  Helps: losses of unlike scale that must all fall (physics-informed networks).
  Breaks: nearly opposed gradients: tiny steps along a noisy direction.

  References: Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, 2024,
  https://arxiv.org/abs/2408.11104

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.config(), jnp.array([[3.0, 0.0], [0.0, 1.0]])).direction)
  [2. 2.]
  """
  _base.check_preference('config', preference)
  return _base.make('gramian', lambda G, state, *, present, **_: (_equal_angles(G, preference, present), state))


class ConFIGState(NamedTuple):
  """Moving averages of the gradients, leaves f[T, *param], and how many entered each, int32[T]."""

  average: PyTree
  count: Array


def config_momentum(beta: float = 0.9) -> Balancer:
  """ConFIG on moving averages of the gradients, of which one task's is refreshed a step (M-ConFIG).

  i = step mod T: m_i = beta m_i + (1 - beta) g_i; ConFIG on the debiased averages m_t / (1 - beta^count_t).

  Args:
    beta: in [0, 1). May be traced.

  Returns:
    A balancer of level jacobian. Tasks not visited yet have a zero row.

  Departure: the second moment is left to the optimiser. The engine computes all gradients of a step, so that what
  this saves in the paper (one backward pass a step) is not saved here.

  Needs: T copies of the trunk in the state.
  Helps: as config, with noisy gradients.
  Breaks: averages are up to T steps old; saves no backward passes here.

  References: Liu, Chu and Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, 2024,
  https://arxiv.org/abs/2408.11104

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.config_momentum(beta=0.5), jnp.array([[3.0, 0.0], [0.0, 1.0]])).direction)
  [3. 0.]
  """
  _base.check_number('config_momentum', 'beta', beta, 'a number in [0, 1)', lambda x: (x >= 0) & (x < 1))

  def init(example):
    return ConFIGState(_base.zero_rows(example), jnp.zeros(_base.task_count(example), jnp.int32))

  def update(J, state, *, present, step, **_):
    place = jnp.cumsum(present) - 1
    visited = present & (place == step % jnp.maximum(jnp.sum(present), 1))
    average = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.average, J)
    average = _base.hold(visited, average, state.average)
    count = state.count + visited
    debias = jnp.where(present & (count > 0), 1 / (1 - jnp.asarray(beta, jnp.float32) ** jnp.maximum(count, 1)), 0)
    rows = linalg.scale_rows(debias, average)
    w = _equal_angles(linalg.gramian(rows), None, present)
    return linalg.combine(w, rows), ConFIGState(average, count)

  return _base.make('jacobian', update, init)


def _equal_angles(G, preference, present):
  C, norms = linalg.correlations(G, present)
  aim = jnp.where(norms > 0, jnp.ones_like(norms) if preference is None else jnp.asarray(preference, G.dtype), 0)
  _base.check_length('preference', aim, len(present))
  y = linalg.pseudo_solve(C, aim)
  projections = linalg.matvec(C, y)  # <unit row, x>
  squared = jnp.maximum(jnp.sum(y * projections), 0)
  return _base.divide(y * _base.divide(jnp.sum(norms * projections), squared), norms)
