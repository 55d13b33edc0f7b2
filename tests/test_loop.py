import math
import os
import signal

import jax
import numpy as np
import pytest

from mtljax import loop, rundir
from mtljax.base import StepInfo

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
