"""Dual-balancing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer, PyTree


class DBState(NamedTuple):
  """Moving averages of the gradients of log l, leaves f[T, *param]."""

  average: PyTree


def db_mtl(beta: float = 0.9, beta_decay: float = 0.5) -> Balancer:
  """Gradients of the logarithms of the losses, averaged over steps and brought to the norm of the largest.

  k = step + 1, h_t = g_t / (l_t + 1e-8); y <- h + beta k^-beta_decay (y - h), from 0;
  d = sum_t max_s |y_s| / (|y_t| + 1e-8) y_t.

  Args:
    beta: >= 0, momentum.
    beta_decay: >= 0; 0 is a constant momentum.

  Returns:
    A balancer of level jacobian.

  Departure: no bias correction, as in the authors' code.

  Needs: losses > 0; T copies of the trunk in the state.
  Helps: scales of losses and of gradients at once.
  Breaks: the largest gradient sets all lengths: one noisy task makes long steps.

  References: Lin et al., Dual-Balancing for Multi-Task Learning, 2023, https://arxiv.org/abs/2308.12029

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.db_mtl(beta=0.0), jnp.array([[2.0, 0.0], [0.0, 8.0]])).direction.round(3))
  [8. 8.]
  """
  _base.check_number('db_mtl', 'beta', beta, 'a number >= 0', lambda x: x >= 0)
  _base.check_number('db_mtl', 'beta_decay', beta_decay, 'a number >= 0', lambda x: x >= 0)

  def update(J, state, *, losses, present, step, **_):
    momentum = beta / (step + 1).astype(losses.dtype) ** beta_decay
    rows = linalg.scale_rows(1 / _base.positive(losses + 1e-8), J)
    y = jax.tree.map(lambda y, h: h + momentum * (y - h), state.average, rows)
    norms = linalg.row_norms(linalg.mask_rows(present, y))
    w = jnp.where(present, jnp.max(norms) / (norms + 1e-8), 0)
    return linalg.combine(w, y), DBState(y)

  return _base.make('jacobian', update, lambda example: DBState(_base.zero_rows(example)))
