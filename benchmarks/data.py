"""Whether the device waits for data: steps of the experiments as they are trained, against the same steps fed at once.

  python benchmarks/data.py --data_dir DIR
  python benchmarks/data.py --data_dir DIR --experiments scene tabular "image_speech schedule='round_robin'"
  python benchmarks/data.py --experiments                                       the streams alone; they need no data

`real` steps are those of `mtljax train`: the host draws, the compiled step gathers and transforms. `drawn` are the
same program on draws that are there beforehand, so the difference is what the device waits for: `waits` is that share
of the real step. `ready` steps get batches that lie on the device, gathered and transformed: `gather` is the share of
the real step that this work on the device takes. `draw` is the host's part by itself, while nothing else runs. All are
called in turn in one run; medians of the ratio within a round. A step is waited for once in `steps`, as in training.

`stream` are records of array_record on disk, read and decoded by grain in threads ahead of the step (`data.Stream`),
for a LeNet and for an MLP whose step is a hundredth of that; there `draw` is how long the host waits for a batch, and
`drawn` steps get batches that were read before, as numpy arrays.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import flax.linen as nn
import jax
import numpy as np
import optax
from workloads import about, in_turn

import mtljax as mtl
from mtljax import experiment as experiments
from mtljax.experiment import Options
from mtljax.runs import Run

EXPERIMENTS = (
  'multi_digits',
  'scene',
  'image_speech',
  "image_speech schedule='round_robin'",
  'tabular',
  'molecules',
  'text_embeddings',
  'speech_translation',
)


def experiment_of(text: str, data_dir: str):
  """'name key=value ...' -> the experiment with these options."""
  name, _, rest = text.partition(' ')
  module = experiments.load(name)
  given = eval(f'dict({rest})')
  fields = {field.name for field in dataclasses.fields(module.Config)}
  if 'data_dir' in fields:
    given['data_dir'] = data_dir
  return module.build(dataclasses.replace(module.Config(), **given))


class Feeds:
  """The three ways of feeding an experiment's steps; each call makes `steps` of them."""

  def __init__(self, experiment, steps: int, balancer: str = 'equal'):
    options = Options(balancer=balancer, steps=steps)
    self.run, self.train, self.steps = Run(experiment, options), experiment.train, steps
    seed, train = options.seed, self.train
    step = mtl.make_train_step(
      experiment.model,
      experiment.tasks,
      experiment.optimizer(options.learning_rate, self.run.names),
      mtl.balancing.parse(balancer, steps_per_epoch=train.steps_per_epoch),
      penalties=tuple(experiment.penalties),
    )
    self.gathered = jax.jit(lambda s, draw, examples: step(s, train.gather(examples, draw)), donate_argnums=0)
    self.plain = jax.jit(lambda s, batch: step(s, batch), donate_argnums=0)
    draws = [train.draw(seed, i) for i in range(steps)]
    self.draws = jax.device_put(draws) if len(jax.tree.leaves(train.examples)) else draws
    gather = jax.jit(train.gather)
    self.batches = [jax.block_until_ready(gather(train.examples, draw)) for draw in draws]
    self.states = {name: self.run.init() for name in ('real', 'drawn', 'ready')}
    self.seed, self.index = seed, 0

  def real(self):
    for _ in range(self.steps):
      self.states['real'], info = self.run.step(self.states['real'], self.index)
      self.index += 1  # always on: a stream that goes back starts reading anew
    return info

  def drawn(self):
    for draw in self.draws:
      self.states['drawn'], info = self.gathered(self.states['drawn'], draw, self.train.examples)
    return info

  def ready(self):
    for batch in self.batches:
      self.states['ready'], info = self.plain(self.states['ready'], batch)
    return info

  def draw(self) -> float:
    """Milliseconds of the host for a draw."""
    clock = time.perf_counter()
    for _ in range(self.steps):
      self.train.draw(self.seed, self.index)
      self.index += 1
    return 1e3 * (time.perf_counter() - clock) / self.steps


def report(name: str, experiment, steps: int, rounds: int, limit: float):
  feeds = Feeds(experiment, steps)
  seconds, ratio = in_turn({'real': feeds.real, 'drawn': feeds.drawn, 'ready': feeds.ready}, rounds, limit=limit)
  draw = min(feeds.draw() for _ in range(3))
  waits, ready = ratio('drawn', 'real'), ratio('ready', 'real')
  print(
    f'{name:<36}{1e3 * seconds["real"] / steps:>9.2f}{1 - waits.median:>9.1%} ± {waits.spread:>5.1%}'
    f'{waits.median - ready.median:>9.1%} ± {ready.spread:>5.1%}{draw:>10.3f}'
    f'{draw * steps / 1e3 / seconds["real"]:>9.1%}',
    flush=True,
  )


def streamed(trunk, batch_size: int, folder: str, records: int = 4096):
  """An experiment of two tasks over images in an array_record file."""
  from array_record.python.array_record_data_source import ArrayRecordDataSource
  from array_record.python.array_record_module import ArrayRecordWriter

  path = pathlib.Path(folder) / 'images.array_record'
  if not path.exists():
    r = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for _ in range(records):
      writer.write(r.integers(0, 256, 36 * 36, np.uint8).tobytes() + bytes(r.integers(0, 10, 2, np.uint8)))
    writer.close()
  names = ('left', 'right')

  def decode(record):
    values = np.frombuffer(record, np.uint8)
    image = values[:-2].reshape(36, 36, 1) / np.float32(255)
    return {'inputs': image, 'labels': {name: np.int32(values[i - 2]) for i, name in enumerate(names)}}

  tasks = tuple(mtl.Task(name, mtl.losses.softmax_cross_entropy) for name in names)
  optimizer = lambda rate, names: mtl.task_optimizer(optax.adam(rate), {name: optax.adam(rate) for name in names})
  train = mtl.data.Stream(ArrayRecordDataSource([str(path)]), batch_size, decode)
  model = mtl.sharing.hard(trunk, {name: nn.Dense(10) for name in names})
  batch = train.example()
  return mtl.Experiment('stream', model, tasks, train, [batch], [batch], optimizer)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--experiments', nargs='*', default=EXPERIMENTS, help="'name key=value ...'")
  parser.add_argument('--streams', nargs='*', default=['lenet', 'mlp'], choices=['lenet', 'mlp'])
  parser.add_argument('--data_dir', default='~/.cache/mtljax')
  parser.add_argument('--steps', type=int, default=10, help='a round (default 10)')
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--limit', type=float, default=20, help='seconds for the rounds of an experiment (default 20)')
  args = parser.parse_args()
  print(about('grain', 'array_record'))
  print(f'{"":<36}{"step ms":>9}{"waits":>17}{"gather":>17}{"draw ms":>10}{"of step":>9}')
  for text in args.experiments:
    report(text, experiment_of(text, args.data_dir), args.steps, args.rounds, args.limit)
  trunks = {
    'lenet': (mtl.trunks.LeNet((10, 20), 50), 64),
    'mlp': (mtl.trunks.MLP((64,)), 128),
  }
  with tempfile.TemporaryDirectory() as folder:
    for name in args.streams:
      report(f'stream {name}', streamed(*trunks[name], folder), args.steps, args.rounds, args.limit)


if __name__ == '__main__':
  main()
