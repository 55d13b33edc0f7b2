import dataclasses
import json
import math
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny

from mtljax import checkpoint, loop, rundir
from mtljax.base import InputError, StepInfo
from mtljax.experiment import Options
from mtljax.runs import Run

NAMES = ('a', 'b')


def info(losses=(1.0, 2.0), present=(True, True), finite=True, gramian=None, grad_norm=1.0, nonfinite=None):
  gramian = None if gramian is None else np.array(gramian, np.float32)
  norms = None if gramian is None else np.sqrt(np.diagonal(gramian))
  return StepInfo(
    losses=np.array(losses, np.float32),
    present=np.array(present),
    weights=None,
    gramian=gramian,
    norms=norms,
    grad_norm=np.float32(grad_norm),
    penalty=np.float32(0),
    finite=np.array(finite),
    nonfinite=~np.isfinite(losses) if nonfinite is None else np.array(nonfinite),
  )


def count(state, index):
  return state + 1, info()


def fit(step=count, steps=10, **options):
  return loop.fit(options.pop('state', 0), step, steps, names=NAMES, progress=False, **options)


def test_fit_calls_back_at_the_right_steps():
  calls = []
  fitted = fit(
    steps=11,
    log_every=4,
    eval_every=5,
    save_every=3,
    log=lambda step, _: calls.append(('log', step)),
    evaluate=lambda step, state, _: calls.append(('eval', step, state)),
    save=lambda step, state: calls.append(('save', step, state)),
  )
  assert fitted.state == 11 and fitted.step == 11 and fitted.stopped is None and fitted.skipped == 0
  assert [c[1] for c in calls if c[0] == 'log'] == [4, 8, 11]
  assert [c[1:] for c in calls if c[0] == 'eval'] == [(5, 5), (10, 10), (11, 11)]
  assert [c[1:] for c in calls if c[0] == 'save'] == [(3, 3), (6, 6), (9, 9), (11, 11)]


def test_a_line_has_the_last_loss_of_tasks_that_take_turns():
  lines = {}
  turns = [(True, False), (False, True), (False, True)]
  fit(
    lambda state, index: (state, info((index, 10 * index), turns[index % 3])),
    steps=5,
    log_every=3,
    log=lambda step, found: lines.update({step: (found.losses.tolist(), found.present.tolist())}),
  )
  assert lines == {3: ([0, 20], [True, True]), 5: ([3, 40], [True, True])}
  fit(
    lambda state, index: (state, info(present=turns[0])),
    log=lambda step, found: lines.update({step: found.present.tolist()}),
  )
  assert lines[10] == [True, False]


def test_the_bar_has_a_loss_for_each_of_few_tasks_and_the_mean_of_many():
  assert loop._losses(info((1.0, 2.0)), NAMES) == 'a 1 b 2'
  assert loop._losses(info((1.0, 2.0), present=(True, False)), NAMES) == 'a 1'
  many = info((1.0, 2.0, 3.0, 6.0, 9.0), present=(True, True, True, True, False))
  assert loop._losses(many, 'abcde') == 'mean of 4 tasks 3'


def test_fit_saves_what_evaluation_asks_for():
  saved = []
  fit(eval_every=2, evaluate=lambda step, *_: step == 4, save=lambda step, _: saved.append(step))
  assert saved == [4, 10]


def test_fit_waits_for_the_device_once_a_window(monkeypatch):
  fetched = []
  fetch = jax.device_get
  monkeypatch.setattr(loop.jax, 'device_get', lambda window: fetched.append(len(window)) or fetch(window))
  fit(steps=25, log_every=10)
  assert fetched == [1, 9, 10, 5]  # the first step alone, so that compiling is not taken for its time


def test_fit_goes_on_where_it_was():
  seen = []
  fitted = fit(lambda state, index: (seen.append(index), (state, info()))[1], start=7, log=lambda step, _: None)
  assert seen == [7, 8, 9] and fitted.step == 10
  assert fit(start=10).step == 10 and fit(start=10).step_ms is None


@pytest.mark.parametrize(
  'bad, message',
  [
    (info(losses=(1.0, math.nan), finite=False), r"The loss of task 'b' became nan at step 4\."),
    (info(losses=(math.inf, 1.0), finite=False), r"The loss of task 'a' became inf at step 4\."),
    (info(finite=False, nonfinite=(False, True)), r"The gradient of task 'b' was not finite at step 4\."),
    (info(grad_norm=math.nan, finite=False), r'The gradient \(or a penalty\) became nan at step 4, while all losses'),
  ],
)
def test_fit_stops_at_what_is_not_finite(bad, message):
  step = lambda state, index: (state + 1, bad if index == 3 else info())
  saved = []
  with pytest.raises(loop.NonFiniteError, match=message):
    fit(step, log_every=10, save_every=2, save=lambda step, _: saved.append(step))
  assert saved == [2]


def test_fit_skips_and_counts_for_every_lane():
  lanes = dict(losses=np.ones((3, 2)), present=np.ones((3, 2), bool))
  step = lambda state, index: (state, info(**lanes, finite=np.array([True, index > 1, index != 5])))
  fitted = fit(step, on_nonfinite='skip')
  np.testing.assert_array_equal(fitted.skipped, [0, 2, 1])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(number):
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

  def step(state, index):
    if index == 6:
      os.kill(os.getpid(), number)
    return state + 1, info()

  saved, logged, evaluated = [], [], []
  fitted = fit(
    step,
    steps=100,
    log=lambda step, _: logged.append(step),
    evaluate=lambda step, *_: evaluated.append(step),
    save=lambda step, state: saved.append((step, state)),
  )
  assert fitted.stopped == signal.Signals(number).name and fitted.step == 7 and saved == [(7, 7)]
  assert logged == [] and evaluated == []  # no line that an undisturbed run would not have
  assert {n: signal.getsignal(n) for n in before} == before


def test_a_second_ctrl_c_acts_at_once():
  def step(state, index):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return state, info()

  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
  try:
    with pytest.raises(KeyboardInterrupt):
      fit(step)
  finally:
    signal.signal(signal.SIGINT, before)


def test_record_has_norms_and_cosines_and_null_for_the_absent():
  found = info(losses=(0.1, 0.0), present=(True, False), gramian=[[4, 0], [0, 0]])
  record = rundir.record(3, found, NAMES)
  assert record['losses'] == {'a': 0.1, 'b': None}
  assert record['norms'] == {'a': 2.0, 'b': None}
  assert record['cosines'] == {'a/b': None}
  assert rundir.angles(np.array([[4.0, -3.0], [-3.0, 9.0]]), NAMES)['cosines'] == {'a/b': -0.5}


# One run of an experiment


OPTIONS = Options(
  balancer='pcgrad', seed=3, steps=24, eval_every=6, checkpoint_every=4, log_every=5, learning_rate=0.01
)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def undisturbed(experiment, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  result = loop.train(experiment, OPTIONS, folder, progress=False)
  return folder, result


def train(experiment, folder, options=OPTIONS, **kwargs):
  return loop.train(experiment, options, folder, progress=False, **kwargs)


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
    assert loop.train(experiment, OPTIONS, tmp_path / 'run') is None
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
  result = loop.train(experiment, options, tmp_path / 'run')
  assert '2 steps were skipped' in capsys.readouterr().out  # once in each of two epochs of six steps
  assert math.isfinite(result['test']['size']['rmse'])
  logged = [r for r in rundir.read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'losses' in r]
  assert [r['finite'] for r in logged].count(False) == 2
  assert all((r['losses']['size'] is None) == (not r['finite']) for r in logged)


def test_a_task_is_dropped_by_choice(tmp_path, capsys):
  experiment = tiny.build(tmp_path, bad_row=5)
  options = Options(steps=12, eval_every=12, log_every=1, on_nonfinite='drop')
  result = loop.train(experiment, options, tmp_path / 'run')
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
  monkeypatch.setattr(loop, 'fit', lambda *args, **kwargs: trained.append(1))
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
