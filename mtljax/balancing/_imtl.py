"""Impartial multi-task learning: balanced losses (L), balanced gradients (G), and both."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class IMTLState(NamedTuple):
  """Log-scales s f[T] and their optimiser's state, one per task."""

  log_scale: Array
  opt_state: PyTree


def imtl_l(optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """Learned loss scales that bring all scaled losses to 1.

  Objective sum_t exp(s_t) l_t - s_t, s starts at 0; w_t = exp(s_t) from s before the optimiser's step, which happens
  in the same update.

  Args:
    optimizer: of s, None: `optax.adam(1e-3)`. It runs task by task, so that the s of an absent task rests.

  Returns:
    A balancer of level losses.

  Needs: losses > 0.
  Helps: losses in different units, brought to 1 smoothly.
  Breaks: a loss that reaches 0: its weight grows without bound; slow with a small rate.

  References: Liu et al., Towards Impartial Multi-task Learning, 2021, https://openreview.net/forum?id=IMPnRXEWpvr

  >>> from mtljax import balancing
  >>> result = balancing.aggregate(balancing.imtl_l(optax.sgd(0.25)), jnp.eye(2), jnp.array([1.0, 3.0]))
  >>> print(result.weights, result.state.log_scale)
  [1. 1.] [ 0.  -0.5]
  """
  init, scales = _learned('imtl_l', optimizer)

  def update(l, state, **_):
    return scales(l, state)

  return _base.make('losses', update, init)


def imtl_g() -> Balancer:
  """The combination whose projections onto all gradients are equal.

  w with d = sum_t w_t g_t, <d, g_t / |g_t|> the same for all t, sum_t w_t = 1: y = pinv(C) 1 with the cosines C,
  w_t = y_t / |g_t| / sum_s y_s / |g_s|.

  Returns:
    A balancer of level gramian. Weights may be negative; a zero gradient gets weight 0; identical gradients share.

  Departure: solved on unit rows, so that the scale of the gradients does not matter. Linearly dependent rows admit no
  solution in general; the least-squares one is taken (eigenvalues below 4 T eps of the largest count as 0).

  Needs: gradients that are linearly independent.
  Helps: gradients of very different norm: each has the same say.
  Breaks: opposed or nearly dependent gradients: large or negative weights.

  References: Liu et al., Towards Impartial Multi-task Learning, 2021, https://openreview.net/forum?id=IMPnRXEWpvr

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.imtl_g(), jnp.array([[4.0, 0.0], [0.0, 4.0]])).weights)
  [0.5 0.5]
  """
  return _base.make('gramian', lambda G, state, *, present, **_: (_equal_projections(G, present), state))


def imtl(optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """IMTL: loss scales as in `imtl_l`, then equal projections as in `imtl_g` on the gradients of the scaled losses.

  w_t = exp(s_t) v_t, v the weights of `imtl_g` on the rows exp(s_t) g_t.

  Args:
    optimizer: of s, None: `optax.adam(1e-3)`.

  Returns:
    A balancer of level gramian.

  Departure: heads are not scaled by exp(s_t): at this level they get their own gradients.

  Needs: losses > 0; gradients that are linearly independent.
  Helps: scales of losses and of gradients at once.
  Breaks: opposed or nearly dependent gradients: large or negative weights.

  References: Liu et al., Towards Impartial Multi-task Learning, 2021, https://openreview.net/forum?id=IMPnRXEWpvr

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.imtl(), jnp.array([[4.0, 0.0], [0.0, 4.0]])).weights)
  [0.5 0.5]
  """
  init, scales = _learned('imtl', optimizer)

  def update(G, state, *, losses, present, **_):
    scale, state = scales(losses, state)
    return scale * _equal_projections(G * scale[:, None] * scale[None, :], present), state

  return _base.make('gramian', update, init)


def _learned(method, optimizer):
  _base.check_optimizer(method, optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def init(example):
    s = _base.zeros(example)
    return IMTLState(s, _base.init_per_task(optimizer, s))

  def scales(l, state):
    s = state.log_scale
    gradient = jnp.exp(s) * l - 1
    return jnp.exp(s), IMTLState(*_base.update_per_task(optimizer, gradient, state.opt_state, s))

  return init, scales


def _equal_projections(G, present):
  C, norms = linalg.correlations(G, present)
  w = _base.divide(linalg.pseudo_solve(C, jnp.where(norms > 0, 1.0, 0.0).astype(C.dtype)), norms)
  return _base.divide(w, jnp.sum(w))
