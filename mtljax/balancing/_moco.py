"""Multi-objective gradient correction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class MoCoState(NamedTuple):
  """Tracked gradients, leaves f[T, *param], and weights f[T]."""

  tracked: PyTree
  weights: Array


def moco(
  beta: float = 0.5, beta_decay: float = 0.5, gamma: float = 0.1, gamma_decay: float = 0.5, rho: float = 0.0
) -> Balancer:
  """MGDA for noisy gradients: tracks each gradient by momentum and moves the weights a little at a time.

  k = step + 1, h_t = l_t g_t / (|g_t| + 1e-8); y <- y - beta k^-beta_decay (y - h), from 0;
  w <- softmax(w - gamma k^-gamma_decay (yy' + rho I) w), from 1 / T; d = sum_t w_t y_t with the new values.

  Args:
    beta, gamma: step sizes of y and w, >= 0.
    beta_decay, gamma_decay: their decay, >= 0.
    rho: >= 0, regularisation of the weights.

  Returns:
    A balancer of level jacobian.

  Departure: loss times unit gradient, and a softmax for the projection onto the simplex, as in the authors' code.

  Needs: T copies of the trunk in the state.
  Helps: as mgda, with small batches: tracking takes the bias of noise away.
  Breaks: five step sizes and decays to tune; rows scale with the losses.

  References: Fernando et al., Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach,
  2023, https://openreview.net/forum?id=dLAYGdKTi2

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.moco(gamma=0.0), jnp.array([[2.0, 0.0], [0.0, 8.0]])).direction)
  [0.25 0.25]
  """
  for name, value in dict(beta=beta, beta_decay=beta_decay, gamma=gamma, gamma_decay=gamma_decay, rho=rho).items():
    _base.check_number('moco', name, value, 'a number >= 0', lambda x: x >= 0)

  def init(example):
    return MoCoState(_base.zero_rows(example), _base.zeros(example, 1 / _base.task_count(example)))

  def update(J, state, *, losses, present, step, **_):
    k = jnp.asarray(step + 1, losses.dtype)
    rows = linalg.scale_rows(losses / (linalg.row_norms(J) + 1e-8), J)
    y = jax.tree.map(lambda y, h: y - beta / k**beta_decay * (y - h), state.tracked, rows)
    w = _base.normalise(state.weights, present)
    push = linalg.matvec(linalg.gramian(linalg.mask_rows(present, y)), w) + rho * w
    w = _base.softmax(w - gamma / k**gamma_decay * push, present)
    return linalg.combine(w, y), MoCoState(y, w)

  return _base.make('jacobian', update, init)
