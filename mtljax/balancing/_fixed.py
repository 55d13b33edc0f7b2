"""Weights that look at nothing: equal and constant."""

from typing import Any

import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Array, Balancer


def equal() -> Balancer:
  """Weights 1 for every task: the sum of the losses, a strong baseline when tuned.

  w_t = 1. No 1/T: the step does not shrink when a task is added.

  Returns:
    A balancer of level losses.

  Needs: the losses only.
  Helps: first choice; with tuned rates and regularisation it is hard to beat.
  Breaks: a loss of much larger scale takes the trunk over.

  References: Xin et al., Do Current Multi-Task Optimization Methods in Deep Learning Even Help?, 2022,
  https://arxiv.org/abs/2209.11379

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.equal(), jnp.eye(3)).weights)
  [1. 1. 1.]
  """
  return _base.make('losses', lambda l, state, **_: (jnp.ones_like(l), state))


def constant(weights: Any) -> Balancer:
  """Given weights, the same at every step or by a schedule.

  w_t = weights_t, as given (not normalised).

  Args:
    weights: f[T], or a schedule step -> f[T].

  Returns:
    A balancer of level losses.

  Needs: one weight per task, known or searched for.
  Helps: priorities that are known; a grid of weights traces trade-offs.
  Breaks: the grid grows exponentially with T; parts of the front are out of its reach.

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.constant((0.5, 2.0)), jnp.eye(2)).weights)
  [0.5 2. ]
  """
  if not callable(weights):
    expected = 'finite numbers, one per task, or a schedule'
    _base.check_number('constant', 'weights', weights, expected, lambda x: x == x, scalar=False)

  def update(l: Array, state, *, step, **_):
    w = weights(step) if callable(weights) else weights
    _base.check_length('constant: weights', w, len(l))
    return jnp.asarray(w, l.dtype), state

  return _base.make('losses', update)
