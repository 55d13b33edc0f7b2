"""Which task of a multi-input batch a step learns from: in turn, drawn by the size of its data, or by its loss.

A schedule is a function of the step; it has a seed of its own and not that of the run, so that lanes of a comparison,
which are one program, have the same tasks at the same step. Without a schedule every step has a batch of every task.
`by_loss` is a function of the step and of the losses that it was told of, which are kept in the checkpoints.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtljax.arrays import check_names, check_seed
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
  _check('sampled', temperature, weights, seed)

  def order(counts, block):
    names = sorted(counts)
    if weights is not None:
      check_names('sampled: tasks of the batches', names, weights, all_of=False)
    shares = _shares([(weights or counts)[name] for name in names], temperature)
    return np.random.default_rng((seed, block)).choice(len(names), BLOCK, p=shares)

  return Schedule(order, 'sampled')


@dataclasses.dataclass(frozen=True)
class ByLoss:
  """A schedule that hears of the losses of a run: `by_loss` makes it. Every method returns a new one.

  Attributes:
    temperature, weights, uniform, seed: as of `by_loss`.
    start: step from which the shares are those of `losses`.
    losses: {task: running mean of its loss} before `start`.
    before: {task: how many steps it has had} before `start`.
    heard: {task: running mean of its loss} by now.
  """

  temperature: float = 1.0
  weights: tuple[tuple[str, float], ...] = ()
  uniform: float = 0.1
  seed: int = 0
  start: int = 0
  losses: tuple[tuple[str, float], ...] = ()
  before: tuple[tuple[str, int], ...] = ()
  heard: tuple[tuple[str, float], ...] = ()

  MOMENTUM = 0.9  # of the running means
  STATE = ('losses', 'before', 'heard')

  def turn(self, counts: Mapping[str, int], step: int) -> tuple[str, int]:
    """The task of a step from `start` on, and how many steps it has had before.

    Raises:
      InputError: an earlier step, whose losses are not kept.
    """
    if step < self.start:
      raise InputError(f'step: found {step} with the schedule by_loss, expected {self.start} or later.')
    names, place = sorted(counts), step - self.start
    drawn = self._drawn(names, place + 1)
    task = names[drawn[place]]
    return task, dict(self.before).get(task, 0) + int((drawn[:place] == drawn[place]).sum())

  def shares(self, names: Sequence[str]) -> np.ndarray:
    """p f[T]; a task that has not been heard of counts as the hardest one."""
    losses, weights = dict(self.losses), dict(self.weights) or dict.fromkeys(names, 1.0)
    check_names('by_loss: tasks of the batches', names, weights, all_of=False)
    found = {name: max(weights[name] * losses[name], 1e-30) for name in names if name in losses}
    hardest = max(found.values(), default=1.0)
    shares = _shares([found.get(name, hardest) for name in names], self.temperature)
    return (1 - self.uniform) * shares + self.uniform / len(names)

  def hear(self, losses: Mapping[str, float]) -> 'ByLoss':
    """After a step: the losses of the tasks that it had, of which those that are not finite say nothing."""
    heard = dict(self.heard)
    for name, loss in losses.items():
      if math.isfinite(loss):
        heard[name] = self.MOMENTUM * heard.get(name, loss) + (1 - self.MOMENTUM) * float(loss)
    return dataclasses.replace(self, heard=tuple(sorted(heard.items())))

  def renew(self, counts: Mapping[str, int], step: int) -> 'ByLoss':
    """From `step` on the shares are those of the losses that were heard by now."""
    names, before = sorted(counts), dict(self.before)
    for t, count in enumerate(np.bincount(self._drawn(names, step - self.start), minlength=len(names))):
      before[names[t]] = before.get(names[t], 0) + int(count)
    return dataclasses.replace(self, start=step, losses=self.heard, before=tuple(sorted(before.items())))

  def _drawn(self, names: Sequence[str], steps: int) -> np.ndarray:
    """Places in `names` of the tasks of so many steps from `start` on."""
    return _draws(self.seed, self.start, tuple(self.shares(names)), -(-steps // BLOCK))[:steps]

  def state(self) -> dict:
    """What a checkpoint keeps: numbers by name."""
    return {'start': self.start, **{name: dict(getattr(self, name)) for name in self.STATE}}

  def restore(self, state) -> 'ByLoss':
    """With what a checkpoint kept.

    Raises:
      InputError: another thing than `state` returns.
    """
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
    real = lambda value: isinstance(value, float | int) and not isinstance(value, bool)
    kinds = {'losses': real, 'before': whole, 'heard': real}
    fits = isinstance(state, Mapping) and set(state) == {'start', *kinds} and whole(state['start'])
    if not fits or not all(isinstance(state[k], Mapping) and all(map(f, state[k].values())) for k, f in kinds.items()):
      raise InputError(f"schedule: found the state {state!r}, expected 'start' and {list(kinds)}, numbers by task.")
    kept = {name: tuple(sorted(state[name].items())) for name in kinds}
    return dataclasses.replace(self, start=state['start'], **kept)


def by_loss(
  temperature: float = 1.0,
  *,
  weights: Mapping[str, float] | None = None,
  uniform: float = 0.1,
  seed: int = 0,
) -> ByLoss:
  """A task drawn at every step, hard ones more often: p_t = (1 - u) l_t^(1 / temperature) / sum + u / T.

  l_t is the running mean of the task's loss (momentum 0.9 over the steps that it had). The shares are renewed where the
  host looks at the losses anyway, at the lines of the log (`log_every`), so no step waits for them; up to the first
  one they are uniform. What was heard is kept in the checkpoints, and a resumed run draws the same tasks.

  Not for `mtljax compare`, whose runs are one program with one order of tasks, nor for several processes, several steps
  per call and `data.Stream`, which reads ahead; each is refused by name.

  Args:
    temperature: at least 1; `math.inf` is uniform.
    weights: {task: factor on its loss}, where losses have scales of their own: 1 / its first loss, say; None is 1.
    uniform: u in [0, 1], so that no task is left out for long.
    seed: of the draws.

  Raises:
    InputError: a temperature below 1, weights that are not positive, a share outside [0, 1], a negative seed; when
      drawn, weights of other tasks.

  >>> schedule = by_loss(uniform=0.0).hear({'easy': 0.5, 'hard': 1.5}).renew({'easy': 100, 'hard': 100}, 10)
  >>> schedule.shares(('easy', 'hard')).round(2).tolist()
  [0.25, 0.75]

  Reference: Zhang et al., Worst-Case-Aware Curriculum Learning for Zero and Few Shot Transfer (2020),
  https://arxiv.org/abs/2009.11138, whose sampling in proportion to the loss this is; temperature and u are ours.
  """
  _check('by_loss', temperature, weights, seed)
  if isinstance(uniform, bool) or not isinstance(uniform, numbers.Real) or not 0 <= uniform <= 1:
    raise InputError(f'by_loss: uniform is {uniform!r}, expected a number from 0 to 1.')
  return ByLoss(temperature, tuple(sorted((weights or {}).items())), uniform, seed)


@functools.lru_cache(maxsize=4)
def _draws(seed: int, start: int, shares: tuple[float, ...], blocks: int) -> np.ndarray:
  draw = lambda block: np.random.default_rng((seed, start, block)).choice(len(shares), BLOCK, p=shares)
  return np.concatenate([np.zeros(0, int), *map(draw, range(blocks))])


def _shares(sizes: Sequence[float], temperature: float) -> np.ndarray:
  """Proportional to sizes^(1 / temperature)."""
  logs = np.log([float(size) for size in sizes]) / temperature
  shares = np.exp(logs - logs.max())
  return shares / shares.sum()


def _check(argument, temperature, weights, seed):
  if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not temperature >= 1:
    raise InputError(f'{argument}: temperature is {temperature!r}, expected a number of at least 1.')
  check_seed(f'{argument} seed', seed)
  if weights is not None and not all(0 < weight < math.inf for weight in weights.values()):
    raise InputError(f'{argument}: weights are {dict(weights)}, expected positive numbers.')
