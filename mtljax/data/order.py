"""Which examples a step sees: a function of (seed, step), the same on every machine, with no state to keep."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError, PyTree
from mtljax.data.buckets import Buckets
from mtljax.data.schedules import ByLoss, Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """Rows of batches. Every epoch of a task is a permutation of its own; what fills no batch at its end is left out.

  Attributes:
    counts: {task: number of examples}, or {'': number} for a single input.
    batch_size: examples per batch (and per task).
    shuffle: False keeps the order of the examples.
    schedule: of multi-input steps: which task each has; None gives every step a batch of all.
    buckets: {task: Buckets}, of any of the tasks.
    shard: (process, number of processes): which part of every batch the rows are.

  Raises:
    InputError: fewer examples than a batch; a schedule for a single input; buckets of other tasks or of another number
      of examples; a batch size that the processes do not divide.
  """

  counts: Mapping[str, int]
  batch_size: int
  shuffle: bool = True
  schedule: Schedule | ByLoss | None = None
  buckets: Mapping[str, Buckets] = dataclasses.field(default_factory=dict)
  shard: tuple[int, int] = (0, 1)

  def __post_init__(self):
    check_batch_size(self.batch_size)
    for name, count in self.counts.items():
      if count < self.batch_size:
        raise InputError(
          f'batch_size: found {self.batch_size}, expected at most {count}, the number of examples{of_task(name)}.'
        )
    if self.schedule is not None and '' in self.counts:
      raise InputError('schedule: found one for a single input, expected examples {task: {...}}.')
    check_names('buckets', self.buckets, self.counts, all_of=False)
    for name, part in self.buckets.items():
      if len(part.lengths) != self.counts[name]:
        raise InputError(
          f'buckets{of_task(name)}: found {len(part.lengths)} lengths, expected {self.counts[name]}, as examples.'
        )
    place, number = self.shard
    if not 0 <= place < number or self.batch_size % number:
      raise InputError(
        f'shard: found {self.shard} and batch_size {self.batch_size}, expected (process, processes) with a batch size '
        'that the processes divide.'
      )

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in an epoch; multi-input: of the task with the most examples, with a schedule of all tasks."""
    whole = [sum(len(rows) // self.batch_size for _, rows in self._groups(name)) for name in self.counts]
    return max(whole) if self.schedule is None else sum(whole)

  def rows(self, seed: int, step: int) -> tuple[PyTree, dict[str, int]]:
    """(int32[B], or {task: int32[B]} of the tasks that the step has; {task: length} of those with buckets).

    With a shard B is the number of its rows, and the lengths are those of the whole batch.

    Raises:
      InputError: a negative seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
      raise InputError(f'seed: found {seed!r}, expected a whole number >= 0.')
    turns = {name: int(step) for name in self.counts}
    if self.schedule is not None:
      turns = dict([self.schedule.turn(self.counts, int(step))])
    rows, lengths = {}, {}
    for name, turn in turns.items():
      whole, length = self._rows(int(seed), turn, name)
      rows[name] = whole[self._part]
      if length is not None:
        lengths[name] = length
    return (rows[''] if '' in rows else rows), lengths

  @property
  def _part(self) -> slice:
    place, number = self.shard
    size = self.batch_size // number
    return slice(place * size, (place + 1) * size)

  def first(self) -> PyTree:
    """The first rows of all tasks, whatever the schedule."""
    rows = {name: np.arange(self.batch_size, dtype=np.int32) for name in self.counts}
    return rows.get('', rows)

  def _groups(self, name) -> list[tuple[int | None, np.ndarray]]:
    """[(length of the batches, rows)] of a task: one without a length where there are no buckets."""
    return _grouped(self.buckets.get(name), self.counts[name], self.batch_size)

  def _rows(self, seed, turn, name):
    groups = self._groups(name)
    whole = [len(rows) // self.batch_size for _, rows in groups]
    epoch, place = divmod(turn, sum(whole))
    group, place = _place(tuple(whole), epoch, place, name) if len(groups) > 1 else (0, place)
    length, rows = groups[group]
    where = slice(place * self.batch_size, (place + 1) * self.batch_size)
    if not self.shuffle:
      return rows[where], length
    order = _permutation(seed, epoch, f'{name}/{group}' if len(groups) > 1 else name, len(rows))[where]
    return (order if length is None else rows[order]), length


@functools.lru_cache(maxsize=32)  # some seeds times some tasks
def _permutation(seed: int, epoch: int, name: str, count: int) -> np.ndarray:
  task = (zlib.crc32(name.encode()),) if name else ()  # tasks of one length go through different orders
  order = np.random.default_rng((seed, epoch, *task)).permutation(count).astype(np.int32)
  order.flags.writeable = False
  return order


@functools.lru_cache(maxsize=64)
def _grouped(buckets: Buckets | None, count: int, batch_size: int) -> list[tuple[int | None, np.ndarray]]:
  if buckets is None:
    return [(None, np.arange(count, dtype=np.int32))]
  return buckets.of_size(batch_size)


def _place(whole: tuple[int, ...], epoch: int, place: int, name: str) -> tuple[int, int]:
  """Group of a batch of the epoch, and which of the group's batches it is; the groups come in random order."""
  order = np.repeat(np.arange(len(whole)), whole)[_permutation(0, epoch, f'{name}/', sum(whole))]
  return int(order[place]), int((order[:place] == order[place]).sum())


def check_batch_size(batch_size) -> None:
  """Raises an InputError unless it is a whole number of at least 1."""
  if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
    raise InputError(f'batch_size: found {batch_size!r}, expected a whole number of at least 1.')


def of_task(name: str) -> str:
  """For messages; nothing for a single input, whose name is ''."""
  return f' of task {name!r}' if name else ''
