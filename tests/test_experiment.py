import dataclasses
import sys

import jax
import numpy as np
import pytest
import tiny

import mtljax as mtl
from mtljax import experiment as experiment_lib
from mtljax.base import InputError, Metric, Task
from mtljax.experiment import Experiment, Options
from mtljax.runs import Run


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


def test_load_takes_a_file_and_builds(tmp_path, monkeypatch):
  module = experiment_lib.load(str(tiny.write(tmp_path)))
  config = module.Config(width=5)
  experiment = experiment_lib.build(module, config)
  assert experiment.name == 'tiny' and [task.name for task in experiment.tasks] == ['kind', 'size']
  monkeypatch.chdir(tmp_path)
  assert experiment_lib.load('tiny.py').__file__ == str(tmp_path / 'tiny.py')
  assert str(tmp_path) not in sys.path


def test_files_of_one_name_do_not_mix(tmp_path):
  for name, width in (('a', 3), ('b', 4)):
    (tmp_path / name).mkdir()
    tiny.write(tmp_path / name, source=tiny.SOURCE.replace('width: int = 8', f'width: int = {width}'))
  modules = [experiment_lib.load(str(tmp_path / name / 'tiny.py')) for name in 'ab']
  assert [module.Config().width for module in modules] == [3, 4]


def test_a_file_may_import_its_neighbours(tmp_path):
  (tmp_path / 'neighbour_of_tiny.py').write_text('WIDTH = 6\n')
  source = tiny.SOURCE.replace('import mtljax as mtl', 'import mtljax as mtl\nimport neighbour_of_tiny')
  assert experiment_lib.load(str(tiny.write(tmp_path, source=source))).neighbour_of_tiny.WIDTH == 6


@pytest.mark.parametrize(
  'old, new, message',
  [
    ('import optax', 'import optaxx', r"cannot be imported, ModuleNotFoundError: No module named 'optaxx'"),
    ('import optax', 'import (', r'cannot be imported, SyntaxError'),
    ('def build(', 'def make(', r'found no `build`, expected a dataclass Config and build\(config\)'),
    ('class Config', 'class Settings', r'found no `Config`'),
    ('frozen=True', 'frozen=False', r'Config is <class .*>, expected a frozen dataclass'),
    ('width: int = 8', 'width: int', r'Config.width has no default|non-default argument'),
  ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, old, new, message):
  source = tiny.SOURCE.replace(old, new)
  with pytest.raises(InputError, match=message) as error:
    experiment_lib.load(str(tiny.write(tmp_path, source=source)))
  assert str(tmp_path / 'tiny.py') in str(error.value)


def test_no_such_file(tmp_path):
  with pytest.raises(InputError, match=r'experiment nope.py: found no such file, expected a .py file or one of \['):
    experiment_lib.load('nope.py')
  with pytest.raises(InputError, match='found a folder'):
    experiment_lib.load(str(tmp_path))


def test_build_returns_an_experiment(tmp_path):
  source = tiny.SOURCE.replace('return Experiment(', 'return dict(')
  module = experiment_lib.load(str(tiny.write(tmp_path, source=source)))
  with pytest.raises(InputError, match='build returned dict, expected an mtljax.Experiment'):
    experiment_lib.build(module, module.Config())


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(name='a/b'), "name: found 'a/b'"),
    (dict(tasks=()), 'tasks: found an empty tuple'),
    (dict(model=None), 'model: found NoneType'),
    (dict(train=[1]), 'train: found list, expected mtljax.data.Batches'),
    (dict(val={'inputs': 1}), 'val: found dict, expected a list of batches'),
    (dict(test=[]), 'test: found no batch'),
    (dict(optimizer=None), 'optimizer: found None'),
  ],
)
def test_experiment_checks_its_parts(experiment, change, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(experiment, **change)


def test_subset_has_the_same_numbers(experiment):
  part = experiment_lib.subset(experiment, ['size'])
  whole_batch, batch = experiment.train(3, 7), part.train(3, 7)
  np.testing.assert_array_equal(batch['inputs'], whole_batch['inputs'])
  assert list(batch['labels']) == ['size'] and 'kind' not in batch['mask']
  assert [task.name for task in part.tasks] == ['size'] and part.name == experiment.name
  key, x = jax.random.key(0), batch['inputs']
  params = part.model.init(key, {'size': x})[0]
  whole = experiment.model.init(key, {'kind': x, 'size': x})[0]
  assert list(params['tasks']) == ['size']
  jax.tree.map(np.testing.assert_array_equal, params['tasks']['size'], whole['tasks']['size'])
  assert len(part.test) == len(experiment.test) and list(part.test[0]['labels']) == ['size']


def test_subset_keeps_the_penalties_of_its_tasks(experiment):
  penalties = tuple(mtl.Penalty(1.0, lambda params: 0.0, task) for task in (None, 'kind', 'size'))
  model = experiment.model._replace(penalties=penalties)
  part = experiment_lib.subset(dataclasses.replace(experiment, model=model, penalties=penalties), ['kind'])
  for kept in (part.penalties, part.model.penalties):
    assert [penalty.task for penalty in kept] == [None, 'kind']
  with pytest.raises(InputError, match=r"unknown \['sise'\]"):
    experiment_lib.subset(experiment, ['sise'])


def test_config_comes_back_from_json(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Inner:
    depth: int = 1

  @dataclasses.dataclass(frozen=True)
  class Config:
    layers: tuple[int, ...] = (1, 2)
    inner: Inner = dataclasses.field(default_factory=Inner)

  config = Config((3,), Inner(4))
  assert experiment_lib.config_from_json(Config, {'layers': [3], 'inner': {'depth': 4}}) == config
  with pytest.raises(InputError, match=r"config: .*unknown \['layer'\]"):
    experiment_lib.config_from_json(Config, {'layer': [3]})


def test_fields_have_the_meaning_that_docstrings_and_comments_give(tmp_path):
  fields = experiment_lib.fields(experiment_lib.load(str(tiny.write(tmp_path))).Config)
  assert {name: text for name, (_, _, text) in fields.items() if text} == {
    'width': 'units of the trunk.',
    'batch_size': 'rows of a batch',
    'rate_of_labels': 'share of examples that have a class',
    'bad_row': 'this training example is NaN',
  }
  assert fields['width'][:2] == (int, 8) and fields['layers'][1] == (4,)


def test_score_points_up():
  def metric(higher):
    return Metric(None, None, None, higher)

  tasks = (
    Task('a', len, metrics={'accuracy': metric(True), 'loss_like': metric(False)}),
    Task('b', len, metrics={'rmse': metric(False)}),
    Task('c', len),
  )
  values = {'a': {'accuracy': 0.9, 'loss_like': 7.0}, 'b': {'rmse': 0.5}, 'c': {'loss': 0.1}}
  assert experiment_lib.score(tasks, values) == pytest.approx((0.9 - 0.5 - 0.1) / 3)
  assert experiment_lib.score(tasks, values | {'c': {'loss': float('nan')}}) is None
  assert experiment_lib.score(tasks, {}) is None


def test_shipped_experiments_load_and_have_a_header():
  for name, path in experiment_lib.shipped().items():
    module = experiment_lib.load(name)
    assert module.__file__ == str(path) and module.__doc__.strip()


def test_experiment_is_frozen(experiment):
  with pytest.raises(dataclasses.FrozenInstanceError):
    experiment.name = 'other'
  assert isinstance(experiment, Experiment)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'balancer': 'modo', 'mode': 'shard_map'}, "task 'kind', expected a multiple of 3 on every device"),
    ({'balancer': 'mgda', 'objectives': 'examples', 'mode': 'pmap'}, "expected mode 'jit' or 'sharded'"),
  ],
)
def test_what_slices_of_a_batch_refuse_is_found_before_training(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    Run(tiny.build(tmp_path), Options(**options))
