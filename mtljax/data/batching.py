"""Batches as a function of (seed, step), gathered on the device: nothing to save, nothing to restore."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.arrays import check_names, expand_to, path_label
from mtljax.base import Batch, InputError, PyTree
from mtljax.data.buckets import Buckets
from mtljax.data.order import Order, check_batch_size
from mtljax.data.schedules import ByLoss, Schedule

KEYS = ('inputs', 'labels', 'mask')  # of examples, as of a batch


class Draw(NamedTuple):
  """What the host says of a batch; small arrays, to be stacked for lanes.

  Attributes:
    rows: which examples, int32[B], or {task: int32[B]} of the tasks that a multi-input step has.
    at: uint32[2], seed and step.
    places: {} or, of tasks with buckets, {task: int32[L]}: its shape says how long the batch is.
  """

  rows: PyTree
  at: np.ndarray
  places: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
  """Random batches of examples that live on the device.

  Every epoch is a permutation of its own; what fills no batch at its end is left out. With an input per task
  (multi-input) every task runs through its own epochs, whatever the others' length. The arrays go to the device once;
  in a compiled step hand them in as an argument, so that they are no constants of the program:

  >>> examples = {'inputs': np.arange(6.0), 'labels': {'a': np.arange(6)}}
  >>> train = Batches(examples, batch_size=2)
  >>> gather = jax.jit(train.gather)
  >>> batch = gather(train.examples, train.draw(seed=0, step=4))
  >>> batch['inputs'].shape, train.steps_per_epoch
  ((2,), 3)

  Attributes:
    examples: `{'inputs': x, 'labels': {task: y}, 'mask': {task: m}}`, mask optional, or multi-input
      `{task: {'inputs', 'labels', 'mask'}}`; leaves lead with the number of examples.
    batch_size: examples per batch (and per task).
    shuffle: False keeps the order of the examples.
    transform: `(key, batch) -> batch`, pure, traced into the step that gathers the batch (augmentation); the key is a
      function of (seed, step).
    schedule: multi-input only: which task a step has (`data.schedules`); None gives every step a batch of all.
    buckets: `data.Buckets` of the examples, or {task: Buckets} of some tasks of multi-input ones: batches of examples
      of like length, cut to the longest of the bucket. Which bucket a step has is the same for all seeds.
    shard: (process, number of processes): the batch has the rows of this process, `batch_size / number` of them; all
      shards together are the batch of (0, 1), but for what a transform does. Training sets it.

  Raises:
    InputError: examples of another shape, none of them, or fewer than a batch; a schedule for a single input; buckets
      of other tasks or of another number of examples; a batch size that the processes do not divide.
  """

  examples: PyTree
  batch_size: int
  shuffle: bool = True
  transform: Callable[[jax.Array, Batch], Batch] | None = None
  schedule: Schedule | ByLoss | None = None
  buckets: Buckets | Mapping[str, Buckets] | None = None
  shard: tuple[int, int] = (0, 1)

  def __post_init__(self):
    if self.transform is not None and not callable(self.transform):
      raise InputError(f'transform: found {self.transform!r}, expected a function (key, batch) -> batch.')
    counts = count_examples(self.examples)
    order = Order(counts, self.batch_size, self.shuffle, self.schedule, self._buckets, self.shard)
    object.__setattr__(self, '_order', order)
    object.__setattr__(self, 'examples', jax.tree.map(jnp.asarray, self.examples))

  @property
  def _buckets(self):
    return self.buckets if isinstance(self.buckets, Mapping) else {'': self.buckets} if self.buckets else {}

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in an epoch; multi-input: of the task with the most examples, with a schedule of all tasks."""
    return self._order.steps_per_epoch

  def draw(self, seed: int, step: int) -> Draw:
    """What a step sees; numpy, the same on every machine.

    Raises:
      InputError: a negative seed.
    """
    rows, lengths = self._order.rows(seed, step)
    places = {name: np.arange(length, dtype=np.int32) for name, length in lengths.items()}
    return Draw(rows, stamp(seed, step), places)

  def indices(self, seed: int, step: int) -> PyTree:
    """Which examples a step sees: int32[B], or {task: int32[B]} for multi-input."""
    return self.draw(seed, step).rows

  @staticmethod
  def take(examples: PyTree, indices: PyTree) -> Batch:
    """Gathers the rows; pure, to be traced with the examples as an argument."""

    def rows(examples, indices):
      return jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=0, mode='clip'), examples)

    if isinstance(indices, Mapping):
      return {name: rows(examples[name], index) for name, index in indices.items()}
    return rows(examples, indices)

  def gather(self, examples: PyTree, draw: Draw) -> Batch:
    """The batch of a draw: its rows, cut and transformed; pure, to be traced with the examples as an argument."""
    batch = self.take(examples, draw.rows)
    for name, places in draw.places.items():
      part = self._buckets[name].cut(batch[name] if name else batch, places.shape[-1])
      batch = {**batch, name: part} if name else part
    return transformed(self.transform, batch, draw.at)

  def example(self) -> Batch:
    """A batch of all tasks, for shapes: the first examples, of full length."""
    return self._gather(self.examples, Draw(self._order.first(), stamp(0, 0), {}))

  def select(self, names: Iterable[str]) -> 'Batches':
    """The batches of some of the tasks."""
    kept = select_tasks(self.examples, names)
    buckets = self.buckets
    if isinstance(buckets, Mapping):
      buckets = {name: part for name, part in buckets.items() if name in kept}
    return dataclasses.replace(self, examples=kept, buckets=buckets)

  def hear(self, step: int, losses: Mapping[str, float], renew: bool) -> 'Batches':
    """With what a schedule by loss learns of the step (counted as done), whose tasks had these losses.

    Args:
      renew: whether the shares are those of the losses heard, from here on.
    """
    schedule = self.schedule.hear(losses)
    return self.follow(schedule.renew(self._order.counts, step) if renew else schedule)

  def follow(self, schedule: Schedule | ByLoss) -> 'Batches':
    """The same batches in the order of another schedule; what is compiled stays."""
    following = copy.copy(self)
    object.__setattr__(following, 'schedule', schedule)
    object.__setattr__(following, '_order', dataclasses.replace(self._order, schedule=schedule))
    return following

  def __call__(self, seed: int, step: int) -> Batch:
    """The batch of a step."""
    return self._gather(self.examples, self.draw(seed, step))

  @functools.cached_property
  def _gather(self):
    return jax.jit(self.gather)


def stamp(seed: int, step: int) -> np.ndarray:
  """`Draw.at` of a step."""
  return np.array([int(seed) % 2**32, int(step)], np.uint32)


def transformed(transform: Callable | None, batch: Batch, at: jax.Array) -> Batch:
  """The batch as a transform makes it, with the key of (seed, step)."""
  if transform is None:
    return batch
  return transform(jax.random.fold_in(jax.random.key(at[0]), at[1]), batch)


def eval_batches(examples: PyTree, batch_size: int) -> list[Batch]:
  """Every example once and in order, in batches of one shape; the last is filled up with rows that the masks leave out.

  Args:
    examples: as in `Batches`; masks of their own are kept.
    batch_size: of every batch; more than there are examples is allowed.

  Returns:
    Batches on the device, each with a mask for every task: bool[B], or the shape of the task's own mask. Multi-input:
    as many as the longest task needs, the others' are masked whole.

  Raises:
    InputError: as `Batches`.
  """
  check_batch_size(batch_size)
  counts = count_examples(examples)
  examples = jax.tree.map(jnp.asarray, examples)
  number = -(-max(counts.values()) // batch_size)

  def part(examples, count, place):
    rows = np.arange(place * batch_size, (place + 1) * batch_size)
    batch = Batches.take({key: examples[key] for key in ('inputs', 'labels')}, rows % count)
    return batch, rows < count, rows % count

  def padded(mask, valid, rows):
    if mask is None:
      return jnp.asarray(valid)
    return mask[rows] & expand_to(jnp.asarray(valid), mask.ndim)

  batches = []
  for place in range(number):
    if '' in counts:
      batch, valid, rows = part(examples, counts[''], place)
      masks = examples.get('mask') or {}
      batch['mask'] = {task: padded(masks.get(task), valid, rows) for task in examples['labels']}
    else:
      batch = {}
      for task, count in counts.items():
        batch[task], valid, rows = part(examples[task], count, place)
        batch[task]['mask'] = padded(examples[task].get('mask'), valid, rows)
    batches.append(batch)
  return batches


def select_tasks(examples: PyTree, names: Iterable[str]) -> PyTree:
  """Examples, or a batch, of some of the tasks only (single-task baselines).

  >>> batch = {'inputs': 0, 'labels': {'a': 1, 'b': 2}, 'mask': {'b': 3}}
  >>> select_tasks(batch, ('a',))
  {'inputs': 0, 'labels': {'a': 1}, 'mask': {}}

  Raises:
    InputError: a name that is not there.
  """
  names = (names,) if isinstance(names, str) else tuple(names)
  if is_single_input(examples):
    check_names('select_tasks names', names, examples['labels'], all_of=False)
    kept = {key: {t: v for t, v in examples[key].items() if t in names} for key in KEYS[1:] if key in examples}
    return {**examples, **kept}
  check_names('select_tasks names', names, set(examples) - {'outer'}, all_of=False)
  return {task: part for task, part in examples.items() if task in names or task == 'outer'}


def select_batches(batches: Sequence[Batch], names: Iterable[str]) -> Sequence[Batch]:
  """Evaluation batches of some of the tasks only; what is read from disk stays there."""
  if hasattr(batches, 'select'):
    return batches.select(names)
  return [select_tasks(batch, names) for batch in batches]


def is_single_input(examples: PyTree) -> bool:
  """Whether all tasks share the inputs: `{'inputs', 'labels', 'mask'?}` and not `{task: {...}}`."""
  return not {'inputs', 'labels'}.isdisjoint(examples)


def count_examples(examples: PyTree) -> dict[str, int]:
  """{task: number of examples}, or {'': number} when the tasks share the inputs.

  Raises:
    InputError: keys, lengths or masks that do not fit together; no example.
  """
  if not isinstance(examples, Mapping) or not examples:
    raise InputError(
      f"examples: found {type(examples).__name__}, expected a dict {{'inputs': ..., 'labels': {{...}}}}."
    )
  if is_single_input(examples):
    labels, masks = examples.get('labels'), examples.get('mask', {})
    if not isinstance(labels, Mapping) or not labels:
      raise InputError(
        f"examples['labels']: found {type(labels).__name__}, expected a dict {{task: array}}, not empty."
      )
    if not isinstance(masks, Mapping):
      raise InputError(f"examples['mask']: found {type(masks).__name__}, expected a dict {{task: bool array}}.")
    check_names("examples['mask']", masks, labels, all_of=False)
    return {'': _count('examples', examples, masks)}
  for task, part in examples.items():
    if not isinstance(part, Mapping):
      found = type(part).__name__
      raise InputError(f"examples[{task!r}]: found {found}, expected a dict {{'inputs': ..., 'labels': ...}}.")
  return {t: _count(f'examples[{t!r}]', p, {'': p['mask']} if 'mask' in p else {}) for t, p in examples.items()}


def _count(where: str, examples: Mapping, masks: Mapping) -> int:
  if set(examples) - set(KEYS) or not {'inputs', 'labels'} <= set(examples):
    raise InputError(f"{where}: found {sorted(examples)}, expected 'inputs', 'labels' and optionally 'mask'.")
  leaves = {f'{where}/{path_label(path)}': leaf for path, leaf in jax.tree_util.tree_leaves_with_path(examples)}
  lengths = {path: np.shape(leaf)[0] if np.ndim(leaf) else None for path, leaf in leaves.items()}
  count = next(iter(lengths.values()), 0)  # of the inputs: JAX sorts the keys
  for path, length in lengths.items():
    if length != count or length is None:
      found = 'a scalar' if length is None else f'{length} examples'
      raise InputError(f'{path}: found {found}, expected {count}, as in {next(iter(lengths))}.')
  if not count:
    raise InputError(f'{where}: found no example, expected at least one.')
  for name, mask in masks.items():
    if mask.dtype != np.bool_:
      task = f'[{name!r}]' if name else ''
      raise InputError(f"{where}['mask']{task}: found dtype {mask.dtype}, expected bool.")
  return count
