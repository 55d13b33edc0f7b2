"""Homoscedastic uncertainty weighting."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class UncertaintyState(NamedTuple):
  """Log-variances s f[T] and their optimiser's state, one per task."""

  log_variance: Array
  opt_state: PyTree


def uncertainty(optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """Learned homoscedastic uncertainty: a task with a large variance counts less.

  Objective sum_t exp(-s_t) l_t / 2 + s_t / 2, s starts at 0; w_t = exp(-s_t) / 2 from s before the optimiser's step,
  which happens in the same update.

  Args:
    optimizer: of s, None: `optax.adam(1e-3)`. It runs task by task, so that the s of an absent task rests.

  Returns:
    A balancer of level losses.

  Departure: s has an optimiser of its own, not the model's. The objective has no lower bound where a loss reaches 0.

  Needs: losses > 0 that read as log-likelihoods.
  Helps: losses of different scale or noise, at no cost.
  Breaks: a loss that reaches 0: its weight grows without bound; slow with a small rate.

  References: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, 2018,
  https://arxiv.org/abs/1705.07115

  >>> from mtljax import balancing
  >>> balancer = balancing.uncertainty(optax.sgd(0.1))
  >>> first = balancing.aggregate(balancer, jnp.eye(2), jnp.array([1.0, 3.0]))
  >>> print(first.weights, first.state.log_variance.round(3))
  [0.5 0.5] [0.  0.1]
  """
  _base.check_optimizer('uncertainty', optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def init(example):
    s = _base.zeros(example)
    return UncertaintyState(s, _base.init_per_task(optimizer, s))

  def update(l, state, **_):
    s = state.log_variance
    gradient = 0.5 - 0.5 * jnp.exp(-s) * l
    return 0.5 * jnp.exp(-s), UncertaintyState(*_base.update_per_task(optimizer, gradient, state.opt_state, s))

  return _base.make('losses', update, init)
