"""Group optimisation for multi-task alignment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Array, Balancer


class GO4AlignState(NamedTuple):
  """Shares of the tasks f[T], lowered where losses stay high."""

  share: Array


def go4align(groups: int = 2, step_size: float = 1e-4) -> Balancer:
  """One weight per group of tasks that are at the same stage of learning.

  share <- share exp(-step_size l), renormalised; v_t = share_t sum_s l_s / l_t; w_t is the mean of v over the group of
  t, the groups being the k-means clusters of the numbers v.

  Args:
    groups: number of clusters, >= 1. The authors' default, one group, gives every task the same weight.
    step_size: >= 0.

  Returns:
    A balancer of level losses, for losses > 0.

  Departure: the clusters are the optimal ones (numbers on a line, dynamic programming), not those of a random start.

  Needs: losses > 0; the number of groups.
  Helps: many tasks that fall into a few groups.
  Breaks: one group is equal weighting; a loss near 0 takes most weight.

  References: Shen et al., GO4Align: Group Optimization for Multi-Task Alignment, 2024,
  https://arxiv.org/abs/2404.06486

  >>> from mtljax import balancing
  >>> losses = jnp.array([1.0, 1.0, 4.0])
  >>> print(balancing.aggregate(balancing.go4align(groups=2, step_size=0.0), jnp.eye(3), losses).weights)
  [2.  2.  0.5]
  """
  groups = _base.check_count('go4align', 'groups', groups, 1)
  _base.check_number('go4align', 'step_size', step_size, 'a number >= 0', lambda x: x >= 0)

  def update(l, state, *, present, **_):
    share = _base.normalise(_base.normalise(state.share, present) * jnp.exp(-step_size * l), present)
    v = share * jnp.sum(jnp.where(present, l, 0)) / _base.positive(l)
    return _cluster_means(v, present, groups), GO4AlignState(share)

  def init(example):
    return GO4AlignState(_base.zeros(example, 1 / _base.task_count(example)))

  return _base.make('losses', update, init)


def _cluster_means(v: Array, present: Array, groups: int) -> Array:
  """The mean of the cluster of each entry, for the best partition of the present numbers into intervals."""
  T = len(v)
  order = jnp.argsort(jnp.where(present, v, jnp.inf))
  x = jnp.where(present, v, 0)[order]
  n = present[order].astype(v.dtype)
  x = x - _base.mean(x, n > 0) * n
  zero = jnp.zeros(1, v.dtype)
  counts, sums, squares = (jnp.concatenate([zero, jnp.cumsum(a)]) for a in (n, x, x**2))
  span = lambda sums: sums[None, :] - sums[:, None]  # over entries i .. j - 1
  cost = jnp.maximum(span(squares) - _base.divide(span(sums) ** 2, span(counts)), 0)
  cost = jnp.where(jnp.arange(T + 1)[:, None] <= jnp.arange(T + 1)[None, :], cost, jnp.inf)
  best, starts = cost[0], []
  for _ in range(min(groups, T) - 1):
    totals = best[:, None] + cost
    starts.append(jnp.argmin(totals, axis=0))
    best = jnp.min(totals, axis=0)
  end, label = jnp.array(T), jnp.zeros(T, jnp.int32)
  for start in reversed(starts):
    end = start[end]
    label = label + (jnp.arange(T) < end)  # a label per interval, counted from the right
  label = label[jnp.argsort(order)]
  means = jax.vmap(lambda k: _base.mean(v, present & (label == k)))(jnp.arange(max(groups, 1)))
  return means[label]
