"""Loss discrepancy control."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class LDCState(NamedTuple):
  """Logits f[T] and their optimiser's state, one per task."""

  logits: Array
  opt_state: PyTree


def ldc_mtl(penalty: float = 0.1, optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """Weights and model move together down one objective that punishes differences between weighted losses.

  s = sigmoid(logits), objective s.l / stop_gradient(sum s) + penalty sum_t |s_t l_t - s_t+1 l_t+1| over neighbouring
  tasks; w is its gradient with respect to l, the logits step down its gradient with respect to them after use.

  Args:
    penalty: >= 0.
    optimizer: of the logits, which start at 1; None: `optax.adam(1e-3)`.

  Returns:
    A balancer of level losses. Tasks are neighbours in the order of the task axis.

  Departure: one logit per task in place of a router network on the features (as the authors do for many tasks), and
  losses are not normalised beforehand.

  Needs: losses on one scale.
  Helps: keeps weighted losses together for the price of one backward pass.
  Breaks: losses of unlike scale; the order of the tasks matters.

  References: Xiao et al., LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control, 2025,
  https://arxiv.org/abs/2502.08585

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.ldc_mtl(penalty=0.0), jnp.eye(2), jnp.array([1.0, 2.0])).weights)
  [0.5 0.5]
  """
  _base.check_number('ldc_mtl', 'penalty', penalty, 'a number >= 0', lambda x: x >= 0)
  _base.check_optimizer('ldc_mtl', optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def objective(l, logits, present):
    s = jnp.where(present, jax.nn.sigmoid(logits), 0)
    mean = _base.divide(jnp.sum(s * l), jax.lax.stop_gradient(jnp.sum(s)))
    scaled = (s * l)[jnp.argsort(~present, stable=True)]  # present tasks first, in order
    pairs = jnp.arange(1, len(l)) < jnp.sum(present)
    return mean + penalty * jnp.sum(jnp.where(pairs, jnp.abs(scaled[1:] - scaled[:-1]), 0))

  def init(example):
    logits = _base.zeros(example, 1.0)
    return LDCState(logits, _base.init_per_task(optimizer, logits))

  def update(l, state, *, present, **_):
    w, gradient = jax.grad(objective, argnums=(0, 1))(l, state.logits.astype(l.dtype), present)
    moved = _base.update_per_task(optimizer, gradient.astype(state.logits.dtype), state.opt_state, state.logits)
    return w, LDCState(*moved)

  return _base.make('losses', update, init)
