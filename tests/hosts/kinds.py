"""Trains a run of every kind, alone or as one of several processes: python kinds.py [--coordinator ...]"""

import dataclasses
import sys

import flax.linen as nn
import hosts_cases
import jax
import numpy as np
import optax

import mtljax as mtl
from mtljax import hosts, options, training
from mtljax.experiment import Experiment

TASKS = (
  mtl.Task('kind', mtl.losses.softmax_cross_entropy, metrics={'accuracy': mtl.metrics.accuracy()}),
  mtl.Task('size', mtl.losses.squared_error, metrics={'rmse': mtl.metrics.rmse()}),
)


def single(count, seed):
  r = np.random.default_rng(seed)
  x = r.normal(size=(count, 6)).astype(np.float32)
  labels = {'kind': (x[:, 0] > x[:, 1]).astype(np.int32), 'size': np.tanh(x[:, 2:4] + x[:, 3:5])}
  return {'inputs': x, 'labels': labels, 'mask': {'kind': r.random(count) < 0.7, 'size': r.random((count, 2)) < 0.5}}


def multi(count, seed):
  parts = {}
  for place, task in enumerate(('kind', 'size')):
    examples = single(count - 16 * place, seed + place)
    parts[task] = {key: examples[key] if key == 'inputs' else examples[key][task] for key in examples}
  return parts


def records(count, seed):
  examples = single(count, seed)
  return [jax.tree.map(lambda leaf, i=i: leaf[i], examples) for i in range(count)]


def noisy(key, batch):
  return {**batch, 'inputs': batch['inputs'] + 0.1 * jax.random.normal(key, batch['inputs'].shape)}


def experiment(train, make, features=(8,), **trunk):
  return Experiment(
    name='kinds',
    model=mtl.sharing.hard(mtl.trunks.MLP(features, **trunk), {'kind': nn.Dense(2), 'size': nn.Dense(2)}),
    tasks=TASKS,
    train=train,
    val=mtl.data.eval_batches(make(40, 8), 16),
    test=mtl.data.eval_batches(make(40, 9), 16),
    optimizer=lambda rate, tasks: mtl.task_optimizer(optax.adam(rate), {task: optax.adam(rate) for task in tasks}),
  )


def cases():
  """{name: (experiment, what differs in the options)}."""
  batches = mtl.data.Batches(single(96, 0), 16)
  turns = mtl.data.Batches(multi(96, 0), 16, schedule=mtl.data.schedules.round_robin())
  return {
    'dropout': (experiment(batches, single, dropout=0.3), {'balancer': 'uncertainty'}),
    'batch_norm': (experiment(batches, single, batch_norm=True), {'balancer': 'graddrop'}),
    'batch_norm sharded': (
      experiment(batches, single, batch_norm=True, dropout=0.3),
      {'balancer': 'mgda', 'mode': 'sharded'},
    ),
    'features': (experiment(batches, single), {'balancer': 'nash_mtl', 'at': 'features'}),
    'transform': (experiment(mtl.data.Batches(single(96, 0), 16, transform=noisy), single), {'balancer': 'mgda'}),
    'stream': (experiment(mtl.data.Stream(records(96, 0), 16), single), {'balancer': 'cagrad'}),
    'multi': (
      experiment(mtl.data.Batches(multi(96, 0), 16), multi),
      {'balancer': 'pcgrad', 'mode': 'sharded'},
    ),
    'split': (
      experiment(batches, single, features=(128, 128)),  # a kernel of 2^14
      {'balancer': 'cagrad', 'mode': 'sharded', 'model_devices': 2},
    ),
    'turns': (experiment(turns, multi), {'balancer': 'equal'}),
    'parts': (experiment(batches, single), {'balancer': 'upgrad', 'accumulate': 2, 'remat': True}),
  }


if __name__ == '__main__':
  hosts.start(options.early('train', hosts.HostOptions, sys.argv[1:]))
  for name, (given, more) in cases().items():
    training.train(given, dataclasses.replace(hosts_cases.PCGRAD, **more), f'runs/{name}', progress=False)
