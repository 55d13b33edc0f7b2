"""Robust multi-task learning with excess risks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class ExcessState(NamedTuple):
  """Sums of squared gradients, leaves f[T, *param]; first excess f[T]; weights f[T]; seen bool[T]."""

  squares: PyTree
  first: Array
  weights: Array
  seen: Array


def excess_mtl(step_size: float = 0.01) -> Balancer:
  """More weight to the tasks whose loss is furthest above what it could be, as a diagonal Newton step estimates it.

  S <- S + g^2; e_t = sum g_t^2 / sqrt(S_t + 1e-7), relative to its first value; from the second step on
  w <- w exp(step_size e), renormalised to sum 1. d = sum_t w_t g_t.

  Args:
    step_size: >= 0.

  Returns:
    A balancer of level jacobian.

  Needs: T copies of the trunk in the state.
  Helps: noisy labels: a loss that cannot fall further gets no weight.
  Breaks: the first step sets the reference; unequal gradient scales in one trunk.

  References: He et al., Robust Multi-Task Learning with Excess Risks, 2024, https://arxiv.org/abs/2402.02009

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.excess_mtl(), jnp.array([[2.0, 0.0], [0.0, 8.0]])).direction)
  [1. 4.]
  """
  _base.check_number('excess_mtl', 'step_size', step_size, 'a number >= 0', lambda x: x >= 0)

  def init(example):
    w = _base.zeros(example, 1 / _base.task_count(example))
    return ExcessState(_base.zero_rows(example), jnp.zeros_like(w), w, jnp.zeros(w.shape, bool))

  def update(J, state, *, present, **_):
    S = jax.tree.map(lambda s, g: s + g**2, state.squares, J)
    parts = jax.tree.map(lambda s, g: jnp.sum(g**2 / jnp.sqrt(s + 1e-7), axis=tuple(range(1, g.ndim))), S, J)
    excess = sum(jax.tree.leaves(parts))
    first = jnp.where(state.seen, state.first, excess)
    growth = jnp.where(state.seen, step_size * _base.divide(excess, first), 0)
    w = _base.normalise(state.weights, present)
    w = _base.softmax(jnp.log(_base.positive(w)) + growth, present)
    return linalg.combine(w, J), ExcessState(S, first, w, state.seen | present)

  return _base.make('jacobian', update, init)
