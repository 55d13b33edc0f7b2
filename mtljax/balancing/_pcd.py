"""Primary task first: a direction near the primary gradient that still serves the others."""

from typing import NamedTuple

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer


class PCDState(NamedTuple):
  """Running mean of the squared norms f[T], biased to 0, and the number of steps in it int32[T]."""

  squares: Array
  count: Array


def pcd(primary: int = 0, tau: float = 0.02, beta: float = 0.999) -> Balancer:
  """The nearest direction to the primary gradient along which every other task improves at a least rate.

  n_t^2 the debiased running mean of |g_t|^2, today's included, h_t = g_t / n_t;
  d = argmin |d - h_p|^2 subject to <h_j, d> >= tau |h_j|^2 for j != p; direction d |g_p| / |d|.

  Args:
    primary: index of the primary task p. Where it is absent, the first task that is present stands in.
    tau: >= 0, least rate of the others. May be traced.
    beta: of the running mean, in [0, 1). May be traced.

  Returns:
    A balancer of level gramian. Zero where the primary gradient is zero; where no direction meets all constraints,
    a finite compromise. Exact, by an active set.

  Departure: no epsilon beside the squared norms.

  Needs: a primary task.
  Helps: one main task with others that must keep improving.
  Breaks: opposed tasks: constraints that cannot all be met; a zero primary gradient stops all.

  References: arXiv 2606.29521, 2026, https://arxiv.org/abs/2606.29521

  >>> from mtljax import balancing
  >>> J = jnp.array([[0.0, 2.0], [1.0, -1.0]])
  >>> print(balancing.aggregate(balancing.pcd(tau=0.0), J).direction.round(3))
  [1.414 1.414]
  """
  primary = _base.check_count('pcd', 'primary', primary)
  _base.check_number('pcd', 'tau', tau, 'a number >= 0', lambda x: x >= 0)
  _base.check_number('pcd', 'beta', beta, 'a number in [0, 1)', lambda x: (x >= 0) & (x < 1))

  def init(example):
    if primary >= _base.task_count(example):
      raise _base.InputError(f'pcd: primary is {primary}, expected an index below {_base.task_count(example)}.')
    return PCDState(_base.zeros(example), jnp.zeros(_base.task_count(example), jnp.int32))

  def update(G, state, *, present, **_):
    squares = jnp.diagonal(G)
    mean = beta * state.squares + (1 - beta) * squares
    count = state.count + 1
    norms = jnp.sqrt(mean / (1 - jnp.asarray(beta, G.dtype) ** count))
    scale = _base.divide(jnp.ones_like(norms), norms)
    H = G * scale[:, None] * scale[None, :]
    chosen = jnp.arange(len(G)) == jnp.where(present[primary], primary, jnp.argmax(present))
    pull = jnp.sum(jnp.where(chosen[None, :], H, 0), axis=1)
    u = linalg.nonnegative(H, pull - tau * jnp.diagonal(H), present & ~chosen)
    w = (chosen + u) * scale
    length = jnp.sqrt(jnp.sum(jnp.where(chosen, squares, 0)))
    return w * _base.divide(length, linalg.combined_norm(G, w)), PCDState(mean, count)

  return _base.make('gramian', update, init)
