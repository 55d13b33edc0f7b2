"""Records on disk: the batches of arrays in memory, wherever the reading starts and whoever shares it."""

import dataclasses
import threading

import jax
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import training
from mtljax.base import InputError
from mtljax.compare import Plan, compare
from mtljax.data import Batches, EvalStream, Stream, eval_batches, schedules
from mtljax.experiment import Options

N = 23
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
KIND, SIZE = (X[:, 0] > 0).astype(np.int32), X[:, 1:2] ** 2
MASK = np.arange(N) % 3 > 0
EXAMPLES = {'inputs': X, 'labels': {'kind': KIND, 'size': SIZE}, 'mask': {'kind': MASK}}


class Records:
  """Records by number, with a count of what was read."""

  def __init__(self, examples, bad=()):
    self.examples, self.bad, self.read = examples, bad, []

  def __len__(self):
    return len(jax.tree.leaves(self.examples)[0])

  def __getitem__(self, number):
    self.read.append(number)
    if number in self.bad:
      raise OSError('checksum')
    return jax.tree.map(lambda leaf: leaf[number], self.examples)


class Blocks(Records):
  def __getitems__(self, numbers):
    return [self[number] for number in numbers]


def multi():
  one = {'inputs': X, 'labels': KIND, 'mask': MASK}
  two = {'inputs': X[:11], 'labels': SIZE[:11]}
  return {'kind': one, 'size': two}


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('records', [Records, Blocks])
@pytest.mark.parametrize('shuffle', [True, False])
def test_batches_are_those_of_arrays(records, shuffle):
  stream, batches = Stream(records(EXAMPLES), 5, shuffle=shuffle), Batches(EXAMPLES, 5, shuffle=shuffle)
  assert stream.steps_per_epoch == batches.steps_per_epoch == 4
  for seed, step in [
    (0, 0),
    (0, 1),
    (0, 2),
    (1, 2),
    (0, 3),
    (0, 9),
    (0, 10),
    (1, 3),
    (0, 0),
  ]:  # onwards, back, elsewhere
    equal(stream(seed, step), batches(seed, step))
  equal(stream.example(), batches.example())
  equal(stream.select('size')(0, 1), batches.select('size')(0, 1))


@pytest.mark.parametrize('schedule', [None, schedules.sampled(2.0)])
def test_an_input_per_task(schedule):
  stream = Stream({task: Records(part) for task, part in multi().items()}, 4, schedule=schedule)
  batches = Batches(multi(), 4, schedule=schedule)
  assert stream.steps_per_epoch == batches.steps_per_epoch
  for step in range(7):
    equal(stream(0, step), batches(0, step))
  equal(stream.example(), batches.example())
  equal(stream.select(['size'])(0, 1), batches.select(['size'])(0, 1))


def test_decoding_and_transforms():
  transform = lambda key, batch: {**batch, 'inputs': batch['inputs'] + jax.random.normal(key, batch['inputs'].shape)}
  rows = [{'bytes': X[i].tobytes(), 'label': KIND[i]} for i in range(N)]
  decode = lambda row: {'inputs': np.frombuffer(row['bytes'], np.float32), 'labels': {'kind': row['label']}}
  batches = Batches({'inputs': X, 'labels': {'kind': KIND}}, 6, transform=transform)
  equal(Stream(rows, 6, decode, transform=transform)(3, 4), batches(3, 4))
  per_task = Stream({'a': rows}, 6, {'a': lambda row: {'inputs': np.float32(1), 'labels': row['label']}})
  assert per_task(0, 0)['a']['inputs'].tolist() == [1.0] * 6
  assert set(per_task.select('a')(0, 0)) == {'a'}


def test_shards_are_the_batch():
  sources = {task: Records(part) for task, part in multi().items()}
  whole = Stream(sources, 6)
  for number in (2, 3):
    parts = [Stream(sources, 6, shard=(i, number)) for i in range(number)]
    for step in range(3):
      equal(jax.tree.map(lambda *x: np.concatenate(x), *(p(0, step) for p in parts)), whole(0, step))
  source = Records(EXAMPLES)
  part = Stream(source, 6, shard=(1, 3), ahead=1, threads=1)
  part.draw(0, 0)
  assert not set(source.read) & set(whole.indices(0, 0)['kind'].tolist()[:2])


def test_steps_are_read_ahead_of_time_and_in_threads():
  second, names = threading.Event(), set()

  def decode(record):
    names.add(threading.current_thread().name)
    if int(record['inputs']) >= 2:
      second.set()
    return record

  source = Records({'inputs': np.arange(8), 'labels': {'a': np.zeros(8)}})
  stream = Stream(source, 2, decode, shuffle=False)
  stream.draw(0, 0)
  assert second.wait(10) and threading.current_thread().name not in names


def test_tfds_in_array_record(tmp_path):
  import tensorflow_datasets as tfds

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {
        'x': tfds.features.Tensor(shape=(4,), dtype=np.float32),
        'label': tfds.features.ClassLabel(num_classes=2),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(N):
        yield i, {'x': X[i], 'label': int(KIND[i])}

  builder = Toy(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  source = builder.as_data_source('train')
  decode = lambda row: {'inputs': row['x'], 'labels': {'kind': row['label']}}
  arrays = mtl.data.from_tfds(builder, 'train')
  batches = Batches({'inputs': arrays['x'], 'labels': {'kind': arrays['label']}}, 5)
  stream = Stream(source, 5, decode)
  for step in (0, 1, 6):
    equal(stream(0, step), batches(0, step))


@pytest.mark.parametrize('examples', [EXAMPLES, multi()], ids=['single', 'multi'])
def test_evaluation_has_every_record_once(examples):
  source = Records(examples) if 'inputs' in examples else {task: Records(part) for task, part in examples.items()}
  stream, batches = EvalStream(source, 5), eval_batches(examples, 5)
  assert len(stream) == len(batches) == 5
  for a, b in zip(stream, batches, strict=True):
    equal(a, b)
  equal(stream.select('kind')[2], mtl.data.select_tasks(batches[2], 'kind'))


def experiment(stream):
  tasks = (
    mtl.Task('kind', mtl.losses.softmax_cross_entropy, metrics={'accuracy': mtl.metrics.accuracy()}),
    mtl.Task('size', mtl.losses.squared_error, metrics={'rmse': mtl.metrics.rmse()}),
  )
  val = eval_batches(EXAMPLES, 8)
  heads = {'kind': mtl.heads.classify(2), 'size': mtl.heads.regress(1)}
  return mtl.Experiment(
    name='stream',
    model=mtl.sharing.hard(mtl.trunks.MLP((8,)), heads),
    tasks=tasks,
    train=Stream(Records(EXAMPLES), 5) if stream else Batches(EXAMPLES, 5),
    val=EvalStream(Records(EXAMPLES), 8) if stream else val,
    test=EvalStream(Records(EXAMPLES), 8) if stream else val,
    optimizer=lambda rate, names: mtl.task_optimizer(optax.adam(rate), {name: optax.adam(rate) for name in names}),
  )


def test_a_run_is_that_of_arrays_and_goes_on_with_the_same_bits(tmp_path):
  options = Options(balancer='mgda', steps=14, eval_every=7, checkpoint_every=5)
  whole = training.train(experiment(False), options, tmp_path / 'arrays', progress=False)
  short = dataclasses.replace(options, steps=9)
  training.train(experiment(True), short, tmp_path / 'stream', progress=False)
  resumed = training.train(experiment(True), options, tmp_path / 'stream', resume=True, progress=False)
  assert resumed['params_sha256'] == whole['params_sha256'] and resumed['test'] == whole['test']


def test_a_comparison_is_that_of_arrays():
  plan = Plan(balancers=('equal',), seeds=(0, 1), steps=6, learning_rates=(1e-2,))
  found = [compare(experiment(stream), plan, progress=False).rows for stream in (True, False)]
  assert [row['test'] for row in found[0]] == [row['test'] for row in found[1]]


def failing(record):
  raise ValueError('no such image')


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: Stream([], 1), 'source: found no record'),
    (lambda: Stream(iter([1]), 1), 'source: found list_iterator, expected records by number'),
    (lambda: Stream({'a': Records(EXAMPLES), 'b': []}, 1), "source of task 'b': found no record"),
    (lambda: Stream(Records(EXAMPLES), 24), 'batch_size: found 24, expected at most 23'),
    (lambda: Stream(Records(EXAMPLES), 4, schedule=schedules.round_robin()), 'schedule: found one for a single input'),
    (lambda: Stream(Records(EXAMPLES), 4, schedule=schedules.by_loss()), 'schedule: found by_loss, expected one that'),
    (lambda: Stream(Records(EXAMPLES), 4, shard=(0, 3)), 'shard: found .0, 3. and batch_size 4'),
    (lambda: Stream(Records(EXAMPLES), 4, {'a': failing}), 'decode: found a function per task'),
    (lambda: Stream({'a': Records(EXAMPLES)}, 4, {'b': failing}), "unknown .'b'."),
    (lambda: Stream(Records(EXAMPLES), 4, failing)(0, 0), r'record \d+: cannot be decoded: ValueError: no such image'),
    (lambda: Stream(Records(EXAMPLES, range(N)), 4)(0, 0), r'records \[.*\]\.\.\.: cannot be read: OSError: checksum'),
    (lambda: Stream(Records(EXAMPLES), 4, lambda r: {'x': 1})(0, 0), r"record \d+: found .'x'., expected"),
    (lambda: Stream({'a': [1, 2]}, 2)(0, 0), "record . of task 'a': found int, expected"),
    (
      lambda: Stream([{'inputs': np.ones(n), 'labels': {}} for n in (1, 2)], 2)(0, 0),
      r"records\['inputs'\]: found examples of shapes",
    ),
    (lambda: Stream(Records(EXAMPLES), 4).select('other')(0, 0), "select_tasks names.*unknown .'other'."),
    (lambda: EvalStream(Records(EXAMPLES), 0), 'batch_size: found 0'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(InputError, match=message):
    call()
