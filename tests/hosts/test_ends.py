"""One of two processes ends: so do the others, saying why, and the same command goes on to the same bits."""

import dataclasses
import random
import shutil
import signal
import time

import hosts_cases
import processes
import pytest
import tiny

from mtljax import checkpoint, rundir

pytestmark = pytest.mark.slow

OPTIONS = dataclasses.replace(hosts_cases.PCGRAD, steps=24, eval_every=6)
HEARTBEAT = 10
# the process WHO sends itself a signal when it begins step 14
DYING = """
import os, sys, jax
from mtljax import cli, runs
step = runs.Run.step
def dying(self, state, index):
  if index == 13 and jax.process_index() == int(os.environ['WHO']):
    os.kill(os.getpid(), int(os.environ['SIGNAL']))
  return step(self, state, index)
runs.Run.step = dying
sys.exit(cli.main())
"""


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tiny.write(tmp_path_factory.mktemp('experiment'), 'own_rows', hosts_cases.SOURCE)


@pytest.fixture(scope='module')
def undisturbed(path, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  hosts_cases.train_here(path, OPTIONS, folder, devices=2)
  return folder


def command(path, options=OPTIONS):
  """Starts the run and goes on with it."""
  return ['train', path, *hosts_cases.arguments(options), '--resume', 'run', '--heartbeat_seconds', HEARTBEAT]


def dying(folder, path, monkeypatch, who, number):
  """Starts a pair one of which gets a signal."""
  monkeypatch.setenv('WHO', str(who))
  monkeypatch.setenv('SIGNAL', str(int(number)))
  return processes.started(folder, 2, 1, *command(path), script=['-c', DYING])


def assert_goes_on(folder, path, undisturbed):
  first, _ = processes.run(folder, 2, 1, *command(path))
  assert 'damaged' not in first.said()
  hosts_cases.assert_same_run(folder / 'run', undisturbed)
  assert {file.name for file in (folder / 'run').iterdir()} == {file.name for file in undisturbed.iterdir()}
  assert all(file.name.isdecimal() for file in (folder / 'run' / 'checkpoints').iterdir())


@pytest.mark.parametrize('who', [0, 1], ids=['the first', 'the other'])
def test_killed(path, undisturbed, tmp_path, monkeypatch, who):
  with dying(tmp_path, path, monkeypatch, who, signal.SIGKILL) as pair:
    assert pair[who].wait() == -signal.SIGKILL
    begin = time.monotonic()
    assert pair[1 - who].wait() not in (0, -signal.SIGKILL)
    assert time.monotonic() - begin < 30
    said = pair[1 - who].said()
  assert 'another process is gone' in said or 'another task died' in said, said
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[0] in (8, 12)
  assert not (tmp_path / 'run' / 'result.json').exists()
  assert_goes_on(tmp_path, path, undisturbed)


@pytest.mark.parametrize('who', [0, 1], ids=['the first', 'the other'])
def test_not_heard_of(path, undisturbed, tmp_path, monkeypatch, who):
  with dying(tmp_path, path, monkeypatch, who, signal.SIGSTOP) as pair:
    assert pair[1 - who].wait() != 0
    said = pair[1 - who].said()
  assert 'another process is gone' in said or 'another task died' in said, said
  assert_goes_on(tmp_path, path, undisturbed)


@pytest.mark.parametrize('who', [0, 1], ids=['the first', 'the other'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=['SIGTERM', 'SIGINT'])
def test_asked_to_stop(path, undisturbed, tmp_path, monkeypatch, who, number):
  with dying(tmp_path, path, monkeypatch, who, number) as pair:
    assert [process.wait() for process in pair] == [0, 0]
    said = pair[0].out.read_text()
  step = checkpoint.steps(tmp_path / 'run' / 'checkpoints')[0]
  assert f'Stopped by SIGTERM after step {step} of 24, which is saved.' in said and 14 <= step < 24
  assert_goes_on(tmp_path, path, undisturbed)


def test_killed_at_random(path, undisturbed, tmp_path):
  """Five times, one of the two, at any moment since they found each other."""
  chance = random.Random(0)
  for _ in range(5):
    with processes.started(tmp_path, 2, 1, *command(path)) as pair:
      time.sleep(8 * chance.random())
      victim, other = chance.sample(pair, 2)
      victim.popen.kill()
      finished = other.wait() == 0
      said = other.said()
      assert finished or 'another process is gone' in said or 'another task died' in said, said
  assert_goes_on(tmp_path, path, undisturbed)


@pytest.mark.parametrize('number', [1, 4])
def test_saved_by_two_and_restored_by_others(path, tmp_path, number):
  half, whole = (dataclasses.replace(hosts_cases.PCGRAD, steps=steps) for steps in (8, 16))
  hosts_cases.train_here(path, whole, tmp_path / 'whole', devices=2)
  processes.run(tmp_path, 2, 1, *command(path, half))
  shutil.copytree(tmp_path / 'run', tmp_path / 'saved')
  saved = rundir.read_json(tmp_path / 'saved' / 'result.json')
  mode = ['--mode', 'jit'] if number == 1 else []
  first = processes.run(tmp_path, number, 1, 'train', '--resume', 'run', '--steps', '16', *mode)[0]
  assert ': steps 8 to 16 in run' in first.out.read_text()
  hosts_cases.assert_same_run(tmp_path / 'run', tmp_path / 'whole', tolerance=2e-5)
  # with no step to go, the parameters are those that were restored
  processes.run(tmp_path, number, 1, 'train', '--resume', 'saved', *mode)
  assert rundir.read_json(tmp_path / 'saved' / 'result.json')['params_sha256'] == saved['params_sha256']


@pytest.mark.parametrize('number, devices', [(4, 1), (2, 2)])
def test_four_devices(path, tmp_path, number, devices):
  hosts_cases.train_here(path, OPTIONS, tmp_path / 'alone', devices=4)
  processes.run(tmp_path, number, devices, *command(path))
  hosts_cases.assert_same_run(tmp_path / 'run', tmp_path / 'alone', tolerance=2e-5)
