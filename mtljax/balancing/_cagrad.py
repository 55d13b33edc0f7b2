"""Conflict-averse gradient descent."""

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer


def cagrad(c: float = 0.5, rescale: int = 1) -> Balancer:
  """Improves the worst task within a ball around the mean gradient.

  d = argmax over |d - g_0| <= c |g_0| of min_t <g_t, d>, g_0 the mean row. By duality
  w = argmin over the simplex of g_w.g_0 + c |g_0| |g_w|, d = g_0 + c |g_0| g_w / |g_w|, divided by 1 (rescale 0),
  1 + c^2 (1) or 1 + c (2).

  Args:
    c: radius of the ball, >= 0; 0 is the mean gradient. May be traced. From 1 on the ball reaches 0, and no task is
      harmed. Where several directions are optimal because none improves all tasks, the one nearest to g_0 is taken.
    rescale: 0, 1 or 2.

  Returns:
    A balancer of level gramian; the weights are those of d, not w. Exact, by an active set.

  Needs: a tuned c in [0, 1).
  Helps: the worst task, and still a minimum of the mean loss.
  Breaks: gradients of unlike norm: the largest makes the mean and the ball.

  References: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, 2021,
  https://arxiv.org/abs/2110.14048

  >>> from mtljax import balancing
  >>> J = jnp.array([[2.0, 0.0], [0.0, 2.0]])
  >>> [round(float(x), 3) for x in balancing.aggregate(balancing.cagrad(c=0.5, rescale=0), J).direction]
  [1.5, 1.5]
  """
  _base.check_number('cagrad', 'c', c, 'a number >= 0', lambda x: x >= 0)
  _base.check_choice('cagrad', 'rescale', rescale, (0, 1, 2))

  def update(G, state, *, present, **_):
    radius = jnp.asarray(c, G.dtype)
    w = _base.preference_weights(None, present, G.dtype) + linalg.conflict_averse(G, radius, present)
    return w / (1, 1 + radius**2, 1 + radius)[rescale], state

  return _base.make('gramian', update)
