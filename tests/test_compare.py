import csv
import dataclasses
import functools
import json
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import mtljax as mtl
from mtljax import loop, sharing, training
from mtljax.base import InputError
from mtljax.compare import compare
from mtljax.experiment import Options, subset
from mtljax.lanes import Lanes, Plan, lane_evaluator

PLAN = Plan(balancers=('pcgrad',), seeds=(0, 4), learning_rates=(1e-7, 1e-2), steps=30)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def outcome(experiment, tmp_path_factory):
  folder, said = tmp_path_factory.mktemp('compare') / 'run', []
  found = compare(experiment, PLAN, run_dir=folder, config={'width': 8}, report=said.append, progress=False)
  return types.SimpleNamespace(folder=folder, found=found, said=said, rows={row['method']: row for row in found.rows})


def test_rows_and_budget(outcome):
  assert list(outcome.rows)[0] == 'single-task' and set(outcome.rows) == {'single-task', 'equal', 'pcgrad'}
  assert all(row['steps'] == 30 and row['skipped'] == 0 for row in outcome.rows.values())
  assert [line.partition(':')[0] for line in outcome.said] == ['single-task', 'equal', 'pcgrad']


def test_rates_are_chosen_on_validation_data(outcome):
  assert outcome.rows['single-task']['learning_rate'] == {'kind': 1e-2, 'size': 1e-2}
  assert outcome.rows['equal']['learning_rate'] == outcome.rows['pcgrad']['learning_rate'] == 1e-2


@pytest.mark.parametrize('method', ['equal', 'pcgrad'])
def test_a_lane_is_the_run_of_its_seed_and_rate(experiment, outcome, tmp_path, method):
  options = Options(balancer=method, seed=4, steps=30, learning_rate=1e-2)
  alone = training.train(experiment, options, tmp_path / 'run', progress=False)
  for task, values in alone['test'].items():
    for name, value in values.items():
      assert outcome.rows[method]['test'][task][name]['values'][1] == pytest.approx(value, rel=1e-3), (task, name)


def test_baselines_are_trained_on_their_task_alone(experiment, outcome, tmp_path):
  options = Options(seed=0, steps=30, learning_rate=1e-2)
  alone = training.train(subset(experiment, ['size']), options, tmp_path / 'run', progress=False)
  value = outcome.rows['single-task']['test']['size']['rmse']['values'][0]
  assert value == pytest.approx(alone['test']['size']['rmse'], rel=1e-3)


def test_delta_m_is_matched_by_seed(outcome):
  def first(method):
    test = outcome.rows[method]['test']
    return [np.array(test[task][name]['values']) for task, name in (('kind', 'accuracy'), ('size', 'rmse'))]

  for method in ('equal', 'pcgrad'):
    (kind, size), (kind_alone, size_alone) = first(method), first('single-task')
    expected = 100 * ((kind - kind_alone) / kind_alone - (size - size_alone) / size_alone) / 2
    delta = outcome.rows[method]['delta_m']
    np.testing.assert_allclose(delta['values'], expected)
    assert delta['mean'] == pytest.approx(expected.mean())
    assert delta['interval'] == pytest.approx(12.7062 * expected.std(ddof=1) / math.sqrt(2), rel=1e-4)
  assert outcome.rows['single-task']['delta_m'] == {'mean': 0.0, 'interval': None, 'values': [0.0, 0.0]}
  deltas = [row['delta_m']['mean'] for row in outcome.found.rows[1:]]
  assert deltas == sorted(deltas, reverse=True)


def test_ranks_are_among_the_balancers(outcome):
  ranks = [outcome.rows[method]['mean_rank'] for method in ('equal', 'pcgrad')]
  assert sum(ranks) == 3 and outcome.rows['single-task']['mean_rank'] is None


def test_step_time_is_relative_to_equal(outcome):
  assert outcome.rows['equal']['step_time'] == 1.0
  for row in outcome.rows.values():
    assert row['step_ms'] == pytest.approx(row['step_time'] * outcome.rows['equal']['step_ms'])
    assert 0.05 < row['step_time'] < 50


def test_files(outcome):
  saved = json.loads((outcome.folder / 'compare.json').read_text())
  assert saved['experiment'] == 'tiny' and saved['width'] == 8 and saved['seeds'] == [0, 4] and saved['steps'] == 30
  assert saved['balancers'] == ['equal', 'pcgrad'] and saved['metrics']['size'] == {
    'metric': 'rmse',
    'higher_is_better': False,
  }
  assert saved['rows'] == json.loads(json.dumps(outcome.found.rows))
  with (outcome.folder / 'compare.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['method'] for row in rows] == [row['method'] for row in saved['rows']]
  assert float(rows[1]['delta_m']) == saved['rows'][1]['delta_m']['mean']
  assert float(rows[2]['size rmse interval']) == saved['rows'][2]['test']['size']['rmse']['interval']
  assert (outcome.folder / 'compare.png').read_bytes()[:4] == b'\x89PNG'


def test_it_prints_a_leaderboard(outcome):
  lines = str(outcome.found).splitlines()
  assert lines[0].split()[:3] == ['method', 'kind', 'accuracy'] and len(lines) == 5
  assert len({len(line) for line in lines}) == 1


def test_every_lane_starts_from_its_own_seed(experiment):
  lanes = Lanes(experiment, PLAN, 'equal', lane_evaluator(experiment))
  kernels = np.asarray(lanes.state.params['shared']['Dense_0']['kernel'])
  np.testing.assert_array_equal(kernels[:2], kernels[2:])  # rates share the start
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_a_diverging_lane_leaves_the_others_alone(tmp_path):
  experiment = tiny.build(tmp_path, bad_row=5)
  plan = dataclasses.replace(PLAN, steps=6)
  lanes = Lanes(experiment, plan, 'equal', lane_evaluator(experiment))
  assert lanes.train('', False) == 4  # every lane meets the bad row once in its epoch of six steps
  assert np.isfinite(lanes.evaluate()['test']['size']['rmse']).all()


def test_a_decoder_is_run_lane_by_lane(experiment):
  decoded = dataclasses.replace(experiment.tasks[0], decode=lambda head, x: head(x).argmax(-1))
  batches = experiment.test
  lanes = Lanes(experiment, PLAN, 'equal', lane_evaluator(experiment))
  expected = lanes.evaluator(lanes.state, batches, (2, 2))
  evaluator = lane_evaluator(dataclasses.replace(experiment, tasks=(decoded, experiment.tasks[1])))
  found = evaluator(lanes.state, batches, (2, 2))
  for task, name in (('kind', 'accuracy'), ('size', 'rmse'), ('kind', 'loss')):
    np.testing.assert_allclose(found[task][name], expected[task][name], rtol=1e-5)


def without_metrics(e):
  return dataclasses.replace(e, tasks=(dataclasses.replace(e.tasks[0], metrics={}), e.tasks[1]))


def with_an_nnx_instance(e):
  from flax import nnx

  head = nnx.Linear(8, 2, rngs=nnx.Rngs(0))
  model = mtl.sharing.hard(mtl.trunks.MLP((8,)), {'kind': head, 'size': lambda rngs: nnx.Linear(8, 1, rngs=rngs)})
  return dataclasses.replace(e, model=model)


@pytest.mark.parametrize(
  'change, plan, message',
  [
    (without_metrics, {}, "Task 'kind': metrics are empty"),
    (with_an_nnx_instance, {}, r'nnx instance, expected a function rngs -> module'),
    (lambda e: dataclasses.replace(e, val=[]), {}, 'Experiment val: found no batch'),
    (lambda e: e, dict(balancers=('equal', 'nope')), "unknown method 'nope'"),
    (lambda e: e, dict(balancers=('graddrop',), at='features'), 'features'),
    (lambda e: e, dict(at='heads'), "at: found 'heads'"),
  ],
)
def test_what_is_wrong_is_found_before_training(experiment, tmp_path, monkeypatch, change, plan, message):
  monkeypatch.setattr(loop, 'fit', functools.partial(pytest.fail, 'trained'))
  with pytest.raises(InputError, match=message):
    compare(change(experiment), dataclasses.replace(PLAN, **plan), run_dir=tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


def test_variants_are_rows_for_every_balancer_against_the_same_baselines(experiment, tmp_path):
  def variant(architecture):
    heads = {'kind': nn.Dense(2), 'size': nn.Dense(1)}
    return dataclasses.replace(experiment, model=sharing.parse(architecture)(mtl.trunks.MLP((8,)), heads))

  variants = {name: variant(name) for name in ('mmoe(num_experts=2)', 'hard')}
  plan = dataclasses.replace(PLAN, learning_rates=(1e-2,), steps=10)
  found = compare(experiment, plan, variants=variants, run_dir=tmp_path / 'run', progress=False)
  rows = {row['method']: row for row in found.rows}
  names = [f'{variant}, {method}' for variant in variants for method in ('equal', 'pcgrad')]
  assert list(rows)[0] == 'single-task' and set(rows) == {'single-task', *names}
  plain = compare(experiment, plan, progress=False)
  again = {row['method']: row for row in plain.rows}
  for one, other in (('single-task', 'single-task'), ('hard, equal', 'equal'), ('hard, pcgrad', 'pcgrad')):
    assert rows[one]['test'] == again[other]['test']
  assert rows['mmoe(num_experts=2), equal']['test'] != rows['hard, equal']['test']
  trunk, heads = 6 * 8 + 8, (8 * 2 + 2) + (8 + 1)
  sizes = {name: row['parameters'] for name, row in rows.items()}
  assert sizes == {
    'single-task': 2 * trunk + heads,
    **dict.fromkeys(names[2:], trunk + heads),
    **dict.fromkeys(names[:2], 2 * trunk + heads + 2 * (6 * 2 + 2)),
  }
  assert rows[names[0]]['step_time'] == 1 and f'time/{names[0]}' in str(found) and f'{2 * trunk + heads}' in str(found)
  assert 'parameters' not in str(plain)


def test_an_earlier_comparison_is_not_overwritten(experiment, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'fit', functools.partial(pytest.fail, 'trained'))
  (tmp_path / 'compare.json').write_text('{}')
  with pytest.raises(InputError, match='--overwrite'):
    compare(experiment, PLAN, run_dir=tmp_path, progress=False)


def test_a_variant_of_other_tasks_is_refused(experiment, monkeypatch):
  monkeypatch.setattr(loop, 'fit', functools.partial(pytest.fail, 'trained'))
  with pytest.raises(InputError, match=r"variants: found one with tasks \('kind',\), expected \('kind', 'size'\)"):
    compare(experiment, PLAN, variants={'one': subset(experiment, ['kind'])}, progress=False)


def test_the_row_that_cannot_be_trained_is_named(experiment, monkeypatch):
  monkeypatch.setattr(loop, 'fit', functools.partial(pytest.fail, 'trained'))
  model = mtl.sharing.lora(mtl.trunks.MLP((8,)), {'kind': nn.Dense(2), 'size': nn.Dense(1)})
  variants = {'hard': experiment, 'lora(rank=4)': dataclasses.replace(experiment, model=model)}
  with pytest.raises(InputError, match=r"^lora\(rank=4\): at='features': feature"):
    compare(experiment, dataclasses.replace(PLAN, balancers=(), at='features'), variants=variants, progress=False)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(seeds=()), r'seeds: found \[\]'),
    (dict(seeds=(0, 0)), r'seeds: found \[0, 0\], expected one or more different whole numbers'),
    (dict(learning_rates=(0.0,)), r'learning_rates: found \[0.0\], expected one or more different positive numbers'),
    (dict(learning_rates=(math.nan,)), 'learning_rates: found'),
    (dict(steps=0), 'steps: found 0'),
  ],
)
def test_plan_out_of_range(options, message):
  with pytest.raises(InputError, match=message):
    Plan(**options)


def test_keys_of_lanes_are_those_of_runs(experiment):
  lanes = Lanes(experiment, PLAN, 'equal', lane_evaluator(experiment))
  expected = jnp.stack([jax.random.key(seed) for seed in (0, 4, 0, 4)])
  np.testing.assert_array_equal(jax.random.key_data(lanes.state.key), jax.random.key_data(expected))
