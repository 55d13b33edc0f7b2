"""Projections onto the dual cone: UPGrad and DualProj."""

from typing import Any

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer


def upgrad(preference: Any = None, regularization: float = 1e-4) -> Balancer:
  """Projects every gradient onto the cone of directions that harm no task, and averages.

  With M = G / tr G + regularization I: w = sum_t argmin v'Mv subject to v >= preference_t e_t.

  Args:
    preference: f[T] >= 0, None: 1 / T each.
    regularization: >= 0, relative to the trace. It makes the projection unique, and conflict up to its size possible.

  Returns:
    A balancer of level gramian. Exact, by T active sets in one batch.

  Needs: nothing to tune.
  Helps: no task gets worse, and larger gradients keep their larger say.
  Breaks: nearly opposed gradients: short steps; gradients of unlike norm.

  References: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024, https://arxiv.org/abs/2406.16232

  >>> from mtljax import balancing
  >>> J = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
  >>> [round(float(x), 3) for x in balancing.aggregate(balancing.upgrad(), J).direction]
  [0.25, 0.75]
  """
  return _projection('upgrad', preference, regularization, jnp.diag)


def dualproj(preference: Any = None, regularization: float = 1e-4) -> Balancer:
  """Projects the average gradient onto the cone of directions that harm no task.

  With M = G / tr G + regularization I: w = argmin v'Mv subject to v >= preference.

  Args:
    preference: f[T] >= 0, None: 1 / T each.
    regularization: >= 0, relative to the trace.

  Returns:
    A balancer of level gramian. Exact, by an active set.

  Needs: nothing to tune.
  Helps: as upgrad, nearer to the mean gradient and cheaper.
  Breaks: small gradients are protected, hardly promoted; nearly opposed ones: short steps.

  References: Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017,
  https://arxiv.org/abs/1706.08840

  >>> from mtljax import balancing
  >>> J = jnp.array([[1.0, 0.0], [-2.0, 1.0]])
  >>> [round(float(x), 3) for x in balancing.aggregate(balancing.dualproj(), J).direction]
  [-0.001, 0.5]
  """
  return _projection('dualproj', preference, regularization, lambda weights: weights)


def _projection(method, preference, regularization, bounds):
  _base.check_preference(method, preference)
  _base.check_number(method, 'regularization', regularization, 'a number >= 0', lambda x: x >= 0)

  def update(G, state, *, present, **_):
    lower = bounds(_base.preference_weights(preference, present, G.dtype))
    M = _base.over_trace(G) + regularization * jnp.eye(len(G), dtype=G.dtype)
    w = linalg.cone_weights(M, lower, present)
    return jnp.sum(jnp.atleast_2d(w), axis=0), state

  return _base.make('gramian', update)
