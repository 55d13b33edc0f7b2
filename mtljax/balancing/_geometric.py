"""Products of losses: the geometric mean and the sum of logarithms."""

import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Balancer


def geometric() -> Balancer:
  """The geometric mean of the losses (GLS).

  L = (prod_t l_t)^(1 / T), w_t = dL / dl_t = L / (T l_t), by logarithms.

  Returns:
    A balancer of level losses, for losses > 0.

  Needs: losses > 0.
  Helps: losses in different units: constant factors turn nothing.
  Breaks: a loss that reaches 0 takes all weight and stops the others.

  References: Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
  Learning, 2019, https://arxiv.org/abs/1904.08492

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.geometric(), jnp.eye(2), jnp.array([1.0, 4.0])).weights.round(3))
  [1.   0.25]
  """

  def update(l, state, *, present, **_):
    logs = jnp.log(_base.positive(l))
    return jnp.exp(_base.mean(logs, present) - logs) / jnp.maximum(jnp.sum(present), 1), state

  return _base.make('losses', update)


def scale_invariant() -> Balancer:
  """The sum of the logarithms of the losses: multiplying a loss by a constant changes nothing.

  w_t = 1 / l_t.

  Returns:
    A balancer of level losses, for losses > 0.

  Needs: losses > 0.
  Helps: losses in different units: constant factors drop out.
  Breaks: a nearly solved task gets the largest weight.

  References: Navon et al., Multi-Task Learning as a Bargaining Game, 2022, https://arxiv.org/abs/2202.01017 (baseline)

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.scale_invariant(), jnp.eye(2), jnp.array([1.0, 4.0])).weights)
  [1.   0.25]
  """
  return _base.make('losses', lambda l, state, **_: (1 / _base.positive(l), state))
