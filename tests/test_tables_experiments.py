"""`experiments/tabular.py`, `molecules.py` and `shared_kernel_svm.py` on made-up files; machines as SVC finds them."""

import csv
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.svm

import mtljax as mtl
from mtljax import cli
from mtljax import experiment as experiment_lib

tabular, molecules, svm = (experiment_lib.load(name) for name in ('tabular', 'molecules', 'shared_kernel_svm'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """adult.csv.gz of 200 rows and tox21.npz of 60 molecules, 3 assays."""
  path, draw = tmp_path_factory.mktemp('tables'), np.random.default_rng(0)
  with gzip.open(path / 'adult.csv.gz', 'wt', newline='') as file:
    writer = csv.writer(file)
    names = 'age,workclass,fnlwgt,marital-status,relationship,income-over-50k,is_test'
    writer.writerow(names.split(','))
    for i in range(200):
      age, work, wed = int(draw.integers(18, 80)), draw.choice(['a', 'b']), draw.choice(['Never-married', 'Divorced'])
      writer.writerow([age, work, int(draw.integers(1000)), wed, 'Wife', int(age > 40), int(i % 5 == 0)])
  y = draw.integers(0, 2, (60, 3)).astype(np.float32)
  y[draw.random(y.shape) < 0.2] = np.nan
  np.savez(
    path / 'tox21.npz',
    fp_bits=draw.integers(0, 256, (60, 4)).astype(np.uint8),
    descriptors=draw.normal(size=(60, 3)).astype(np.float32),
    y=y,
    task_names=np.array([f'assay{i}' for i in range(3)]),
    split_scaffold=np.repeat([0, 1, 2], 20).astype(np.uint8),
    split_random=np.tile([0, 1, 2], 20).astype(np.uint8),
  )
  return path


SMALL = {
  tabular: dict(hidden=(8,), batch_size=16),
  molecules: dict(hidden=(8,), batch_size=16),
  svm: dict(data='adult', train_size=40, rank=3),
}


@pytest.mark.parametrize('module', SMALL, ids=['tabular', 'molecules', 'shared_kernel_svm'])
def test_a_run(module, folder, tmp_path):
  """What the command line does."""
  words = []
  for name, value in (SMALL[module] | dict(steps=4, data_dir=folder, run_dir=tmp_path / 'run')).items():
    words += [f'--{name}', *map(str, value if isinstance(value, tuple) else (value,))]
  cli.main(['train', module.__file__, *words, '--eval_every', '4', '--checkpoint_every', '4', '--log_every', '1'])
  assert (tmp_path / 'run').is_dir()


def test_labels_are_no_inputs(folder):
  """Neither is what tells them, nor the weight of a row."""
  experiment = tabular.build(tabular.Config(data_dir=str(folder), **SMALL[tabular]))
  batch = experiment.train(0, 0)
  assert batch['inputs'].shape == (16, 3)  # age, two workclasses
  assert set(batch['labels']) == {'income', 'never_married'} and not batch.get('mask')
  splits = tabular.load(str(folder))
  assert [len(splits[part]['inputs']) for part in ('train', 'val', 'test')] == [144, 16, 40]


@pytest.mark.parametrize('architecture', ['mmoe(num_experts=2)', 'ple'])
@pytest.mark.parametrize('imbalance', ['weights', 'focal'])
def test_experts_and_imbalance(folder, architecture, imbalance):
  config = tabular.Config(data_dir=str(folder), architecture=architecture, imbalance=imbalance, **SMALL[tabular])
  experiment_lib.check_model(tabular.build(config))


def test_weights_of_tabular_are_those_of_training(folder):
  train = tabular.load(str(folder))['train']
  loss = tabular.losses('weights', train)['income']
  y = train['labels']['income']
  found = np.asarray(loss(jnp.zeros(len(y)), y))
  assert found[y == 1].sum() == pytest.approx(found[y == 0].sum(), rel=1e-5)  # both classes weigh the same


@pytest.mark.parametrize('module', [tabular, molecules], ids=['tabular', 'molecules'])
def test_unknown_choice(module, folder):
  with pytest.raises(mtl.InputError, match="imbalance: found 'some', expected 'none'"):
    module.build(module.Config(data_dir=str(folder), imbalance='some'))
  with pytest.raises(mtl.InputError, match="data_dir: .*none' has no"):
    module.build(module.Config(data_dir=str(folder / 'none')))


def test_molecules_mask_what_is_missing(folder):
  experiment = molecules.build(molecules.Config(data_dir=str(folder), split='random', **SMALL[molecules]))
  batch = experiment.train(0, 0)
  assert batch['inputs'].shape == (16, 35) and len(batch['labels']) == 3
  assert 0 < np.mean([np.mean(mask) for mask in batch['mask'].values()]) < 1


def test_molecules_of_one_assay_a_step(folder):
  options = dict(data_dir=str(folder), split='random', **SMALL[molecules] | {'batch_size': 4})
  whole = molecules.build(molecules.Config(**options)).train.examples
  train = molecules.build(molecules.Config(schedule='sampled', temperature=1.0, **options)).train
  for task, part in train.examples.items():
    np.testing.assert_array_equal(part['labels'], whole['labels'][task][whole['mask'][task]])
  seen = [list(train(0, step)) for step in range(30)]
  assert {len(tasks) for tasks in seen} == {1} and {task for (task,) in seen} == set(whole['labels'])
  with pytest.raises(mtl.InputError, match="schedule: found 'one', expected 'all' or 'sampled'"):
    molecules.build(molecules.Config(schedule='one', **options))


def test_digits_have_a_task_for_each_pair():
  splits = svm.load(svm.Config(train_size=120))
  masks = np.stack(list(splits['train']['mask'].values()))
  assert masks.shape == (4, 120) and (masks.sum(axis=0) == 1).all()
  with pytest.raises(mtl.InputError, match="kernel 'cubic'"):
    svm.build(svm.Config(kernel='cubic'))


def test_a_reduced_machine_has_fewer_centres_than_points(folder):
  options = dict(data='adult', data_dir=str(folder), train_size=100)
  experiment = svm.build(svm.Config(centres=7, batch_size=20, **options))
  batch = experiment.train(seed=0, step=0)
  params, _ = experiment.model.init(jax.random.key(0), {'income': batch['inputs']})
  assert len(batch['inputs']) == 20 and params['tasks']['income']['a'].shape == (7,)
  for wrong in ({'centres': 101}, {'batch_size': -1}, {'train_size': 200}, {'train_size': 0}):
    (name,) = wrong
    with pytest.raises(mtl.InputError, match=f'^{name}: found {wrong[name]}, expected 1 to'):
      svm.build(svm.Config(**{**options, **wrong}))


def solve(kernel, x, y, steps, rate, shared):
  """Parameters after full-batch steps."""
  model = svm.machines(svm.KERNELS[kernel], x, 3, {task: 1 / len(x) for task in y})
  adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
  optimizer = mtl.task_optimizer(shared=shared, tasks=dict.fromkeys(y, adam))
  tasks, balancer = tuple(mtl.Task(task, mtl.losses.hinge) for task in y), mtl.balancing.equal()
  batch = jax.tree.map(jnp.asarray, {'inputs': x, 'labels': y})
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  step = mtl.make_train_step(model, tasks, optimizer, balancer)
  return jax.jit(lambda state: jax.lax.scan(lambda s, _: (step(s, batch)[0], None), state, length=steps)[0])(
    state
  ).params


def objective(K, a, b, y):
  return a @ K @ a / 2 + np.maximum(0, 1 - (2 * y - 1) * (K @ a + b)).sum()


def problem():
  draw = np.random.default_rng(0)
  x = draw.normal(size=(60, 5))
  a = x[:, 0] + 0.5 * x[:, 1] ** 2 + 0.5 * draw.normal(size=60) > 0.3
  return x, {'a': a.astype(float), 'b': (x[:, 1] > draw.normal(size=60)).astype(float)}


@pytest.mark.parametrize('kernel', ['gaussian', 'linear'])
def test_machines_of_a_fixed_kernel_are_those_of_scikit_learn(x64, kernel):
  x, y = problem()
  params = jax.tree.map(np.asarray, solve(kernel, x, y, 4000, 3e-2, optax.set_to_zero()))
  z = x @ params['shared']['P'].T
  squares = ((z[:, None] - z[None]) ** 2).sum(axis=-1)
  K = np.exp(-squares) if kernel == 'gaussian' else z @ z.T
  for task, labels in y.items():
    a, b = params['tasks'][task]['a'], params['tasks'][task]['b']
    machine = sklearn.svm.SVC(C=1.0, kernel='precomputed', tol=1e-8).fit(K, labels)
    best = np.zeros(len(x))
    best[machine.support_] = machine.dual_coef_[0]
    least = objective(K, best, machine.intercept_[0], labels)
    found = objective(K, a, b, labels)
    assert least - 1e-6 < found < least * 1.001
    np.testing.assert_allclose(K @ a + b, machine.decision_function(K), atol=0.03)


def test_a_learned_kernel_has_a_lower_objective(x64):
  x, y = problem()
  values = []
  for shared in (optax.set_to_zero(), optax.adam(1e-2)):
    params = jax.tree.map(np.asarray, solve('gaussian', x, y, 1000, 1e-2, shared))
    z = x @ params['shared']['P'].T
    K = np.exp(-((z[:, None] - z[None]) ** 2).sum(axis=-1))
    values.append(sum(objective(K, *(params['tasks'][task][name] for name in 'ab'), y[task]) for task in y))
  assert values[1] < 0.9 * values[0]
