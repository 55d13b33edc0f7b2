"""Balancers made of another balancer: on log losses, on unit rows, averaged, seldom, later."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, BalancerState

ALL = ('losses', 'gramian', 'jacobian')
WEIGHTS = ('losses', 'gramian')


def log_losses(inner: Balancer) -> Balancer:
  """Any method on the logarithms of the losses (log-MGDA, log-CAGrad, ...): the scale of a loss drops out.

  The inner method sees log l and the rows g_t / l_t; its weights v become w_t = v_t / l_t.

  Args:
    inner: of level losses, gramian or jacobian.

  Returns:
    A balancer of the same level, for losses > 0.

  Needs: losses > 0.
  Helps: units drop out, for any method.
  Breaks: a nearly solved task gets the largest gradient.

  References: Navon et al., Multi-Task Learning as a Bargaining Game, 2022, https://arxiv.org/abs/2202.01017

  >>> from mtljax import balancing
  >>> balancer = balancing.log_losses(balancing.equal())
  >>> print(balancing.aggregate(balancer, jnp.eye(2), jnp.array([1.0, 4.0])).weights)
  [1.   0.25]
  """
  _base.check_balancer('log_losses', inner, ALL, 'it changes losses and rows')

  def update(statistic, state, *, losses, **rest):
    scale = 1 / _base.positive(losses)
    logs = jnp.log(_base.positive(losses))
    if inner.level == 'losses':
      statistic = logs
    elif inner.level == 'gramian':
      statistic = statistic * scale[:, None] * scale[None, :]
    else:
      statistic = linalg.scale_rows(scale, statistic)
    result, state = inner.update(statistic, state, losses=logs, **rest)
    return (result if inner.level == 'jacobian' else result * scale), state

  def observe(losses, state):
    return inner.observe(jnp.log(_base.positive(_base.as_float(losses))), state)

  return _base.make(inner.level, update, inner.init, observe if inner.observe else None)


def normalized(inner: Balancer) -> Balancer:
  """Any gradient method on rows of unit norm.

  The inner method sees g_t / |g_t|; its weights v become w_t = v_t / |g_t|. A zero gradient stays zero.

  Args:
    inner: of level gramian or jacobian.

  Returns:
    A balancer of the same level.

  Needs: an inner method on gradients.
  Helps: norms drop out, for any method.
  Breaks: a solved task: the noise of its gradient counts in full.

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.normalized(balancing.mgda()), jnp.array([[4.0, 0.0], [0.0, 2.0]])).weights)
  [0.125 0.25 ]
  """
  _base.check_balancer('normalized', inner, ('gramian', 'jacobian'), 'a loss has no gradient to normalise')

  def update(statistic, state, *, present, **rest):
    if inner.level == 'gramian':
      C, norms = linalg.correlations(statistic, present)
      result, state = inner.update(C, state, present=present, **rest)
      return _base.divide(result, norms), state
    norms = linalg.row_norms(statistic)
    rows = linalg.scale_rows(_base.divide(jnp.ones_like(norms), norms), statistic)
    return inner.update(rows, state, present=present, **rest)

  return _base.make(inner.level, update, inner.init, inner.observe)


class EMAState(NamedTuple):
  """The inner state, the averaged weights f[T], and whether they have begun, bool[T]."""

  inner: BalancerState
  weights: Array
  seen: Array


def ema(inner: Balancer, decay: float = 0.9) -> Balancer:
  """Weights averaged over steps (CR-MOGM), so that noisy gradients do not make them jump.

  w <- decay w + (1 - decay) v with the inner weights v; the first output of a task is v itself.

  Args:
    inner: of level losses or gramian.
    decay: in [0, 1]. May be traced.

  Returns:
    A balancer of the same level.

  Needs: an inner method with weights.
  Helps: weights that jump from batch to batch.
  Breaks: lags; what the inner method promises for a step is lost.

  References: Zhou et al., On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond, 2022,
  https://proceedings.neurips.cc/paper_files/paper/2022/file/f91bd64a3620aad8e70a27ad9cb3ca57-Paper-Conference.pdf

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.ema(balancing.equal()), jnp.eye(2)).weights)
  [1. 1.]
  """
  _base.check_balancer('ema', inner, WEIGHTS, 'only weights can be averaged')
  _base.check_number('ema', 'decay', decay, 'a number in [0, 1]', lambda x: (x >= 0) & (x <= 1))

  def init(example):
    w = _base.zeros(example)
    return EMAState(inner.init(example), w, jnp.zeros(w.shape, bool))

  def update(statistic, state, *, present, **rest):
    v, inner_state = inner.update(statistic, state.inner, present=present, **rest)
    w = jnp.where(state.seen, decay * state.weights + (1 - decay) * v, v)
    return w, EMAState(inner_state, w, state.seen | present)

  return _base.make(inner.level, update, init, _observe_inner(inner))


class EveryState(NamedTuple):
  """The inner state, its last weights f[T], who has any, bool[T], whether they were new at each task's last update,
  bool[T], and the number of that update, int32[T]."""

  inner: BalancerState
  weights: Array
  known: Array
  fresh: Array
  seen: Array


def every(inner: Balancer, k: int = 10) -> Balancer:
  """Weights computed anew every k steps, and when a task turns up that has none.

  Saves the solver, not the backward passes.

  Args:
    inner: of level losses or gramian.
    k: >= 1.

  Returns:
    A balancer of the same level.

  Needs: an inner method with weights.
  Helps: a solver that is slow against the step (many tasks, small trunk).
  Breaks: weights are up to k steps old; backward passes stay.

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.every(balancing.equal(), k=4), jnp.eye(2)).weights)
  [1. 1.]
  """
  _base.check_balancer('every', inner, WEIGHTS, 'only weights can be used again')
  k = _base.check_count('every', 'k', k, 1)

  def init(example):
    w = _base.zeros(example)
    no = jnp.zeros(w.shape, bool)
    return EveryState(inner.init(example), w, no, no, jnp.zeros(w.shape, jnp.int32))

  def update(statistic, state, *, present, step, **rest):
    due = (step % k == 0) | jnp.any(present & ~state.known)

    def renew():
      w, inner_state = inner.update(statistic, state.inner, present=present, step=step, **rest)
      return inner_state, jnp.where(present, w, state.weights).astype(state.weights.dtype)

    inner_state, w = jax.lax.cond(due, renew, lambda: (state.inner, state.weights))
    fresh = jnp.broadcast_to(due, present.shape)
    seen = jnp.full_like(state.seen, jnp.max(state.seen) + 1)
    return w, EveryState(inner_state, w, state.known | present, fresh, seen)

  def observe(losses, state):
    new = inner.observe(losses, state.inner)
    acts = state.fresh & (state.seen == jnp.max(state.seen))  # absent tasks keep the numbers of an earlier update
    return state._replace(inner=_base.hold(acts, new, state.inner))

  return _base.make(inner.level, update, init, observe if inner.observe else None)


def warmup(inner: Balancer, steps: int = 100) -> Balancer:
  """Equal weights for a number of steps, then the inner method, which starts afresh at that time.

  Args:
    inner: of level losses, gramian or jacobian.
    steps: >= 0.

  Returns:
    A balancer of the same level.

  Needs: any inner method.
  Helps: methods that take their reference from the first steps.
  Breaks: the direction may change length where it ends.

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.warmup(balancing.mgda(), steps=5), jnp.eye(2)).weights)
  [1. 1.]
  """
  _base.check_balancer('warmup', inner, ALL, 'the others make steps of their own')
  steps = _base.check_count('warmup', 'steps', steps)

  def update(statistic, state, *, losses, step, **rest):
    def equally():
      if inner.level == 'jacobian':
        return jax.tree.map(_base.add_rows, statistic), state
      return jnp.ones_like(losses), state

    later = lambda: inner.update(statistic, state, losses=losses, step=step, **rest)
    return jax.lax.cond(step < steps, equally, later)

  return _base.make(inner.level, update, inner.init, inner.observe)


def _observe_inner(inner):
  if inner.observe is None:
    return None
  return lambda losses, state: state._replace(inner=inner.observe(losses, state.inner))
