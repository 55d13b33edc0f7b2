"""Smooth Tchebycheff scalarisation."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Array, Balancer


def stch(mu: float = 1.0, reference: Any = None) -> Balancer:
  """A smooth maximum of the losses: the worst task counts most.

  Objective mu logsumexp((l - reference) / (T mu)); w = softmax((l - reference) / (T mu)) / T.

  Args:
    mu: > 0; small: nearly the maximum, large: equal weights. May be traced.
    reference: f[T], the ideal losses; None: 0.

  Returns:
    A balancer of level losses.

  Needs: losses on one scale; ideal losses where known.
  Helps: the worst task counts; reaches non-convex parts of the front.
  Breaks: losses of unlike scale: the largest takes all, more so with small mu.

  References: Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, 2024,
  https://arxiv.org/abs/2402.19078

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.stch(), jnp.eye(2), jnp.array([1.0, 1.0])).weights)
  [0.25 0.25]
  """
  _base.check_number('stch', 'mu', mu, 'a number > 0', lambda x: x > 0)
  if reference is not None:
    expected = 'None or finite numbers, one per task'
    _base.check_number('stch', 'reference', reference, expected, lambda x: x == x, scalar=False)

  def update(l, state, *, present, **_):
    if reference is not None:
      _base.check_length('stch: reference', reference, len(l))
      l = l - jnp.asarray(reference, l.dtype)
    share = _base.preference_weights(None, present, l.dtype)
    return share * _base.softmax(l * share / mu, present), state

  return _base.make('losses', update)


class STCHState(NamedTuple):
  """Mean loss of the warm-up f[T] and the number of batches in it int32[T]."""

  nadir: Array
  count: Array


def stch_nadir(mu: float = 1.0, warmup_steps: int = 400) -> Balancer:
  """Smooth Tchebycheff scalarisation of the logarithms of the losses relative to their mean in a warm-up.

  While step < warmup_steps the sum of log l, w_t = 1 / l_t; the nadir is the mean loss of that time. Then
  T mu logsumexp(log(l / nadir) / mu), w_t = T softmax(log(l / nadir) / mu)_t / l_t.

  Args:
    mu: > 0.
    warmup_steps: the paper takes four epochs.

  Returns:
    A balancer of level losses, for losses > 0. A task that was absent from the whole warm-up takes its present loss
    as nadir.

  Departure: the form of LibMTL, with steps for epochs.

  Needs: losses > 0; a warm-up.
  Helps: the worst task, relative to its own start, counts.
  Breaks: an odd warm-up stays for the whole run; losses near 0.

  References: Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, 2024,
  https://arxiv.org/abs/2402.19078

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.stch_nadir(), jnp.eye(2), jnp.array([1.0, 4.0])).weights)
  [1.   0.25]
  """
  _base.check_number('stch_nadir', 'mu', mu, 'a number > 0', lambda x: x > 0)
  warmup_steps = _base.check_count('stch_nadir', 'warmup_steps', warmup_steps)

  def init(example):
    return STCHState(_base.zeros(example), jnp.zeros(_base.task_count(example), jnp.int32))

  def update(l, state, *, present, step, **_):
    warm = step < warmup_steps
    count = state.count + warm
    nadir = state.nadir + jnp.where(warm, (l - state.nadir) / jnp.maximum(count, 1), 0)
    logs = jnp.log(_base.positive(l)) - jnp.log(_base.positive(jnp.where(count > 0, nadir, l)))
    later = jnp.sum(present) * _base.softmax(logs / mu, present)
    return jnp.where(warm, 1, later) / _base.positive(l), STCHState(nadir, count)

  return _base.make('losses', update, init)
