"""Which task of a multi-input batch a step learns from: one after another, or drawn by the size of its data.

A schedule is a function of the step; it has a seed of its own and not that of the run, so that lanes of a comparison,
which are one program, have the same tasks at the same step. Without a schedule every step has a batch of every task.
"""

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError

BLOCK = 1024  # steps that are drawn at once


class Schedule(NamedTuple):
  """Tasks of steps, one a step.

  Attributes:
    order: `({task: number of examples}, block) -> int[BLOCK]`, places in the sorted names of the tasks of the steps
      from block * BLOCK on; a pure function.
    name: for messages.
  """

  order: Callable[[Mapping[str, int], int], np.ndarray]
  name: str

  def turn(self, counts: Mapping[str, int], step: int) -> tuple[str, int]:
    """The task of a step, and how many steps it has had before."""
    block, place = divmod(step, BLOCK)
    order, before = _counted(self, tuple(sorted(counts.items())), block)
    t = int(order[place])
    return sorted(counts)[t], int(before[t] + (order[:place] == t).sum())


@functools.lru_cache(maxsize=64)
def _counted(schedule: Schedule, counts: tuple[tuple[str, int], ...], block: int) -> tuple[np.ndarray, np.ndarray]:
  """The block's tasks, and how many steps every task has had before it."""
  before = np.zeros(len(counts), int)
  for earlier in range(block):
    before = before + np.bincount(_order(schedule, counts, earlier), minlength=len(counts))
  return _order(schedule, counts, block), before


@functools.lru_cache(maxsize=4096)
def _order(schedule, counts, block):
  return schedule.order(dict(counts), block)


def round_robin() -> Schedule:
  """The tasks in turn, in the order of their names.

  >>> schedule = round_robin()
  >>> [schedule.turn({'a': 100, 'b': 10}, step) for step in range(4)]
  [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
  """
  return Schedule(lambda counts, block: (np.arange(BLOCK) + block * BLOCK) % len(counts), 'round_robin')


def sampled(temperature: float = 1.0, *, weights: Mapping[str, float] | None = None, seed: int = 0) -> Schedule:
  """A task drawn at every step, with p_t proportional to n_t^(1 / temperature).

  A temperature of 1 is proportional to the number of examples, `math.inf` uniform, and those between give small tasks
  more than their share.

  Args:
    temperature: at least 1.
    weights: {task: n_t} in place of the numbers of examples.
    seed: of the draws.

  Raises:
    InputError: a temperature below 1, weights that are not positive, a negative seed; when drawn, weights of other
      tasks.

  >>> counts = {'large': 900, 'small': 100}
  >>> def share(schedule): return [schedule.turn(counts, s)[0] for s in range(2000)].count('small') / 2000
  >>> round(share(sampled()), 2), round(share(sampled(2.0)), 2), round(share(sampled(math.inf)), 2)
  (0.1, 0.26, 0.52)

  References: Devlin, Multilingual BERT (2018), https://github.com/google-research/bert/blob/master/multilingual.md;
  Arivazhagan et al., Massively Multilingual Neural Machine Translation in the Wild (2019),
  https://arxiv.org/abs/1907.05019.
  """
  if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not temperature >= 1:
    raise InputError(f'sampled: temperature is {temperature!r}, expected a number of at least 1.')
  if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
    raise InputError(f'sampled: seed is {seed!r}, expected a whole number >= 0.')
  if weights is not None and not all(0 < weight < math.inf for weight in weights.values()):
    raise InputError(f'sampled: weights are {dict(weights)}, expected positive numbers.')

  def order(counts, block):
    names = sorted(counts)
    if weights is not None:
      check_names('sampled: tasks of the batches', names, weights, all_of=False)
    sizes = np.log([float((weights or counts)[name]) for name in names]) / temperature
    shares = np.exp(sizes - sizes.max())
    return np.random.default_rng((seed, block)).choice(len(names), BLOCK, p=shares / shares.sum())

  return Schedule(order, 'sampled')
