"""A tiny experiment for tests of the loop and the command line: as text of a file, and loaded."""

import pathlib

from mtljax import experiment

SOURCE = '''"""Tiny: a two-layer net, a class and a number of made-up vectors."""

import dataclasses

import flax.linen as nn
import numpy as np
import optax

import mtljax as mtl
from mtljax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes.

  Attributes:
    width: units of the trunk.
  """

  width: int = 8
  # rows of a batch
  batch_size: int = 16
  rate_of_labels: float = 0.8  # share of examples that have a class
  learning_rate: float = 1e-2
  steps: int = 40
  bad_row: int = -1  # this training example is NaN
  layers: tuple[int, ...] = (4,)


def examples(config, n, seed):
  r = np.random.default_rng(seed)
  x = r.normal(size=(n, 6)).astype(np.float32)
  labels = {'kind': (x[:, 0] > x[:, 1]).astype(np.int32), 'size': np.tanh(x[:, 2:3] + x[:, 3:4])}
  return {'inputs': x, 'labels': labels, 'mask': {'kind': r.random(n) < config.rate_of_labels}}


def build(config):
  train = examples(config, 96, 0)
  if config.bad_row >= 0:
    train['labels']['size'][config.bad_row] = np.nan
  tasks = (
    mtl.Task('kind', mtl.losses.softmax_cross_entropy, metrics={'accuracy': mtl.metrics.accuracy()}),
    mtl.Task('size', mtl.losses.squared_error, metrics={'rmse': mtl.metrics.rmse(), 'mae': mtl.metrics.mae()}),
  )
  return Experiment(
    name='tiny',
    model=mtl.sharing.hard(mtl.trunks.MLP((config.width,)), {'kind': nn.Dense(2), 'size': nn.Dense(1)}),
    tasks=tasks,
    train=mtl.data.Batches(train, config.batch_size),
    val=mtl.data.eval_batches(examples(config, 40, 1), 16),
    test=mtl.data.eval_batches(examples(config, 40, 2), 16),
    optimizer=lambda rate, tasks: mtl.task_optimizer(optax.adam(rate), {t: optax.adam(rate) for t in tasks}),
  )
'''


def write(folder, name='tiny', source=SOURCE) -> pathlib.Path:
  path = pathlib.Path(folder) / f'{name}.py'
  path.write_text(source)
  return path


def build(folder, **config):
  module = experiment.load(str(write(folder)))
  return experiment.build(module, module.Config(**config))
