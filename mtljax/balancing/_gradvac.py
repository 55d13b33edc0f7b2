"""Gradient vaccine."""

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.balancing._pcgrad import visiting_order
from mtljax.base import Balancer


def gradvac(beta: float = 0.01) -> Balancer:
  """Turns gradients until their cosines reach the running averages, in random order, and sums.

  For each i: c = g_i; for j in order, j != i: phi = cos(c, g_j); if phi < target_ij:
  c = c + |c| (target sqrt(1 - phi^2) - phi sqrt(1 - target^2)) / (|g_j| sqrt(1 - target^2)) g_j;
  then target_ij = (1 - beta) target_ij + beta phi. Direction sum_i c_i. Targets start at 0.

  Args:
    beta: in [0, 1]. May be traced.

  Returns:
    A balancer of level gramian; its state is the targets f[T, T]. Extra: `order` int[T, T], as in `pcgrad`.

  Departure: one group of parameters (all that are shared). A zero gradient is left alone and counts as cosine 0.

  Needs: a random order a step; T x T targets in the state.
  Helps: related tasks (languages): aligns even where nothing conflicts.
  Breaks: unrelated tasks are bent towards each other; norms stay unequal.

  References: Wang et al., Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
  Multilingual Models, 2021, https://arxiv.org/abs/2010.05874

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.gradvac(), jnp.array([[1.0, 0.0], [-1.0, 1.0]])).direction)
  [0.5 1.5]
  """
  _base.check_number('gradvac', 'beta', beta, 'a number in [0, 1]', lambda x: (x >= 0) & (x <= 1))

  def init(example):
    return jnp.zeros((_base.task_count(example),) * 2, _base.zeros(example).dtype)

  def update(G, targets, *, present, key, order=None, **_):
    return _vaccinate(G, targets, visiting_order(key, order, len(G)), present, beta)

  return _base.make('gramian', update, init)


@jax.jit
def _vaccinate(G, targets, order, present, beta):
  T = len(G)
  norms = jnp.sqrt(jnp.diagonal(G))
  rows = jnp.arange(T)

  def visit(k, carry):
    c, dots, targets = carry  # coefficients of c_i, <c_i, g_j>
    j = order[:, k]
    valid = (j != rows) & present & present[j]
    length = jnp.sqrt(jnp.maximum(jnp.sum(c * dots, axis=1), 0))
    phi = jnp.clip(_base.divide(dots[rows, j], length * norms[j]), -1, 1)
    target = targets[rows, j].astype(G.dtype)
    sine = jnp.sqrt(jnp.maximum(1 - target**2, 0))
    turn = _base.divide(length * (target * jnp.sqrt(1 - phi**2) - phi * sine), norms[j] * sine)
    turn = jnp.where(valid & (phi < target), turn, 0)
    c = c.at[rows, j].add(turn)
    dots = dots + turn[:, None] * G[j]
    return c, dots, targets.at[rows, j].add(jnp.where(valid, beta * (phi - target), 0).astype(targets.dtype))

  c, _, targets = jax.lax.fori_loop(0, T, visit, (jnp.eye(T, dtype=G.dtype), G, targets))
  return jnp.sum(jnp.where(present[:, None], c, 0), axis=0), targets
