"""Scalarisations that follow a preference vector: COSMOS and PBI."""

from typing import Any

import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Balancer


def cosmos(preference: Any = None, penalty: float = 1.0) -> Balancer:
  """Weighted sum that also rewards losses in the proportions of the preference.

  Objective r.l - penalty cos(r, l); w = r - penalty (r / (|r| |l|) - (r.l) l / (|r| |l|^3)).

  Args:
    preference: r f[T] >= 0, None: 1 / T each.
    penalty: >= 0. May be traced.

  Returns:
    A balancer of level losses. Weights may be negative.

  Departure: the objective only; feeding the preference to the network is the user's affair.

  Needs: a preference; losses on one scale.
  Helps: a trade-off near a given ray.
  Breaks: large penalty: negative weights, some loss is pushed up.

  References: Ruchte and Grabocka, Scalable Pareto Front Approximation for Deep Multi-Objective Learning, 2021,
  https://arxiv.org/abs/2103.13392

  >>> from mtljax import balancing
  >>> w = balancing.aggregate(balancing.cosmos(), jnp.eye(2), jnp.array([1.0, 1.0])).weights
  >>> [round(float(x), 3) for x in w]
  [0.5, 0.5]
  """
  _base.check_preference('cosmos', preference)
  _base.check_number('cosmos', 'penalty', penalty, 'a number >= 0', lambda x: x >= 0)

  def update(l, state, *, present, **_):
    r = _base.preference_weights(preference, present, l.dtype)
    l = jnp.where(present, l, 0)
    size = jnp.sqrt(jnp.sum(r**2))
    length = jnp.sqrt(jnp.sum(l**2))
    unit = _base.divide(l, length)
    gradient = _base.divide(r - jnp.sum(r * unit) * unit, size * length)
    return r - penalty * gradient, state

  return _base.make('losses', update)


def pbi(preference: Any = None, theta: float = 5.0) -> Balancer:
  """Penalty boundary intersection: moves along the preference and pulls towards its ray.

  r = preference / |preference|, d1 = r.l, d2 = sqrt(|l - d1 r|^2 + 1e-12); objective d1 + theta d2,
  w = r + theta (l - d1 r) / d2.

  Args:
    preference: f[T] >= 0, None: equal.
    theta: >= 0, strength of the pull. May be traced.

  Returns:
    A balancer of level losses. Weights may be negative.

  Needs: a preference; losses on one scale.
  Helps: the point of the front on a given ray, also where it is not convex.
  Breaks: large theta: negative weights, some loss is pushed up.

  References: Zhang and Li, MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition, 2007,
  https://doi.org/10.1109/TEVC.2007.892759

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.pbi((3.0, 4.0), theta=0.0), jnp.eye(2)).weights)
  [0.6 0.8]
  """
  _base.check_preference('pbi', preference)
  _base.check_number('pbi', 'theta', theta, 'a number >= 0', lambda x: x >= 0)

  def update(l, state, *, present, **_):
    r = _base.preference_weights(preference, present, l.dtype)
    r = _base.divide(r, jnp.sqrt(jnp.sum(r**2)))
    l = jnp.where(present, l, 0)
    across = l - jnp.sum(r * l) * r
    across = across - jnp.sum(r * across) * r  # once more: near the ray the first difference is mostly rounding
    return r + theta * across / jnp.sqrt(jnp.sum(across**2) + 1e-12), state

  return _base.make('losses', update)
