"""Projecting conflicting gradients."""

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Array, Balancer


def visiting_order(key: Array, order: Array | None, tasks: int) -> Array:
  """int[T, T], row i the order in which task i visits the others: as given, or drawn."""
  if order is None:
    return jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=1)
  order = jnp.asarray(order)
  if order.shape != (tasks, tasks):
    raise _base.InputError(f'order: found shape {order.shape}, expected ({tasks}, {tasks}), one order per task.')
  return order


def pcgrad() -> Balancer:
  """Takes out of every gradient what opposes another one, in random order, and sums.

  For each i: c = g_i; for j in order, j != i: if c.g_j < 0: c = c - (c.g_j / |g_j|^2) g_j. Direction sum_i c_i.

  Returns:
    A balancer of level gramian. Extra: `order` int[T, T], row i the order in which task i visits the others (entries
    equal to i are skipped).

  Departure: no absolute epsilon; a zero row opposes nothing.

  Needs: a random order a step; no options.
  Helps: strong conflicts between a few tasks.
  Breaks: conflicts may remain with T > 2; without conflict it is equal weighting.

  References: Yu et al., Gradient Surgery for Multi-Task Learning, 2020, https://arxiv.org/abs/2001.06782

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.pcgrad(), jnp.array([[1.0, 0.0], [-1.0, 1.0]])).direction)
  [0.5 1.5]
  """

  def update(G, state, *, present, key, order=None, **_):
    return _project(G, visiting_order(key, order, len(G)), present), state

  return _base.make('gramian', update)


@jax.jit
def _project(G, order, present):
  squares = jnp.diagonal(G)
  rows = jnp.arange(len(G))

  def visit(k, c):
    j = order[:, k]
    dot = jnp.sum(c * G[j], axis=1)
    acts = (dot < 0) & (j != rows) & present[j] & (squares[j] > 0)
    return c.at[rows, j].add(-jnp.where(acts, dot / jnp.where(acts, squares[j], 1), 0))

  projected = jax.lax.fori_loop(0, len(G), visit, jnp.eye(len(G), dtype=G.dtype))
  return jnp.sum(jnp.where(present[:, None], projected, 0), axis=0)
