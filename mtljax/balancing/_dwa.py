"""Dynamic weight average."""

from typing import NamedTuple

import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Array, Balancer


class DWAState(NamedTuple):
  """Mean loss of the running epoch and of the two before it, all f[T]; counters int32[T]."""

  mean: Array
  count: Array
  epoch: Array
  last: Array
  before: Array
  finished: Array


def dwa(*, steps_per_epoch: int, temperature: float = 2.0) -> Balancer:
  """Gives more weight to tasks whose loss falls more slowly from epoch to epoch.

  r_t = Lbar_t[e - 1] / Lbar_t[e - 2], w = T softmax(r / temperature); ones in epochs 0 and 1, e = step //
  steps_per_epoch. Lbar_t is the mean over the batches of the epoch in which the task was present; the batch at hand
  enters after use. For a task that missed an epoch, the last two epochs that it was in count.

  Args:
    steps_per_epoch: length of an epoch, >= 1.
    temperature: > 0; large: equal weights.

  Returns:
    A balancer of level losses.

  Needs: steps_per_epoch; acts from the third epoch on.
  Helps: tasks that learn at different speeds.
  Breaks: noisy epochs; scales of losses stay; weights stay near 1 at temperature 2.

  References: Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention, 2019,
  https://arxiv.org/abs/1803.10704

  >>> from mtljax import balancing
  >>> balancer, state = balancing.dwa(steps_per_epoch=1), None
  >>> for step, losses in enumerate(([4.0, 1.0], [2.0, 1.0], [1.0, 1.0])):
  ...   result = balancing.aggregate(balancer, jnp.eye(2), jnp.array(losses), state, step=step)
  ...   state = result.state
  >>> [round(float(x), 3) for x in result.weights]
  [0.876, 1.124]
  """
  steps_per_epoch = _base.check_count('dwa', 'steps_per_epoch', steps_per_epoch, 1)
  _base.check_number('dwa', 'temperature', temperature, 'a number > 0', lambda x: x > 0)

  def init(example):
    zero, none = _base.zeros(example), jnp.zeros(_base.task_count(example), jnp.int32)
    return DWAState(zero, none, none, zero, zero, none)

  def update(l, state, *, present, step, **_):
    epoch = step // steps_per_epoch
    over = (epoch > state.epoch) & (state.count > 0)
    last = jnp.where(over, state.mean, state.last)
    before = jnp.where(over, state.last, state.before)
    finished = state.finished + over
    ratio = jnp.where(finished >= 2, last / _base.positive(before), 1)
    w = jnp.sum(present) * _base.softmax(ratio / temperature, present)
    count = jnp.where(over, 0, state.count) + 1
    mean = jnp.where(over, 0, state.mean)
    mean = mean + (l - mean) / count
    return w, DWAState(mean, count, jnp.broadcast_to(epoch, l.shape), last, before, finished)

  return _base.make('losses', update, init)
