"""What the README and the docs show is run as it stands there."""

import pathlib
import re
import shlex
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl
from mtljax import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
ADDING = (ROOT / 'docs' / 'adding.md').read_text()


def blocks(text, language):
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', text, flags=re.M | re.S)
  return [body for found, body in fenced if found == language]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def test_the_face_runs_as_written():
  r = np.random.default_rng(0)
  labels = {'digit': jnp.asarray(r.integers(0, 10, 32)), 'parity': jnp.asarray(r.integers(0, 2, 32))}
  names = {'batch': {'inputs': jnp.asarray(r.normal(size=(32, 64)), jnp.float32), 'labels': labels}}
  (face,) = blocks(README, 'python')
  exec(face, names)
  assert names['info'].losses.shape == (2,) and names['info'].gramian.shape == (2, 2)
  for _ in range(20):
    names['state'], info = names['step'](names['state'], names['batch'])
  assert (info.losses < names['info'].losses).all()


COMMANDS = [
  line for block in blocks(README, '') for line in block.splitlines() if 'mtljax ' in line and '@' not in line
]


def test_there_are_commands():
  assert len(COMMANDS) >= 2


@pytest.mark.parametrize('line', COMMANDS)
def test_commands_run(line, data_dir, tmp_path, monkeypatch, capsys):
  """With a budget of a few steps; the installation in front of `&&` is what the gate does."""
  monkeypatch.chdir(ROOT)
  argv = shlex.split(line.rpartition('&& ')[2])
  assert argv[0] == 'mtljax'
  short = ['--steps', '3', '--data_dir', str(data_dir), '--run_dir', str(tmp_path / 'run')]
  if argv[1] == 'compare':
    argv[argv.index('--seeds') + 1] = '2'
    argv[argv.index('--balancers') + 1] = 'equal,cagrad'
    short += ['--learning_rates', '1e-3']
  assert cli.main(argv[1:] + short) == 0
  printed = capsys.readouterr().out
  assert 'left' in printed and 'right' in printed


def load(block, tmp_path, name):
  import importlib.util

  path = tmp_path / f'{name}.py'
  path.write_text(block)
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def test_skeletons_of_docs_adding_work(tmp_path):
  balancer, architecture, trunk, experiment = blocks(ADDING, 'python')
  inverse = load(balancer, tmp_path, 'skeleton_balancer').inverse
  found = mtl.balancing.aggregate(inverse(), jnp.eye(2), jnp.array([2.0, 4.0]), present=jnp.array([True, False]))
  assert found.weights.tolist() == [0.5, 0.0]

  twin = load(architecture, tmp_path, 'skeleton_architecture').twin
  tower = load(trunk, tmp_path, 'skeleton_trunk').Tower(width=4)
  assert list(mtl.sharing.chained(tower).stages) == ['layer_0', 'layer_1']
  net = twin(tower, {'digit': nn.Dense(3), 'size': nn.Dense(2)})
  net, tasks, optimizer, method, state = problems.setup(mtl.balancing.mgda(), net=net)
  state, info = jax.jit(mtl.make_train_step(net, tasks, optimizer, method))(state, problems.batch())
  assert bool(info.finite) and set(state.params['shared']) == {'left', 'right'}

  r = np.random.default_rng(0)
  for split in ('train', 'val', 'test'):
    arrays = {f'labels/{t}': r.integers(0, 10, 600) for t in ('left', 'right')}
    np.savez(tmp_path / f'{split}.npz', inputs=r.normal(size=(600, 8)).astype(np.float32), **arrays)
  module = load(experiment, tmp_path, 'skeleton_experiment')
  built = module.build(module.Config(data_dir=str(tmp_path)))
  assert built.train(0, 0)['inputs'].shape == (64, 8)
  assert isinstance(built.optimizer(1e-3, ('left', 'right')), optax.GradientTransformation)
