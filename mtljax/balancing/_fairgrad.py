"""Alpha-fair gradients."""

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer


def fairgrad(alpha: float = 1.0) -> Balancer:
  """Alpha-fair gains: alpha = 1 is Nash bargaining, large alpha comes near the worst task's gain (MGDA).

  w > 0 with G w = w^(-1 / alpha) entry by entry.

  Args:
    alpha: > 0. May be traced.

  Returns:
    A balancer of level gramian.

  Departure: damped Newton on the convex problem, exact at every scale; the authors' least squares from 1 / T stops
  short when gradients are small. The shared gradient is not clipped. A zero gradient gets weight 0.

  Needs: a tuned alpha.
  Helps: one knob from the sum towards the worst task.
  Breaks: the direction grows as gradients vanish for alpha > 1: clip it.

  References: Ban and Ji, Fair Resource Allocation in Multi-Task Learning, 2024, https://arxiv.org/abs/2402.15638

  >>> from mtljax import balancing
  >>> J = jnp.array([[8.0, 0.0], [0.0, 1.0]])
  >>> print(balancing.aggregate(balancing.fairgrad(alpha=2.0), J).weights.round(4))
  [0.0625 1.    ]
  """
  _base.check_number('fairgrad', 'alpha', alpha, 'a number > 0', lambda x: x > 0)

  def update(G, state, *, present, **_):
    return linalg.power_fair(G, jnp.asarray(alpha, G.dtype), present), state

  return _base.make('gramian', update)
