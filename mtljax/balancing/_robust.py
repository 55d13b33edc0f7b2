"""Robust aggregation, from federated learning: Krum and the trimmed mean."""

import functools

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Balancer


def krum(n_byzantine: int = 1, n_selected: int = 1) -> Balancer:
  """The mean of the gradients that are nearest to their neighbours.

  score_t = sum of the T - n_byzantine - 2 smallest distances |g_t - g_s|, s != t; w = 1 / n_selected for the
  n_selected smallest scores.

  Args:
    n_byzantine: how many tasks may be arbitrarily wrong, >= 0.
    n_selected: how many gradients are averaged, >= 1.

  Returns:
    A balancer of level gramian. Made for T >= n_byzantine + 3; with fewer tasks one neighbour counts.

  Raises:
    InputError: n_byzantine or n_selected exceeds the number of tasks (when tracing).

  Departure: distances, not squared.

  Needs: T >= n_byzantine + 3.
  Helps: a few tasks whose gradients are plainly wrong.
  Breaks: as balancing: all but n_selected tasks are ignored.

  References: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017,
  https://papers.nips.cc/paper/6617-machine-learning-with-adversaries-byzantine-tolerant-gradient-descent

  >>> from mtljax import balancing
  >>> J = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.9, 0.0], [-9.0, 0.0]])
  >>> print(balancing.aggregate(balancing.krum(), J).weights)
  [1. 0. 0. 0.]
  """
  n_byzantine = _base.check_count('krum', 'n_byzantine', n_byzantine)
  n_selected = _base.check_count('krum', 'n_selected', n_selected, 1)

  def update(G, state, *, present, **_):
    T = len(G)
    for name, value in (('n_byzantine', n_byzantine), ('n_selected', n_selected)):
      if value > T:
        raise _base.InputError(f'krum: {name} is {value}, expected at most the number of tasks {T}.')
    squares = jnp.diagonal(G)
    distances = jnp.sqrt(jnp.maximum(squares[:, None] + squares[None, :] - 2 * G, 0))
    others = present[None, :] & ~jnp.eye(T, dtype=bool)
    nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    count = jnp.maximum(jnp.sum(present) - n_byzantine - 2, 1)
    used = (jnp.arange(T) < count)[None, :] & jnp.isfinite(nearest)
    scores = jnp.where(present, jnp.sum(jnp.where(used, nearest, 0), axis=1), jnp.inf)
    rank = jnp.argsort(jnp.argsort(scores, stable=True))
    return _base.normalise((rank < n_selected).astype(G.dtype), present), state

  return _base.make('gramian', update)


def trimmed_mean(trim_number: int = 1) -> Balancer:
  """Coordinate by coordinate, the mean without the largest and the smallest entries.

  Args:
    trim_number: how many are dropped at each end, >= 0.

  Returns:
    A balancer of level jacobian. Made for T > 2 trim_number; with fewer tasks as many are dropped as leave one.

  Needs: T > 2 trim_number.
  Helps: a few tasks whose gradients are plainly wrong.
  Breaks: as balancing: what only one task wants is cut away.

  References: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, 2018,
  https://arxiv.org/abs/1803.01498

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.trimmed_mean(), jnp.array([[0.0], [1.0], [3.0], [9.0]])).direction)
  [2.]
  """
  trim_number = _base.check_count('trimmed_mean', 'trim_number', trim_number)

  def update(J, state, *, present, **_):
    count = jnp.sum(present)
    trim = jnp.minimum(trim_number, (count - 1) // 2)

    def trimmed(g):
      rows = list(g)
      kept = [jnp.broadcast_to(here, row.shape) for here, row in zip(present, rows)]

      def drop_both_ends(i, kept):
        for sign in (1, -1):
          ends = [jnp.where(k, sign * row, -jnp.inf) for k, row in zip(kept, rows)]
          top, done, left = functools.reduce(jnp.maximum, ends), i >= trim, []
          for k, end in zip(kept, ends):  # the first of equal entries, and no other
            hit = k & (end == top) & ~done
            left.append(k & ~hit)
            done |= hit
          kept = left
        return kept

      # rows one by one: XLA sorts over a leading axis very slowly on a CPU
      kept = jax.lax.fori_loop(0, trim_number, drop_both_ends, kept)
      total = functools.reduce(jnp.add, [jnp.where(k, row, 0) for k, row in zip(kept, rows)])
      return total / jnp.maximum(count - 2 * trim, 1).astype(g.dtype)

    return jax.tree.map(trimmed, J), state

  return _base.make('jacobian', update)
