"""Runs whose parameters are split over devices: the numbers of one device, and their checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mtljax import checkpoint, parallel, rundir, training
from mtljax.base import InputError
from mtljax.experiment import Options, load
from mtljax.runs import Run

OPTIONS = Options(balancer='mgda', steps=12, eval_every=4, checkpoint_every=4, log_every=1, learning_rate=0.01)
SPLIT = dataclasses.replace(OPTIONS, mode='sharded', model_devices=2)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  wide = tiny.SOURCE.replace('MLP((config.width,))', 'MLP((128, config.width))')
  path = tiny.write(tmp_path_factory.mktemp('tiny'), source=wide)
  module = load(str(path))
  return module.build(module.Config(width=128))


def test_it_is_the_run_of_one_device(experiment, tmp_path):
  one = training.train(experiment, OPTIONS, tmp_path / 'one', progress=False)
  split = training.train(experiment, SPLIT, tmp_path / 'split', progress=False)
  for task, values in one['test'].items():
    for name, value in values.items():
      assert split['test'][task][name] == pytest.approx(value, rel=1e-4), (task, name)
  lines = [rundir.read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('one', 'split')]
  for a, b in zip(*lines, strict=True):
    for task in a.get('losses', ()):
      assert b['losses'][task] == pytest.approx(a['losses'][task], rel=1e-4)


def test_what_is_split(experiment):
  run = Run(experiment, SPLIT)
  state, _ = run.step(run.init(), 0)
  kernels = {k: v['kernel'] for k, v in state.params['shared'].items()}
  assert {k: v.sharding.shard_shape(v.shape) for k, v in kernels.items()} == {'Dense_0': (6, 128), 'Dense_1': (64, 128)}
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (128, 128)]
  assert len(moments) == 2 and all(x.sharding.shard_shape(x.shape) == (64, 128) for x in moments)


def test_its_checkpoints_are_those_of_any_mode(experiment, tmp_path):
  """Stopped half way, resumed on one device, and the other way round: the bits of the first half are the same."""
  half = dataclasses.replace(SPLIT, steps=8)
  training.train(experiment, half, tmp_path / 'run', progress=False)
  state, _, step = checkpoint.restore_latest(tmp_path / 'run' / 'checkpoints', Run(experiment, OPTIONS).abstract)
  assert step == 8
  again = training.train(experiment, SPLIT, tmp_path / 'run', resume=True, progress=False)
  whole = training.train(experiment, SPLIT, tmp_path / 'whole', progress=False)
  assert again['params_sha256'] == whole['params_sha256'] and again['test'] == whole['test']
  run = Run(experiment, OPTIONS)
  for index in range(8, 12):
    state, _ = run.step(state, index)
  last, _, _ = checkpoint.restore_latest(tmp_path / 'whole' / 'checkpoints', run.abstract)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(last.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_bad_numbers_are_named(experiment):
  for options, message in (
    ({'model_devices': 2}, "model_devices: found 2 with mode='jit', expected 'sharded'"),
    ({'model_devices': 0, 'mode': 'sharded'}, 'model_devices: found 0, expected a positive integer'),
  ):
    with pytest.raises(InputError, match=message):
      Options(**options)
  with pytest.raises(InputError, match='model_devices: found 3, expected a number that divides 4, of all devices'):
    Run(experiment, dataclasses.replace(SPLIT, model_devices=3))
  assert parallel.grid().shape == {'data': 4} and parallel.grid(2).shape == {'data': 2, 'model': 2}
