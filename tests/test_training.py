"""One run of an experiment in its directory."""

import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import tiny

from mtljax import checkpoint, loop, rundir, training
from mtljax.base import InputError
from mtljax.experiment import Options
from mtljax.runs import Run

OPTIONS = Options(
  balancer='pcgrad', seed=3, steps=24, eval_every=6, checkpoint_every=4, log_every=5, learning_rate=0.01
)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def undisturbed(experiment, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  result = training.train(experiment, OPTIONS, folder, progress=False)
  return folder, result


def train(experiment, folder, options=OPTIONS, **kwargs):
  return training.train(experiment, options, folder, progress=False, **kwargs)


def stop_at(monkeypatch, index, act):
  step = Run.step

  def stopping(self, state, i):
    if i == index:
      act()
    return step(self, state, i)

  monkeypatch.setattr(Run, 'step', stopping)


def assert_as_if_never_stopped(folder, result, undisturbed):
  expected_folder, expected = undisturbed
  assert result['params_sha256'] == expected['params_sha256']
  assert result['test'] == expected['test'] and result['val'] == expected['val']
  assert (folder / 'metrics.jsonl').read_text() == (expected_folder / 'metrics.jsonl').read_text()


def test_run_directory(undisturbed):
  folder, result = undisturbed
  assert {path.name for path in folder.iterdir()} - {'tensorboard'} == {
    'config.json',
    'metrics.jsonl',
    'checkpoints',
    'curves.png',
    'result.json',
  }
  assert list(result) == 'experiment balancer seed steps seconds step_ms params_sha256 test val'.split()
  assert json.loads((folder / 'result.json').read_text()) == result
  assert (result['experiment'], result['balancer'], result['seed'], result['steps']) == ('tiny', 'pcgrad', 3, 24)
  assert result['seconds'] > 0 and 0 < result['step_ms'] < 1e4
  assert list(result['test']) == ['kind', 'size'] and list(result['test']['size']) == ['rmse', 'mae', 'loss']
  config = rundir.read_json(folder / 'config.json')
  assert {name: config[name] for name in dataclasses.asdict(OPTIONS)} == dataclasses.asdict(OPTIONS)
  assert (folder / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def test_metrics_file(undisturbed):
  records = rundir.read_metrics(undisturbed[0] / 'metrics.jsonl')
  logged, evaluated = [r for r in records if 'losses' in r], [r for r in records if 'val' in r]
  assert [r['step'] for r in logged] == [5, 10, 15, 20, 24] and [r['step'] for r in evaluated] == [6, 12, 18, 24]
  for record in logged:
    assert set(record['losses']) == set(record['weights']) == set(record['norms']) == {'kind', 'size'}
    assert list(record['cosines']) == ['kind/size'] and -1 <= record['cosines']['kind/size'] <= 1
    assert record['finite'] is True and record['grad_norm'] > 0
  assert evaluated[-1]['val'] == undisturbed[1]['val']
  assert evaluated[-1]['score'] == pytest.approx(
    (evaluated[-1]['val']['kind']['accuracy'] - evaluated[-1]['val']['size']['rmse']) / 2
  )


def test_tensorboard_events(undisturbed):
  pytest.importorskip('tensorboardX')
  events = list((undisturbed[0] / 'tensorboard').glob('events.out.tfevents.*'))
  assert len(events) == 1
  text = events[0].read_bytes()
  assert all(name in text for name in (b'losses/kind', b'weights/size', b'cosines/kind/size', b'val/kind/accuracy'))


def test_the_last_two_and_the_best_checkpoint_stay(undisturbed):
  folder = undisturbed[0] / 'checkpoints'
  scores = {r['step']: r['score'] for r in rundir.read_metrics(undisturbed[0] / 'metrics.jsonl') if 'val' in r}
  best = max(scores, key=lambda step: (scores[step], step))
  assert set(checkpoint.steps(folder)) >= {24, best} and len(checkpoint.steps(folder)) <= 3
  assert checkpoint.best_step(folder) == best


def test_the_step_learns(experiment, undisturbed):
  before = Run(experiment, OPTIONS)
  before = before.evaluate(before.init(), experiment.val)
  assert undisturbed[1]['val']['size']['rmse'] < 0.8 * before['size']['rmse']


def test_sigterm_and_resume_give_the_same_bits(experiment, undisturbed, tmp_path, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    stop_at(patch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert training.train(experiment, OPTIONS, tmp_path / 'run') is None
  said = capsys.readouterr().out
  assert 'Stopped by SIGTERM after step 13 of 24' in said and f'mtljax train --resume {tmp_path / "run"}' in said
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[0] == 13 and not (tmp_path / 'run' / 'result.json').exists()
  result = train(experiment, tmp_path / 'run', resume=True)
  assert_as_if_never_stopped(tmp_path / 'run', result, undisturbed)


class Killed(BaseException):
  pass


def kill():
  raise Killed


@pytest.mark.parametrize('index', [2, 14])
def test_a_run_that_died_goes_on_with_the_same_bits(experiment, undisturbed, tmp_path, monkeypatch, index):
  with monkeypatch.context() as patch:
    stop_at(patch, index, kill)
    with pytest.raises(Killed):
      train(experiment, tmp_path / 'run')
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 15, "losses": {"ki')  # what a kill in the middle of a line leaves
  assert_as_if_never_stopped(tmp_path / 'run', train(experiment, tmp_path / 'run', resume=True), undisturbed)


def test_a_damaged_newest_checkpoint_is_passed_over(experiment, undisturbed, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  newest, before = checkpoint.steps(folder)[:2]
  for path in (folder / str(newest)).rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  with pytest.warns(UserWarning, match=f'checkpoints/{newest} is damaged'):
    result = train(experiment, tmp_path / 'run', resume=True)
  assert_as_if_never_stopped(tmp_path / 'run', result, undisturbed)
  assert checkpoint.steps(folder)[:2] == [newest, before]
  checkpoint.restore(folder / str(newest), Run(experiment, OPTIONS).abstract)


def test_a_finished_run_resumed_does_nothing(experiment, undisturbed, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  result = train(experiment, tmp_path / 'run', resume=True)
  assert_as_if_never_stopped(tmp_path / 'run', result, undisturbed)
  assert result['step_ms'] == undisturbed[1]['step_ms']
  manifest = checkpoint.read_manifest(tmp_path / 'run' / 'checkpoints' / '24')
  assert result['seconds'] > manifest['seconds'] > 0
  with pytest.raises(InputError, match='steps: found 20, expected at least 24'):
    train(experiment, tmp_path / 'run', dataclasses.replace(OPTIONS, steps=20), resume=True)


def test_a_checkpoint_of_another_model(undisturbed, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  other = tiny.build(tmp_path, width=9)
  with pytest.raises(InputError, match=r'24 is of another model: .* is float32\[.*8.*\], expected float32\[.*9.*\]'):
    train(other, tmp_path / 'run', resume=True)


def test_nan_stops_with_step_task_and_checkpoint(tmp_path):
  experiment = tiny.build(tmp_path, bad_row=5)
  order = np.concatenate([experiment.train.indices(0, step) for step in range(6)])
  bad_step = int(np.flatnonzero(order == 5)[0]) // 16 + 1
  options = Options(steps=30, checkpoint_every=1, eval_every=30)
  with pytest.raises(loop.NonFiniteError) as error:
    train(experiment, tmp_path / 'run', options)
  where = 'There is no checkpoint yet.'
  if bad_step > 1:
    where = f'The last good checkpoint is {tmp_path}/run/checkpoints/{bad_step - 1}.'
  assert str(error.value) == f"The loss of task 'size' became nan at step {bad_step}. {where}"
  assert not (tmp_path / 'run' / 'result.json').exists()


def test_nan_is_skipped_by_choice(tmp_path, capsys):
  experiment = tiny.build(tmp_path, bad_row=5)
  options = Options(steps=12, eval_every=12, log_every=1, on_nonfinite='skip')
  result = training.train(experiment, options, tmp_path / 'run')
  assert '2 steps were skipped' in capsys.readouterr().out  # once in each of two epochs of six steps
  assert math.isfinite(result['test']['size']['rmse'])
  logged = [r for r in rundir.read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'losses' in r]
  assert [r['finite'] for r in logged].count(False) == 2
  assert all((r['losses']['size'] is None) == (not r['finite']) for r in logged)


def test_a_task_is_dropped_by_choice(tmp_path, capsys):
  experiment = tiny.build(tmp_path, bad_row=5)
  options = Options(steps=12, eval_every=12, log_every=1, on_nonfinite='drop')
  result = training.train(experiment, options, tmp_path / 'run')
  assert "Task 'size' was dropped from 2 steps, its loss or gradient was not finite." in capsys.readouterr().out
  assert math.isfinite(result['test']['size']['rmse'])
  logged = [r for r in rundir.read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'losses' in r]
  assert all(r['finite'] for r in logged) and [r['nonfinite'] for r in logged].count(['size']) == 2
  assert all((r['losses']['size'] is None) == (r['nonfinite'] == ['size']) for r in logged)


def test_a_task_without_any_label_is_null(tmp_path):
  experiment = tiny.build(tmp_path, rate_of_labels=0.0)
  train(experiment, tmp_path / 'run', Options(steps=4, log_every=2))
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text() + (tmp_path / 'run' / 'result.json').read_text()
  assert 'NaN' not in text and 'Infinity' not in text
  logged, *_, evaluated = rundir.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert logged['losses']['kind'] is None and logged['weights']['kind'] == 0.0 and logged['losses']['size'] > 0
  # `equal` works on losses: the angles come from the diagnostic at evaluation points
  assert logged['norms'] is None and evaluated['norms']['size'] > 0 and evaluated['norms']['kind'] is None
  assert evaluated['cosines'] == {'kind/size': None} and evaluated['score'] is None


def test_another_mode_trains_and_resumes(experiment, tmp_path):
  options = Options(steps=3, mode='shard_map', learning_rate=0.01)
  before = train(experiment, tmp_path / 'run', options)
  after = train(experiment, tmp_path / 'run', dataclasses.replace(options, steps=30), resume=True)
  assert after['steps'] == 30 and after['test']['size']['loss'] < before['test']['size']['loss']


def test_an_earlier_run_is_not_overwritten(experiment, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 1}\n')
  (tmp_path / 'run' / 'notes.txt').write_text('mine')
  (tmp_path / 'run' / 'checkpoints').mkdir()
  (tmp_path / 'run' / 'checkpoints' / '99').mkdir()
  with pytest.raises(InputError, match='run: found files of an earlier run, .*--overwrite'):
    train(experiment, tmp_path / 'run')
  assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == '{"step": 1}\n'
  train(experiment, tmp_path / 'run', Options(steps=2), overwrite=True)
  assert (tmp_path / 'run' / 'notes.txt').read_text() == 'mine'
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints') == [2]


def test_a_metrics_file_that_cannot_be_written(experiment, tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(training, 'fit', lambda *args, **kwargs: trained.append(1))
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match=r'run directory .*/file/run: cannot be written \(Not a directory\)'):
    train(experiment, tmp_path / 'file' / 'run')
  (tmp_path / 'run' / 'metrics.jsonl').mkdir(parents=True)
  with pytest.raises(InputError, match=r'metrics file .*/metrics.jsonl: cannot be written \(Is a directory\)'):
    train(experiment, tmp_path / 'run', resume=True)
  with pytest.raises(InputError, match=r'cannot be written \(Is a directory\)'):
    train(experiment, tmp_path / 'run', overwrite=True)
  assert not trained


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(steps=0), 'steps: found 0, expected a positive integer'),
    (dict(eval_every=-1), 'eval_every: found -1'),
    (dict(checkpoint_every=2.5), 'checkpoint_every: found 2.5'),
    (dict(at='heads'), "at: found 'heads', expected one of .'params', 'features'."),
    (dict(mode='gpu'), "mode: found 'gpu', expected one of"),
    (dict(on_nonfinite='ignore'), "on_nonfinite: found 'ignore'"),
    (dict(seed=-1), 'seed: found -1'),
    (dict(learning_rate=0.0), 'learning_rate: found 0.0'),
    (dict(learning_rate=math.nan), 'learning_rate: found nan'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(InputError, match=message):
    Options(**options)


def bad_labels(e):
  wrong = [
    {**batch, 'labels': {**batch['labels'], 'kind': batch['labels']['kind'].astype(float)[:, None]}} for batch in e.test
  ]
  return dataclasses.replace(e, test=wrong)


def missing_head(e):
  task = dataclasses.replace(e.tasks[0], name='third')
  return dataclasses.replace(e, tasks=(*e.tasks, task))


@pytest.mark.parametrize(
  'change, options, message',
  [
    (bad_labels, {}, r'labels are float32\[16, 1\], expected'),
    (missing_head, {}, 'third'),
    (lambda e: e, dict(balancer='nope'), 'nope'),
    (lambda e: e, dict(balancer='graddrop', at='features'), 'graddrop|jacobian|level'),
  ],
)
def test_bad_input_is_found_before_anything_is_written(experiment, tmp_path, change, options, message):
  with pytest.raises(InputError, match=message):
    train(change(experiment), tmp_path / 'run', Options(**options))
  assert not (tmp_path / 'run').exists()


def test_a_batch_that_devices_do_not_divide(tmp_path):
  experiment = tiny.build(tmp_path, batch_size=6)
  with pytest.raises(InputError, match='divisible by 4 devices'):
    train(experiment, tmp_path / 'run', Options(mode='shard_map'))
  assert not (tmp_path / 'run').exists()
