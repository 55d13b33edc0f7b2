"""Runs whose steps learn from one task each, from buckets and transformed batches: resumed, compared, on devices."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import checkpoint, rundir, training
from mtljax.compare import Plan, compare
from mtljax.data import schedules
from mtljax.experiment import Options
from mtljax.runs import Run


class Mean(nn.Module):
  """Of the places that count, as features."""

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    x, mask = inputs['x'], inputs['mask'][..., None]
    return nn.relu(nn.Dense(8)(jnp.sum(x * mask, axis=1) / jnp.maximum(mask.sum(axis=1), 1)))


def examples(count, seed):
  r = np.random.default_rng(seed)
  lengths = r.integers(1, 9, count)
  mask = np.arange(8) < lengths[:, None]
  x = (r.normal(size=(count, 8, 3)) * mask[..., None]).astype(np.float32)
  return {'inputs': {'x': x, 'mask': mask}, 'labels': (x.sum(axis=(1, 2)) > 0).astype(np.int32)}, lengths


def noise(key, batch):
  return {
    task: {**part, 'inputs': {**part['inputs'], 'x': part['inputs']['x'] + 0.1 * jax.random.normal(key)}}
    for task, part in batch.items()
  }


def experiment(schedule=None):
  sets = {'long': examples(96, 0), 'short': examples(40, 1)}
  train = {task: part for task, (part, _) in sets.items()}
  tasks = tuple(
    mtl.Task(t, mtl.losses.softmax_cross_entropy, metrics={'accuracy': mtl.metrics.accuracy()}) for t in sets
  )
  return mtl.Experiment(
    name='scheduled',
    model=mtl.sharing.hard(Mean(), {t: nn.Dense(2) for t in sets}),
    tasks=tasks,
    train=mtl.data.Batches(
      train,
      8,
      transform=noise,
      schedule=schedule or schedules.sampled(2.0),
      buckets={'long': mtl.data.Buckets(sets['long'][1], (4, 8), 'inputs/.*')},
    ),
    val=mtl.data.eval_batches(train, 40),
    test=mtl.data.eval_batches(train, 40),
    optimizer=lambda rate, names: mtl.task_optimizer(optax.adam(rate), {t: optax.adam(rate) for t in names}),
  )


OPTIONS = Options(balancer='equal', steps=30, eval_every=15, checkpoint_every=7)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
  whole = training.train(experiment(), OPTIONS, tmp_path / 'whole', progress=False)
  training.train(experiment(), dataclasses.replace(OPTIONS, steps=21), tmp_path / 'parts', progress=False)
  resumed = training.train(experiment(), OPTIONS, tmp_path / 'parts', resume=True, progress=False)
  assert resumed['params_sha256'] == whole['params_sha256']
  lines = [r['losses'] for r in rundir.read_metrics(tmp_path / 'whole' / 'metrics.jsonl') if 'losses' in r]
  assert len(lines) == 3 and all(None not in line.values() for line in lines)
  assert checkpoint.steps(tmp_path / 'whole' / 'checkpoints')


def test_by_loss_goes_on_as_it_would_have(tmp_path):
  """Stopped in the middle of a block of shares, whose losses the checkpoint keeps."""
  options = dataclasses.replace(OPTIONS, log_every=4)
  make = lambda: experiment(schedules.by_loss(uniform=0.0))
  whole = training.train(make(), options, tmp_path / 'whole', progress=False)
  training.train(make(), dataclasses.replace(options, steps=14), tmp_path / 'parts', progress=False)
  resumed = training.train(make(), options, tmp_path / 'parts', resume=True, progress=False)
  assert resumed['params_sha256'] == whole['params_sha256']
  folder = tmp_path / 'whole' / 'checkpoints'
  data = checkpoint.read_manifest(folder / str(checkpoint.steps(folder)[0]))['data']
  assert data['start'] == 28 and sum(data['before'].values()) == 28 and set(data['heard']) == {'long', 'short'}


def test_by_loss_where_it_cannot_be(tmp_path):
  make = lambda: experiment(schedules.by_loss())
  with pytest.raises(mtl.InputError, match='^steps_per_call: found 5 with the schedule by_loss, expected 1'):
    Run(make(), dataclasses.replace(OPTIONS, steps_per_call=5))
  with pytest.raises(mtl.InputError, match='^single-task: schedule: found by_loss, which hears of the losses'):
    compare(make(), Plan(balancers=('equal',), seeds=(0,), steps=3, learning_rates=(1e-2,)), progress=False)


def test_a_task_moves_when_it_has_its_turn():
  run = Run(experiment(schedules.round_robin()), OPTIONS)
  state = run.init()
  for index, task in enumerate(['long', 'short', 'long']):
    before = jax.device_get(state.params['tasks'])
    state, info = run.step(state, index)
    after = state.params['tasks']
    moved = {t for t in before if any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before[t], after[t]))))}
    assert moved == {task} and info.present.tolist() == [task == 'long', task == 'short']


@pytest.mark.parametrize('mode', ['sharded'])
def test_devices_see_the_same(mode):
  runs = [Run(experiment(), dataclasses.replace(OPTIONS, mode=m)) for m in ('jit', mode)]
  states = [run.init() for run in runs]
  for index in range(4):
    states = [run.step(state, index)[0] for run, state in zip(runs, states)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *(s.params for s in jax.device_get(states))
  )


def test_lanes_of_a_comparison_share_the_turns(tmp_path):
  plan = Plan(balancers=('equal',), seeds=(0, 1), steps=12, learning_rates=(1e-2,))
  found = compare(experiment(), plan, progress=False)
  assert {'single-task', 'equal'} <= {row['method'] for row in found.rows}
