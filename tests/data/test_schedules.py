"""Which task a step has: a function of the step, in the shares that the schedule promises."""

import json
import math

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import Batches, schedules

COUNTS = {'b': 90, 'a': 10}


def draws(schedule, steps, counts=COUNTS):
  return [schedule.turn(counts, step) for step in range(steps)]


def test_round_robin():
  assert draws(schedules.round_robin(), 3) == [('a', 0), ('b', 0), ('a', 1)]
  assert schedules.round_robin().turn(COUNTS, 100_001) == ('b', 50_000)


@pytest.mark.parametrize('temperature, share', [(1.0, 0.1), (2.0, 0.25), (math.inf, 0.5)])
def test_shares(temperature, share):
  names = [name for name, _ in draws(schedules.sampled(temperature), 4000)]
  error = 4 * math.sqrt(share * (1 - share) / 4000)
  assert abs(names.count('a') / 4000 - share) < error


def test_weights_in_place_of_sizes():
  names = [name for name, _ in draws(schedules.sampled(weights={'a': 3.0, 'b': 1.0, 'other': 9.0}), 4000)]
  assert abs(names.count('a') / 4000 - 0.75) < 0.03


def test_turns_count_what_came_before_in_any_order_of_asking():
  schedule = schedules.sampled(seed=3)
  late = [schedule.turn(COUNTS, step) for step in (5000, 2047, 2048)]
  seen = {'a': 0, 'b': 0}
  expected = []
  for step in range(5001):
    name, turn = schedule.turn(COUNTS, step)
    assert turn == seen[name]
    seen[name] += 1
    expected.append((name, turn))
  assert late == [expected[step] for step in (5000, 2047, 2048)]
  assert expected != draws(schedules.sampled(seed=4), 5001)


def test_batches_have_the_task_of_the_step_and_every_example_of_it_in_its_epoch():
  examples = {name: {'inputs': np.arange(n), 'labels': np.arange(n)} for name, n in (('a', 6), ('b', 12))}
  train = Batches(examples, 3, schedule=schedules.sampled(seed=1))
  assert train.steps_per_epoch == 2 + 4 and set(train.example()) == {'a', 'b'}
  seen = {'a': [], 'b': []}
  for step in range(60):
    batch = train(0, step)
    (name,) = batch
    np.testing.assert_array_equal(batch[name]['inputs'], train.indices(0, step)[name])
    seen[name].append(np.asarray(batch[name]['labels']))
  for name, n in (('a', 6), ('b', 12)):
    epochs = len(seen[name]) * 3 // n
    assert epochs >= 2
    for epoch in np.concatenate(seen[name])[: epochs * n].reshape(epochs, n):
      assert sorted(epoch) == list(range(n))
  lanes = [set(train.indices(seed, 5)) for seed in range(3)]
  assert lanes[0] == lanes[1] == lanes[2]  # one program for all seeds
  alone = train.select('b')
  assert all(set(alone.indices(0, step)) == {'b'} for step in range(5))


def test_hard_tasks_are_drawn_more_often():
  schedule = schedules.by_loss(uniform=0.2, seed=5)
  assert schedule.shares(('a', 'b')).tolist() == [0.5, 0.5]
  for _ in range(50):
    schedule = schedule.hear({'a': 3.0, 'b': 1.0})
  assert schedule.shares(('a', 'b')).tolist() == [0.5, 0.5]  # until it is renewed
  late = schedule.renew(COUNTS, 100)
  np.testing.assert_allclose(late.shares(('a', 'b')), [0.8 * 0.75 + 0.1, 0.8 * 0.25 + 0.1])
  names = [late.turn(COUNTS, step)[0] for step in range(100, 4100)]
  assert abs(names.count('a') / 4000 - 0.7) < 0.03
  np.testing.assert_allclose(late.shares(('a', 'b', 'new'))[[0, 2]], 0.8 * 3 / 7 + 0.2 / 3)  # as the hardest one
  weighted = schedules.by_loss(2.0, weights={'a': 3.0, 'b': 1.0}, uniform=0.0).hear({'a': 3.0, 'b': 1.0})
  np.testing.assert_allclose(weighted.renew(COUNTS, 1).shares(('a', 'b')), [0.75, 0.25])


def test_turns_are_counted_over_what_was_heard():
  schedule, seen = schedules.by_loss(seed=2), {'a': 0, 'b': 0}
  for step in range(60):
    name, turns = schedule.turn(COUNTS, step)
    assert turns == seen[name]
    seen[name] += 1
    schedule = schedule.hear({name: float(len(name) + step % 3)} if step % 7 else {name: float('nan')})
    if (step + 1) % 20 == 0:
      schedule = schedule.renew(COUNTS, step + 1)
    if step == 33:
      schedule = schedules.by_loss(seed=2).restore(json.loads(json.dumps(schedule.state())))
  assert min(seen.values()) > 10 and np.isfinite([x for _, x in schedule.heard]).all()


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: schedules.sampled(0.5), 'temperature is 0.5'),
    (lambda: schedules.sampled(seed=-1), 'seed: found -1'),
    (lambda: schedules.sampled(weights={'a': 0.0}), 'expected positive numbers'),
    (lambda: schedules.sampled(weights={'a': 1.0}).turn(COUNTS, 0), r"unknown \['b'\]"),
    (lambda: schedules.by_loss(0.5), 'by_loss: temperature is 0.5'),
    (lambda: schedules.by_loss(uniform=1.5), 'by_loss: uniform is 1.5, expected a number from 0 to 1'),
    (lambda: schedules.by_loss(weights={'a': 1.0}).turn(COUNTS, 0), r"by_loss: .* unknown \['b'\]"),
    (lambda: schedules.by_loss().restore({'start': 3}), "expected 'start' and"),
    (lambda: schedules.by_loss().restore(None), 'found the state None'),
    (lambda: schedules.by_loss().renew(COUNTS, 5).turn(COUNTS, 4), 'step: found 4 .* expected 5 or later'),
    (
      lambda: schedules.by_loss().restore({'start': 3, 'losses': {}, 'before': {'a': 1.5}, 'heard': {}}),
      'numbers by task',
    ),
    (
      lambda: Batches({'inputs': np.arange(4), 'labels': {'a': np.arange(4)}}, 2, schedule=schedules.round_robin()),
      'schedule: found one for a single input',
    ),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(InputError, match=message):
    call()
