"""Many steps in one call of the compiled program: the same run, and the same one when it is resumed."""

import dataclasses
import os
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

from mtljax import InputError, data, loop, rundir, runs, sharing, training, trunks
from mtljax.base import StepInfo
from mtljax.experiment import Options

NAMES = ('a', 'b')
OPTIONS = Options(steps=26, log_every=8, eval_every=8, checkpoint_every=8, learning_rate=1e-2, steps_per_call=4)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


def info(step, wrong=None):
  losses = np.full(2, np.nan if step == wrong else step, np.float32)
  finite = np.array(step != wrong)
  return StepInfo(
    losses, np.ones(2, bool), None, None, None, np.float32(1), np.float32(0), finite, ~np.isfinite(losses)
  )


def fit(steps, wrong=None, size=4, start=0, **options):
  """(calls as (first step, number), what was logged)."""
  calls, lines = [], []

  def one(state, index):
    calls.append((index, 1))
    return state + 1, info(index + 1, wrong)

  def several(state, index):
    calls.append((index, size))
    infos = [info(index + 1 + i, wrong) for i in range(size)]
    return state + size, jax.tree.map(lambda *x: np.stack(x), *infos)

  log = lambda step, info: lines.append((step, float(info.losses[0])))
  options = {'log_every': 100, 'log': log, **options}
  fitted = loop.fit(
    start, one, steps, names=NAMES, start=start, several=several, steps_per_call=size, progress=False, **options
  )
  assert fitted.state == fitted.step == steps
  return calls, lines, fitted


def test_calls_end_where_the_host_looks():
  calls, lines, _ = fit(18, log_every=8)
  assert calls == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 1), (17, 1)] and lines == [(8, 8), (16, 16), (18, 18)]
  calls, lines, _ = fit(12, log_every=6)
  assert calls == [(0, 4), (4, 1), (5, 1), (6, 1), (7, 1), (8, 4)] and lines == [(6, 6), (12, 12)]
  calls, _, _ = fit(12, start=6, log_every=6)  # resumed: the same calls as before
  assert calls == [(6, 1), (7, 1), (8, 4)]


def test_a_step_that_is_not_finite_is_found_among_several():
  with pytest.raises(loop.NonFiniteError, match="loss of task 'a' became nan at step 7"):
    fit(12, wrong=7)
  assert fit(12, wrong=7, on_nonfinite='skip')[2].skipped == 1


def test_same_run(experiment, tmp_path):
  several = training.train(experiment, OPTIONS, tmp_path / 'several', progress=False)
  single = training.train(experiment, dataclasses.replace(OPTIONS, steps_per_call=1), tmp_path / 'one', progress=False)
  for task, values in single['test'].items():
    for name, value in values.items():
      assert several['test'][task][name] == pytest.approx(value, rel=1e-4), (task, name)
  lines = [rundir.read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('several', 'one')]
  assert [line['step'] for line in lines[0]] == [line['step'] for line in lines[1]]


def test_stopped_and_resumed_it_has_the_same_bits(experiment, tmp_path, monkeypatch):
  undisturbed = training.train(experiment, OPTIONS, tmp_path / 'whole', progress=False)
  several = runs.Run.several.fget

  def stopping(self):
    def call(state, index):
      if index == 12:
        os.kill(os.getpid(), signal.SIGTERM)
      return several(self)(state, index)

    return call

  with monkeypatch.context() as patch:
    patch.setattr(runs.Run, 'several', property(stopping))
    assert training.train(experiment, OPTIONS, tmp_path / 'run', progress=False) is None
  assert rundir.read_json(tmp_path / 'run' / 'config.json')['steps_per_call'] == 4
  resumed = training.train(experiment, OPTIONS, tmp_path / 'run', resume=True, progress=False)
  assert resumed['params_sha256'] == undisturbed['params_sha256']


def test_it_measures_whether_it_pays(experiment, tmp_path, capsys):
  options = dataclasses.replace(OPTIONS, steps_per_call=0)
  training.train(experiment, options, tmp_path / 'run')
  chosen = rundir.read_json(tmp_path / 'run' / 'config.json')['steps_per_call']
  assert chosen in (1, 8) and f'steps_per_call: {chosen}; a step takes ' in capsys.readouterr().out
  size, why = runs.choose_steps_per_call(experiment, dataclasses.replace(options, log_every=3))
  assert size == 1 and 'no common multiple' in why


def test_bad_input(experiment):
  for value in (-1, 1.5):
    with pytest.raises(InputError, match=f'steps_per_call: found {value}, expected an integer >= 0'):
      Options(steps_per_call=value)
  with pytest.raises(InputError, match="steps_per_call: found 4 with mode='sharded', expected mode 'jit' or 1"):
    Options(steps_per_call=4, mode='sharded')
  x, length = np.ones((96, 6), np.int32), np.arange(96) % 5 + 1
  words = {'x': x, 'mask': np.arange(6) < length[:, None]}
  ragged = data.Batches(
    {**experiment.train.examples, 'inputs': words}, 16, buckets=data.Buckets(length, (3, 6), leaves='inputs')
  )
  heads = {'kind': nn.Dense(2), 'size': nn.Dense(1)}
  texts = dataclasses.replace(
    experiment, train=ragged, val=[], test=[ragged.example()], model=sharing.hard(trunks.EmbeddingBag(9, 4), heads)
  )
  with pytest.raises(InputError, match='steps_per_call: found 4 with batches of 2 shapes in one call, expected 1'):
    runs.Run(texts, OPTIONS)
