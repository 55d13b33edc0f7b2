"""Nash bargaining."""

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer


def nash_mtl(max_norm: float | None = 1.0, update_every: int = 1) -> Balancer:
  """The Nash bargaining solution: every task gains the same relative share, whatever the scale of its loss.

  w > 0 with G w = 1 / w entry by entry, solved when step % update_every == 0, used again otherwise; then
  w = w max_norm / |w @ J| where |w @ J| > max_norm.

  Args:
    max_norm: clips the norm of the direction, > 0; None: no clipping.
    update_every: steps between solutions; the unclipped weights are kept. Saves the solver, not the backward passes.

  Returns:
    A balancer of level gramian; its state is the last solution f[T].

  Departure: solved by Newton on the convex problem min w'Gw / 2 - sum log w; the authors' sequence of convex programs
  stops short when gradients are small or of unequal scale. Where no direction improves all tasks there is no solution;
  the weights are then large, and the direction nearly stationary. A zero gradient gets weight 0.

  Needs: linearly independent gradients.
  Helps: losses of very different scale: the direction does not depend on it.
  Breaks: near stationary points weights grow; max_norm holds them.

  References: Navon et al., Multi-Task Learning as a Bargaining Game, 2022, https://arxiv.org/abs/2202.01017

  >>> from mtljax import balancing
  >>> J = jnp.array([[2.0, 0.0], [0.0, 0.5]])
  >>> print(balancing.aggregate(balancing.nash_mtl(max_norm=None), J).weights.round(3))
  [0.5 2. ]
  """
  if max_norm is not None:
    _base.check_number('nash_mtl', 'max_norm', max_norm, 'None or a number > 0', lambda x: x > 0)
  update_every = _base.check_count('nash_mtl', 'update_every', update_every, 1)

  def update(G, w, *, present, step, **_):
    solve = lambda: linalg.power_fair(G, jnp.ones((), G.dtype), present).astype(w.dtype)
    w = jax.lax.cond(step % update_every == 0, solve, lambda: w)
    used = jnp.where(present, w, 0).astype(G.dtype)
    if max_norm is None:
      return used, w
    norm = linalg.combined_norm(G, used)
    return used * jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1), w

  return _base.make('gramian', update, lambda example: _base.zeros(example, 1.0))
