"""A second run in a directory is refused, naming the process that is at it, and changes nothing there."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tiny

from mtljax import checkpoint, cli, lock, rundir, training
from mtljax.base import InputError
from mtljax.compare import compare
from mtljax.experiment import Options
from mtljax.lanes import Plan
from mtljax.runs import Run

OPTIONS = Options(steps=6, checkpoint_every=2, log_every=1, eval_every=6)
HOLDING = (
  'import sys; from mtljax import lock\nwith lock.hold(sys.argv[1]): print("held", flush=True); sys.stdin.read()'
)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


def content(folder):
  return {str(path): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def in_progress(folder, process=None):
  """The message, as a pattern."""
  owner = rf'process {process or os.getpid()} on {re.escape(socket.gethostname())} since [0-9-]+ [0-9:]+'
  return rf'run directory {re.escape(str(folder))}: found a run in progress \({owner}\), expected none'


def test_in_one_process(experiment, tmp_path, monkeypatch):
  """While the first run is at its fourth step."""
  step, run_dir, refused = Run.step, tmp_path / 'run', []
  plan = Plan(balancers=('equal',), seeds=(0,), learning_rates=(0.01,), steps=1)
  train = lambda **how: training.train(experiment, OPTIONS, run_dir, progress=False, **how)
  others = (
    train,
    lambda: train(resume=True),
    lambda: train(overwrite=True),
    lambda: compare(experiment, plan, run_dir=run_dir, overwrite=True, progress=False),
  )

  def acting(self, state, index):
    if index == 3 and not refused:
      while not (run_dir / 'checkpoints' / '2').exists():  # it is written in the background
        time.sleep(0.01)
      before = content(run_dir)
      for second in others:
        with pytest.raises(InputError, match=in_progress(run_dir)) as error:
          second()
        refused.append(str(error.value))
      assert content(run_dir) == before
    return step(self, state, index)

  monkeypatch.setattr(Run, 'step', acting)
  result = train()
  assert result['steps'] == 6 and checkpoint.steps(run_dir / 'checkpoints')[0] == 6
  assert len(refused) == len(others) and refused[0].endswith('stop it, or use --run_dir for another place.')
  assert not (run_dir / lock.NAME).exists()


def test_two_threads(tmp_path):
  """A lock of this process is one against itself, too."""
  found = []

  def second():
    try:
      with rundir.use(tmp_path / 'run', resume=True):
        found.append('in')
    except InputError as error:
      found.append(str(error))

  with rundir.use(tmp_path / 'run'):
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
  assert re.match(in_progress(tmp_path / 'run'), found[0])
  second()
  assert found[1] == 'in'


def test_by_the_command_while_another_process_holds_it_and_is_killed(tmp_path, capsys):
  run_dir, path = tmp_path / 'run', tiny.write(tmp_path)
  run_dir.mkdir()
  pipe = subprocess.PIPE
  with subprocess.Popen([sys.executable, '-c', HOLDING, str(run_dir)], stdin=pipe, stdout=pipe) as other:
    try:
      assert other.stdout.readline() == b'held\n'
      train = ['train', str(path), '--steps', '2']
      for more in (['--run_dir', str(run_dir)], ['--run_dir', str(run_dir), '--overwrite'], ['--resume', str(run_dir)]):
        assert cli.main([*train, *more]) == 2
        said = capsys.readouterr().err
        assert re.match(f'mtljax train: {in_progress(run_dir, other.pid)}', said), said
      assert [file.name for file in run_dir.iterdir()] == [lock.NAME]
    finally:
      other.kill()
  assert other.returncode == -signal.SIGKILL and (run_dir / lock.NAME).exists()
  assert cli.main([*train, '--resume', str(run_dir)]) == 0
  assert (run_dir / 'result.json').exists() and not (run_dir / lock.NAME).exists()


@pytest.mark.slow
def test_two_commands(tmp_path):
  """Of two that are started together one trains, the other names it."""
  run_dir, path = tmp_path / 'run', tiny.write(tmp_path)
  main = 'import sys; from mtljax.cli import main; sys.exit(main())'
  command = [sys.executable, '-c', main, 'train', str(path), '--resume', str(run_dir), '--steps', '100000']
  pair = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
  try:
    end = time.monotonic() + 120
    while all(one.poll() is None for one in pair) and time.monotonic() < end:
      time.sleep(0.1)
    (refused,) = (one for one in pair if one.poll() is not None)
    (trains,) = (one for one in pair if one is not refused)
    assert refused.returncode == 2
    assert re.match(f'mtljax train: {in_progress(run_dir, trains.pid)}', refused.stderr.read().decode())
    trains.send_signal(signal.SIGTERM)
    assert trains.wait(60) == 0 and checkpoint.steps(run_dir / 'checkpoints')
  finally:
    for one in pair:
      one.kill()
      one.wait()
      one.stderr.close()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with pytest.warns(UserWarning, match=r'this file system has no locks \(No locks available\)'), lock.hold(tmp_path):
    pass


def test_a_lock_whose_file_was_removed_in_between_is_tried_again(tmp_path, monkeypatch):
  """The first run ends between the second's opening of the file and its locking it."""
  flock, opened = fcntl.flock, []

  def late(file, how):
    if not opened:
      (tmp_path / lock.NAME).unlink()
    opened.append(file)
    flock(file, how)

  monkeypatch.setattr(fcntl, 'flock', late)
  with lock.hold(tmp_path):
    assert len(opened) == 2 and (tmp_path / lock.NAME).read_text().startswith(f'process {os.getpid()} ')
    with pytest.raises(InputError, match=in_progress(tmp_path)), lock.hold(tmp_path):
      pass
