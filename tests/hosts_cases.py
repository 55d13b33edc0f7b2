"""An experiment whose processes know their own rows only, and runs of it."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh

from mtljax import experiment, parallel, rundir, training
from mtljax.experiment import Options

# every row of another process is NaN, its mask is turned over: reading one would spread
SPOIL = """  share = config.batch_size // jax.process_count()
  others = np.arange(96) % config.batch_size // share != jax.process_index()
  train['inputs'][others], train['labels']['size'][others] = np.nan, np.nan
  train['mask']['kind'][others] ^= True
  tasks = ("""
SOURCE = (
  tiny.SOURCE.replace('import flax', 'import jax\nimport flax')
  .replace('  tasks = (', SPOIL)
  .replace('config.batch_size)', 'config.batch_size, shuffle=False)')
)
PCGRAD = Options(
  balancer='pcgrad',
  seed=3,
  steps=8,
  mode='shard_map',
  learning_rate=0.01,
  log_every=2,
  eval_every=4,
  checkpoint_every=4,
)
OF_SECOND = dataclasses.replace(PCGRAD, balancer='equal', mode='sharded')


def arguments(options):
  """On the command line."""
  default = dataclasses.asdict(Options())
  said = {name: value for name, value in dataclasses.asdict(options).items() if value != default[name]}
  return [text for name, value in said.items() for text in (f'--{name}', str(value))]


def train_here(path, options, folder, devices):
  """One run of this process, on so many of its devices."""
  module = experiment.load(str(path))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'grid', lambda model=1: Mesh(np.array(jax.devices()[:devices]), ('data',)))
    return training.train(experiment.build(module, module.Config()), options, folder, progress=False)


def assert_same_run(folder, expected, tolerance=0):
  """Same lines, parameters and results, bit for bit, or within a tolerance.

  Where the step has no Gramian of its own, one process computes that of an evaluation on one device: norms and cosines
  then agree to rounding.
  """
  found, wanted = (_numbers(path) for path in (folder, expected))
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    rounding = 2e-6 if 'norms' in name or 'cosines' in name else 0
    np.testing.assert_allclose(found[name], value, rtol=tolerance or rounding, atol=tolerance or rounding, err_msg=name)
  results = [rundir.read_json(path / 'result.json')['params_sha256'] for path in (folder, expected)]
  assert tolerance or results[0] == results[1]


def _numbers(folder):
  records = rundir.read_metrics(folder / 'metrics.jsonl')
  result = rundir.read_json(folder / 'result.json')
  parts = [(f'{record["step"]}{"val" * ("val" in record)}', record) for record in records]
  parts += [(name, result[name]) for name in ('steps', 'test', 'val')]
  return dict(pair for name, value in parts for pair in _leaves(name, value))


def _leaves(name, value):
  if isinstance(value, dict):
    for key, part in value.items():
      yield from _leaves(f'{name}/{key}', part)
  elif isinstance(value, int | float):
    yield name, value
