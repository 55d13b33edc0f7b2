"""Examples that stay on disk: read by grain, block by block, in threads that are ahead of the step."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mtljax.arrays import check_names, expand_to
from mtljax.base import Batch, InputError, PyTree
from mtljax.data.batching import Draw, is_single_input, select_tasks, stamp, transformed
from mtljax.data.order import Order, check_batch_size, of_task
from mtljax.data.schedules import ByLoss, Schedule
from mtljax.data.sources import stack

EVER = 2**62  # steps of an endless reader


class Source(Protocol):
  """Records by number: TFDS' `as_data_source`, `array_record.ArrayRecordDataSource`, a list.

  A source may have `__getitems__(numbers) -> list of records`, which is then used.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, number: int) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Random batches of records that are read when they are needed, in place of `Batches` where data exceed the memory.

  A batch is a function of (seed, step), as with `Batches`, so a run that goes on at any step reads on from there. The
  order is that of `Batches` with as many examples.

  Attributes:
    source: records by number, or {task: source} for an input per task (multi-input).
    batch_size: examples per batch (and per task), of all processes together.
    decode: `record -> {'inputs': x, 'labels': {task: y}, 'mask': {task: m}}` of one example in numpy, mask optional;
      for multi-input `record -> {'inputs': x, 'labels': y, 'mask': m}`, or {task: function}. Runs in the reading
      threads. None where records are such dicts.
    shuffle, schedule, transform: as of `Batches`; the transform runs on the device.
    threads: that read and decode.
    ahead: batches that are held ready.
    shard: (process, number of processes): the batch has the rows of this process, `batch_size / number` of them; all
      shards together are the batch of (0, 1), but for what a transform does. Training sets it.

  Raises:
    InputError: sources without records or with fewer than a batch, a schedule for a single input, a batch size that the
      processes do not divide; when read, a record that cannot be read or decoded, by its number.

  >>> records = [{'image': np.full(4, i), 'label': i % 2} for i in range(10)]
  >>> decode = lambda r: {'inputs': r['image'] / 10, 'labels': {'odd': r['label']}}
  >>> train = Stream(records, 5, decode)
  >>> train(seed=0, step=3)['inputs'].shape, train.steps_per_epoch
  ((5, 4), 2)
  """

  source: Source | Mapping[str, Source]
  batch_size: int
  decode: Callable[[Any], Mapping] | Mapping[str, Callable[[Any], Mapping]] | None = None
  shuffle: bool = True
  transform: Callable[[jax.Array, Batch], Batch] | None = None
  schedule: Schedule | None = None
  threads: int = 8
  ahead: int = 4
  shard: tuple[int, int] = (0, 1)

  def __post_init__(self):
    if isinstance(self.schedule, ByLoss):
      raise InputError(
        'schedule: found by_loss, expected one that knows the tasks of the next steps, which are read ahead; by_loss '
        'goes with data.Batches.'
      )
    object.__setattr__(self, '_read', _Blocks(self.source, self.decode))
    order = Order(self._read.counts, self.batch_size, self.shuffle, self.schedule, shard=self.shard)
    object.__setattr__(self, '_order', order)
    object.__setattr__(self, '_readers', {})

  examples = ()  # nothing lies on the device

  @property
  def steps_per_epoch(self) -> int:
    """Whole batches in an epoch; multi-input: of the task with the most examples, with a schedule of all tasks."""
    return self._order.steps_per_epoch

  def indices(self, seed: int, step: int) -> PyTree:
    """Which records a step reads, those of this process: int32[B], or {task: int32[B]} for multi-input."""
    return self._order.rows(seed, step)[0]

  def draw(self, seed: int, step: int) -> Draw:
    """The step's examples, read; those of the next steps are being read by then."""
    if seed not in self._readers:
      self._readers[seed] = _Reader(self, seed)
    return Draw(self._readers[seed](int(step)), stamp(seed, step), {})

  def gather(self, examples: PyTree, draw: Draw) -> Batch:
    """The batch of a draw, transformed; pure. `examples` is what `Batches.gather` gets, here ()."""
    return transformed(self.transform, draw.rows, draw.at)

  def example(self) -> Batch:
    """A batch of all tasks, for shapes: the first records."""
    return self._gather((), Draw(self._read(self._order.first()), stamp(0, 0), {}))

  def select(self, names: Iterable[str]) -> 'Stream':
    """The batches of some of the tasks."""
    return dataclasses.replace(self, **self._read.select(names))

  def __call__(self, seed: int, step: int) -> Batch:
    """The batch of a step."""
    return self._gather((), self.draw(seed, step))

  @functools.cached_property
  def _gather(self):
    return jax.jit(self.gather)


class _Reader:
  """The batches of a seed, one after another; going to another step starts reading anew there."""

  def __init__(self, stream: Stream, seed: int):
    import grain

    blocks = _Steps(stream, seed)
    options = grain.ReadOptions(num_threads=stream.threads, prefetch_buffer_size=max(stream.threads, stream.ahead))
    self.batches = iter(grain.MapDataset.source(blocks).to_iter_dataset(options))
    self.next, self.lock = 0, threading.Lock()

  def __call__(self, step):
    with self.lock:
      if step != self.next:
        self.batches.set_state({'next_index': step})
      batch = next(self.batches)
      self.next = step + 1
    return batch


class _Steps:
  """The source that grain sees: its elements are whole batches, a step each."""

  def __init__(self, stream, seed):
    self.stream, self.seed = stream, seed

  def __len__(self):
    return EVER

  def __getitem__(self, step):
    return self.stream._read(self.stream.indices(self.seed, step))


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """Reads, decodes and stacks records: {task: numbers} or numbers -> batch."""

  source: Any
  decode: Any

  def __post_init__(self):
    if isinstance(self.decode, Mapping):
      if not isinstance(self.source, Mapping):
        raise InputError('decode: found a function per task, expected one function: there is one source.')
      check_names('decode', self.decode, self.source)
    for name, count in self.counts.items():
      if not count:
        raise InputError(f'source{of_task(name)}: found no record, expected at least one.')

  @property
  def counts(self) -> dict[str, int]:
    sources = self.source if isinstance(self.source, Mapping) else {'': self.source}
    for name, source in sources.items():
      if not hasattr(source, '__len__') or not hasattr(source, '__getitem__'):
        raise InputError(f'source{of_task(name)}: found {type(source).__name__}, expected records by number.')
    return {name: len(source) for name, source in sources.items()}

  def __call__(self, rows: PyTree) -> Batch:
    if isinstance(rows, Mapping):
      return {name: self._block(name, self.source[name], numbers) for name, numbers in rows.items()}
    return self._block('', self.source, rows)

  def _block(self, name, source, numbers):
    decode = self.decode[name] if isinstance(self.decode, Mapping) else self.decode
    numbers = [int(number) for number in numbers]
    examples = [self._decoded(name, decode, *pair) for pair in zip(numbers, _records(name, source, numbers))]
    return stack(f'records{of_task(name)}', examples)

  def _decoded(self, name, decode, number, record):
    try:
      example = record if decode is None else decode(record)
    except Exception as error:
      raise InputError(f'record {number}{of_task(name)}: cannot be decoded: {type(error).__name__}: {error}') from error
    if not isinstance(example, Mapping) or not {'inputs', 'labels'} <= set(example):
      found = sorted(example) if isinstance(example, Mapping) else type(example).__name__
      raise InputError(f"record {number}{of_task(name)}: found {found}, expected {{'inputs': ..., 'labels': ...}}.")
    return example

  def select(self, names) -> dict[str, Any]:
    """Source and decode of some of the tasks."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if isinstance(self.source, Mapping):
      check_names('select_tasks names', names, self.source, all_of=False)
      of = lambda parts: {name: part for name, part in parts.items() if name in names}
      return {'source': of(self.source), 'decode': of(self.decode) if isinstance(self.decode, Mapping) else self.decode}
    return {'decode': lambda record: select_tasks(record if self.decode is None else self.decode(record), names)}


def _records(name, source, numbers):
  try:
    if hasattr(source, '__getitems__'):
      return source.__getitems__(numbers)
    return [source[number] for number in numbers]
  except Exception as error:
    raise InputError(
      f'records {numbers[:3]}...{of_task(name)}: cannot be read: {type(error).__name__}: {error}'
    ) from error


@dataclasses.dataclass(frozen=True)
class EvalStream(Sequence):
  """Every record once and in order, as `data.eval_batches` but read when a batch is asked for.

  Attributes:
    source, decode: as of `Stream`.
    batch_size: of every batch; the last is filled up with rows that the masks leave out.

  >>> records = [{'inputs': np.ones(2), 'labels': {'a': i}} for i in range(3)]
  >>> [batch['mask']['a'].tolist() for batch in EvalStream(records, 2)]
  [[True, True], [True, False]]
  """

  source: Source | Mapping[str, Source]
  batch_size: int
  decode: Callable[[Any], Mapping] | Mapping[str, Callable[[Any], Mapping]] | None = None

  def __post_init__(self):
    check_batch_size(self.batch_size)
    object.__setattr__(self, '_read', _Blocks(self.source, self.decode))

  def __len__(self) -> int:
    return -(-max(self._read.counts.values()) // self.batch_size)

  def __getitem__(self, place: int) -> Batch:
    if not 0 <= place < len(self):
      raise IndexError(place)
    rows, valid = {}, {}
    for name, count in self._read.counts.items():
      numbers = np.arange(place * self.batch_size, (place + 1) * self.batch_size)
      rows[name], valid[name] = numbers % count, numbers < count
    batch = self._read(rows.get('', rows))
    if is_single_input(batch):
      masks = batch.get('mask', {})
      return {**batch, 'mask': {task: _kept(masks.get(task), valid['']) for task in batch['labels']}}
    return {name: {**part, 'mask': _kept(part.get('mask'), valid[name])} for name, part in batch.items()}

  def select(self, names: Iterable[str]) -> 'EvalStream':
    """The batches of some of the tasks."""
    return dataclasses.replace(self, **self._read.select(names))


def _kept(mask, valid):
  return valid if mask is None else mask & expand_to(valid, mask.ndim)
