"""Fast adaptive multitask optimisation."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class FAMOState(NamedTuple):
  """Logits f[T], their optimiser's state, the last losses f[T], and the number int32[T] of each task's last update.

  Entries of absent tasks stay as they are, so those who were present are those with the highest number.
  """

  logits: Array
  opt_state: PyTree
  losses: Array
  seen: Array


def famo(learning_rate: float = 0.025, weight_decay: float = 1e-3) -> Balancer:
  """Decreases all losses at an equal relative rate, at the cost of loss values only.

  z = softmax(logits), D = l + 1e-8, w_t = z_t / (D_t sum_s z_s / D_s). After the step, with the losses l' of the same
  batch: delta = log D - log D', logits follow Adam on the softmax-VJP of delta, z (delta - z.delta), plus L2 decay.

  Args:
    learning_rate: of the logits.
    weight_decay: L2 within Adam (added to the gradient before the moments), not decoupled.

  Returns:
    A balancer of level losses that wants `observe`.

  Departure: lower bounds of the losses are 0, and the shared gradient is not clipped (put `optax.clip_by_global_norm`
  in the optimiser for that).

  Needs: losses > 0; a second forward pass.
  Helps: many tasks: equal relative progress without task gradients.
  Breaks: losses whose least value is far from 0; too much weight_decay misses the front.

  References: Liu et al., FAMO: Fast Adaptive Multitask Optimization, 2023, https://arxiv.org/abs/2306.03792

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.famo(), jnp.eye(2), jnp.array([1.0, 4.0])).weights.round(3))
  [0.8 0.2]
  """
  at_least_0 = 'a number >= 0'
  _base.check_number('famo', 'learning_rate', learning_rate, at_least_0, lambda x: x >= 0)
  _base.check_number('famo', 'weight_decay', weight_decay, at_least_0, lambda x: x >= 0)
  optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))

  def floored(losses):
    return _base.positive(losses + 1e-8)

  def init(example):
    logits = _base.zeros(example)
    opt_state = _base.init_per_task(optimizer, logits)
    return FAMOState(logits, opt_state, jnp.ones_like(logits), jnp.zeros(logits.shape, jnp.int32))

  def update(l, state, *, present, **_):
    ratio = _base.softmax(state.logits, present) / floored(l)
    return _base.divide(ratio, jnp.sum(ratio)), state._replace(
      losses=l, seen=jnp.full_like(state.seen, jnp.max(state.seen) + 1)
    )

  def observe(losses, state):
    present = state.seen == jnp.max(state.seen)
    delta = jnp.log(floored(state.losses)) - jnp.log(floored(jnp.where(present, losses, 1)))
    z = _base.softmax(state.logits, present)
    gradient = z * (delta - jnp.sum(z * jnp.where(present, delta, 0)))
    moved = _base.update_per_task(optimizer, gradient.astype(state.logits.dtype), state.opt_state, state.logits)
    logits, opt_state = _base.hold(present, moved, (state.logits, state.opt_state))
    return state._replace(logits=logits, opt_state=opt_state)

  return _base.make('losses', update, init, observe)
