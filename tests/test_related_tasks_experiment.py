"""The study of learned relations in `experiments/related_tasks.py`."""

import dataclasses

import numpy as np
import pytest

import mtljax as mtl
from mtljax import experiment as experiment_lib
from mtljax import runs

related = experiment_lib.load('related_tasks')


def test_mtrl_finds_the_groups():
  values, learned = related.study(related.Config(steps=500), ('mtrl',), seeds=(0,))
  assert values['rand index']['mtrl'][0] >= 0.6 and values['correlation']['mtrl'][0] >= 0.7
  assert related.tree_of(learned['mtrl'][0]) == related.TREE


@pytest.mark.slow
def test_what_learns_relations_reaches_the_thresholds_and_generalises_better():
  values, _ = related.study(related.Config(), ('mtrl', 'graph', 'equal', 'single'), seeds=(5,))
  for method in ('mtrl', 'graph'):
    assert values['rand index'][method][0] >= 0.6 and values['correlation'][method][0] >= 0.7
    assert values['correlation']['single'][0] < values['correlation'][method][0]
    assert values['r2']['equal'][0] < values['r2'][method][0]


@pytest.mark.slow
def test_branches_are_the_groups():
  values, _ = related.study(related.Config(), ('branching',), seeds=(0, 1, 2))
  assert np.mean(values['rand index']['branching']) >= 0.6


def test_agreement_of_the_truth_and_of_its_opposite():
  made = related.data(related.Config())
  assert related.tree_of(made.covariance) == related.TREE
  params = {'shared': {}, 'tasks': {name: {'kernel': row} for name, row in zip(made.names, made.covariance)}}
  found = related.agreement(related.Config(method='equal'), params, made)
  assert found == {'correlation': pytest.approx(1), 'rand index': 1}
  wrong = {name: {'kernel': np.eye(9)[place % 3]} for place, name in enumerate(made.names)}  # a third of each group
  found = related.agreement(related.Config(method='equal'), {'shared': {}, 'tasks': wrong}, made)
  assert found['correlation'] < 0 and found['rand index'] < 0


@pytest.mark.parametrize('method', related.METHODS)
def test_every_method_is_an_experiment(method):
  experiment = related.build(related.Config(method=method, hidden=4))
  run = runs.Run(experiment, experiment_lib.Options(steps=10))
  assert run.names == related.TREE.leaves


def test_unknown_method_is_named():
  with pytest.raises(mtl.InputError, match="method: found 'mean', expected one of"):
    related.build(dataclasses.replace(related.Config(), method='mean'))


def test_table():
  values = {'correlation': {'mtrl': [0.5, 1.0], 'branching': [np.nan, np.nan]}, 'r2': {'mtrl': [0.25, 0.25]}}
  lines = related.table(values, (0, 1)).splitlines()
  assert lines[0].split() == 'seed 0 seed 1 mean ± std'.split() and len(lines) == 4
  assert lines[2].endswith('mtrl    0.50    1.00  0.75 ± 0.35') and lines[3].split()[-3:] == ['0.25', '±', '0.00']


def test_figure_is_labelled():
  made = related.data(related.Config())
  canvas = related.figure(made, {'mtrl': made.covariance, 'equal': np.eye(9), 'graph': np.maximum(made.covariance, 0)})
  canvas.canvas.draw()
  titles = [axis.get_title() for axis in canvas.axes if axis.get_title()]
  assert len(titles) == 5 and canvas.get_size_inches()[0] == 9
  assert [axis.get_xlabel() for axis in canvas.axes[:3]] == ['task'] * 3
