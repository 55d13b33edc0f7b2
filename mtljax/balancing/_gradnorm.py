"""Gradient normalisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class GradNormState(NamedTuple):
  """Logits f[T], their optimiser's state, the losses of each task's first step f[T] and whether it was, bool[T]."""

  logits: Array
  opt_state: PyTree
  first: Array
  seen: Array


def gradnorm(alpha: float = 1.5, optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """Learned weights that bring the norms of the weighted gradients together, more so for tasks that lag.

  w = T softmax(logits), n_t = w_t |g_t|, r = (l / l_first) / mean(l / l_first); the logits step down
  sum_t |n_t - stop_gradient(mean(n) r_t^alpha)|. w is that before the step.

  Args:
    alpha: >= 0, how strongly lagging tasks are favoured.
    optimizer: of the logits, None: `optax.adam(1e-3)`. It runs task by task.

  Returns:
    A balancer of level gramian.

  Departure: softmax in place of renormalised weights; norms over all shared parameters, not the last shared layer
  (`at='features'` comes nearer to the paper); l_first is the loss of the first batch.

  Needs: losses > 0; a tuned alpha.
  Helps: gradients of unlike norm; tasks that learn at different speeds.
  Breaks: an odd first batch sets the reference; slow with a small rate.

  References: Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks,
  2018, https://arxiv.org/abs/1711.02257

  >>> from mtljax import balancing
  >>> result = balancing.aggregate(balancing.gradnorm(optimizer=optax.sgd(1.0)), jnp.array([[3.0, 0.0], [0.0, 1.0]]))
  >>> print(result.weights, result.state.logits)
  [1. 1.] [-2.  2.]
  """
  _base.check_number('gradnorm', 'alpha', alpha, 'a number >= 0', lambda x: x >= 0)
  _base.check_optimizer('gradnorm', optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def init(example):
    logits = _base.zeros(example)
    seen = jnp.zeros(logits.shape, bool)
    return GradNormState(logits, _base.init_per_task(optimizer, logits), jnp.ones_like(logits), seen)

  def update(G, state, *, losses, present, **_):
    norms = jnp.sqrt(jnp.diagonal(G))
    first = jnp.where(state.seen, state.first, losses)
    ratio = jnp.maximum(_base.divide(losses, first), 0)
    rate = _base.divide(ratio, _base.mean(ratio, present)) ** alpha
    weights = lambda logits: jnp.sum(present) * _base.softmax(logits, present)

    def objective(logits):
      n = weights(logits) * norms
      return jnp.sum(jnp.where(present, jnp.abs(n - jax.lax.stop_gradient(_base.mean(n, present) * rate)), 0))

    gradient = jax.grad(objective)(state.logits)
    moved = _base.update_per_task(optimizer, gradient, state.opt_state, state.logits)
    return weights(state.logits), GradNormState(*moved, first, state.seen | present)

  return _base.make('gramian', update, init)
