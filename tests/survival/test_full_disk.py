"""A disk without room: said, with what is still good; never half a file; the run stops, or goes on by choice."""

import contextlib
import dataclasses
import os
import resource
import subprocess
import threading
import time

import jax.numpy as jnp
import pytest
import tiny

from mtljax import checkpoint, cli, events, rundir, training
from mtljax.base import InputError
from mtljax.checkpoint import SaveError
from mtljax.compare import compare
from mtljax.experiment import Options
from mtljax.lanes import Plan
from mtljax.runs import Run

OPTIONS = Options(balancer='pcgrad', steps=24, eval_every=6, checkpoint_every=4, log_every=1, learning_rate=0.01)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def undisturbed(experiment, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  return folder, training.train(experiment, OPTIONS, folder, progress=False)


class Disk:
  """A file system of two megabytes, on memory."""

  reason = 'No space left on device'

  def __init__(self, path):
    self.path, self._ballast = path, path / 'ballast'

  def fill(self, leave=0):
    with self._ballast.open('ab', buffering=0) as file:
      try:
        while True:
          file.write(bytes(4096))
      except OSError:
        os.truncate(file.fileno(), max(file.tell() - leave, 0))

  def fill_after(self, step, leave=0):
    """Once that checkpoint is complete."""
    end = time.monotonic() + 60
    while not (self.path / 'run' / 'checkpoints' / str(step)).exists() and time.monotonic() < end:
      time.sleep(0.01)
    self.fill(leave)

  def free(self):
    self._ballast.unlink()


class Limit(Disk):
  """Where nothing can be mounted: no file may grow beyond a size. EFBIG takes the way of ENOSPC."""

  reason = 'File too large'

  def __init__(self, path):
    super().__init__(path)
    self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(self, leave=0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (leave, self._before[1]))

  def free(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.fixture
def limit(tmp_path):
  (tmp_path / 'limited').mkdir()
  limit = Limit(tmp_path / 'limited')
  yield limit
  limit.free()


@pytest.fixture
def disk(tmp_path, limit):
  place = tmp_path / 'disk'
  place.mkdir()
  try:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(place)], capture_output=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    yield limit
  else:
    yield Disk(place)
    subprocess.run(['umount', str(place)], check=True)


def at_step(monkeypatch, acts):
  """`acts` {index: function} are called before these steps."""
  step = Run.step

  def acting(self, state, index):
    acts.get(index, lambda: None)()
    return step(self, state, index)

  monkeypatch.setattr(Run, 'step', acting)


def train(experiment, folder, options=OPTIONS, **kwargs):
  return training.train(experiment, options, folder, progress=False, **kwargs)


def assert_clean(run_dir):
  assert not [path for path in run_dir.rglob('*') if 'partial' in path.name or 'tmp' in path.name]
  assert not (run_dir / 'run.lock').exists()
  for step in checkpoint.steps(run_dir / 'checkpoints'):
    assert (run_dir / 'checkpoints' / str(step) / 'digests.json').stat().st_size > 0


def assert_same(run_dir, result, undisturbed, newest=2):
  folder, expected = undisturbed
  assert result['params_sha256'] == expected['params_sha256'] and result['test'] == expected['test']
  assert (run_dir / 'metrics.jsonl').read_bytes() == (folder / 'metrics.jsonl').read_bytes()
  assert checkpoint.steps(run_dir / 'checkpoints')[:newest] == checkpoint.steps(folder / 'checkpoints')[:newest]


@pytest.mark.parametrize('leave', [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (5000, 20000))])
def test_the_run_stops_and_goes_on_when_there_is_room(experiment, undisturbed, disk, monkeypatch, leave):
  with monkeypatch.context() as patch:
    at_step(patch, {13: lambda: disk.fill_after(12, leave), **dict.fromkeys(range(14, 24), lambda: disk.fill(leave))})
    with pytest.raises(SaveError) as error:
      train(experiment, disk.path / 'run')
  assert f'could not be written ({disk.reason}).' in str(error.value)
  assert f'The last good checkpoint is {disk.path}/run/checkpoints/12.' in str(error.value)
  assert_clean(disk.path / 'run')
  assert checkpoint.steps(disk.path / 'run' / 'checkpoints')[:2] == [12, 8]
  text = (disk.path / 'run' / 'metrics.jsonl').read_bytes()
  assert text.endswith(b'\n') and len(rundir.read_metrics(disk.path / 'run' / 'metrics.jsonl')) == text.count(b'\n')
  disk.free()
  assert_same(disk.path / 'run', train(experiment, disk.path / 'run', resume=True), undisturbed)


@pytest.mark.parametrize('leave', [0, pytest.param(20000, marks=pytest.mark.slow)])
def test_the_run_goes_on_by_choice(experiment, undisturbed, disk, monkeypatch, leave):
  """Nothing is missing in the end when there is room again before it."""
  options = dataclasses.replace(OPTIONS, on_save_error='continue')
  at_step(
    monkeypatch,
    {9: lambda: disk.fill_after(8, leave), **dict.fromkeys(range(10, 21), lambda: disk.fill(leave)), 21: disk.free},
  )
  with pytest.warns(UserWarning) as said:
    result = train(experiment, disk.path / 'run', options)
  texts = [str(one.message) for one in said]
  end = f'could not be written ({disk.reason}). The run goes on without.'
  assert all(text.endswith(end) for text in texts)
  named = [text.split()[1].rpartition('/')[2] for text in texts if text.startswith('checkpoint ')]
  assert set(named) >= {'16'} and set(named) <= {'12', '16', '18', '20'}
  assert sum('metrics.jsonl' in text for text in texts) <= 1
  assert_clean(disk.path / 'run')
  assert_same(disk.path / 'run', result, undisturbed, newest=1)


def test_no_room_to_the_end(experiment, undisturbed, disk, monkeypatch):
  """The result is printed, if nothing else; the last good checkpoint is still there."""
  options = dataclasses.replace(OPTIONS, on_save_error='continue')
  at_step(monkeypatch, {9: lambda: disk.fill_after(8), **dict.fromkeys(range(10, 24), disk.fill)})
  whole = rundir.whole
  monkeypatch.setattr(
    rundir, 'whole', lambda path: (disk.fill() if path.name == 'result.json' else None, whole(path))[1]
  )
  with pytest.warns(UserWarning) as said:
    result = train(experiment, disk.path / 'run', options)
  assert any('result.json could not be written' in str(one.message) for one in said)
  assert result['params_sha256'] == undisturbed[1]['params_sha256']
  assert_clean(disk.path / 'run')
  assert checkpoint.steps(disk.path / 'run' / 'checkpoints')[0] == 8
  assert not (disk.path / 'run' / 'result.json').exists()


@pytest.mark.parametrize('name', [pytest.param('curves.png', marks=pytest.mark.slow), 'result.json'])
def test_files_at_the_end(experiment, undisturbed, disk, monkeypatch, name):
  whole = rundir.whole

  def filling(path):
    if path.name == name:
      disk.fill()
    return whole(path)

  monkeypatch.setattr(rundir, 'whole', filling)
  with pytest.raises(SaveError, match=rf'{name} could not be written \({disk.reason}\)\. .*checkpoints/24'):
    train(experiment, disk.path / 'run')
  assert_clean(disk.path / 'run')
  disk.free()
  monkeypatch.setattr(rundir, 'whole', whole)
  assert_same(disk.path / 'run', train(experiment, disk.path / 'run', resume=True), undisturbed)


def test_a_disk_that_is_full_from_the_start(experiment, disk):
  disk.fill()
  with pytest.raises((SaveError, InputError), match=disk.reason):
    train(experiment, disk.path / 'run')
  disk.free()
  assert train(experiment, disk.path / 'run', Options(steps=2))['steps'] == 2


def test_the_command_says_it_and_ends_with_1(disk, tmp_path, monkeypatch, capsys):
  at_step(monkeypatch, {13: lambda: disk.fill_after(12), **dict.fromkeys(range(14, 24), disk.fill)})
  argv = ['train', str(tiny.write(tmp_path)), '--steps', '24', '--checkpoint_every', '4', '--log_every', '1']
  assert cli.main([*argv, '--run_dir', str(disk.path / 'run')]) == 1
  said = capsys.readouterr().err
  assert 'mtljax train: ' in said and disk.reason in said and 'The last good checkpoint is' in said
  assert 'Traceback' not in said and 'ERROR' not in said


@pytest.mark.slow
def test_a_comparison_prints_what_it_cannot_write(experiment, disk, monkeypatch):
  whole = rundir.whole
  monkeypatch.setattr(rundir, 'whole', lambda path: disk.fill() or whole(path))
  said = []
  plan = Plan(balancers=('equal',), seeds=(0,), learning_rates=(0.01,), steps=2)
  with pytest.raises(SaveError, match='compare.json could not be written'):
    compare(experiment, plan, run_dir=disk.path / 'compare', report=said.append, progress=False)
  assert 'single-task' in said[-1] and 'equal' in said[-1]
  assert list((disk.path / 'compare').iterdir()) == []


def test_a_limit_on_the_size_of_files(experiment, undisturbed, limit, monkeypatch):
  with monkeypatch.context() as patch:
    at_step(patch, {15: lambda: limit.fill(1000)})
    with pytest.raises(SaveError, match=r'\(File too large\)\. The last good checkpoint is .*/(8|12)\.'):
      train(experiment, limit.path / 'run')
  limit.free()
  assert_clean(limit.path / 'run')
  assert_same(limit.path / 'run', train(experiment, limit.path / 'run', resume=True), undisturbed)


def test_failed_saves_leave_no_threads(disk):
  checkpoints = checkpoint.Checkpoints(disk.path / 'checkpoints', keep=2)
  checkpoints.save(1, {'w': jnp.ones(50_000)})
  checkpoints.wait()
  disk.fill()
  counts = []
  for step in range(2, 8):
    with pytest.raises(SaveError, match=rf'checkpoint .*/{step} could not be written \({disk.reason}\)'):
      checkpoints.save(step, {'w': jnp.ones(50_000)})
      checkpoints.wait()
    counts.append(threading.active_count())
  assert counts[-1] <= counts[1] + 2
  disk.free()
  checkpoints.save(8, {'w': jnp.ones(50_000)})
  checkpoints.close()
  assert checkpoint.steps(disk.path / 'checkpoints') == [8, 1]
  assert {path.name for path in (disk.path / 'checkpoints').iterdir()} == {'1', '8'}


def test_lines_wait_for_room(disk):
  metrics = rundir.MetricsFile(disk.path / 'metrics.jsonl')
  metrics.write({'step': 1, 'x': 'a' * 3000})
  disk.fill()
  for step in (2, 3, 4):
    with pytest.raises(SaveError, match=f'{step - 1} records of .*metrics.jsonl could not be written'):
      metrics.write({'step': step, 'x': 'b' * 3000})
    assert [r['step'] for r in rundir.read_metrics(metrics.path)] == [1] and metrics.path.read_bytes()[-1:] == b'\n'
  disk.free()
  metrics.write({'step': 5})
  metrics.close()
  assert [r['step'] for r in rundir.read_metrics(metrics.path)] == [1, 2, 3, 4, 5]


def test_events_wait_for_room(disk):
  """And do not block: the queue of tensorboardX's own writer would, after ten."""
  pytest.importorskip('tensorboardX')
  board = events.TensorBoard(disk.path / 'tensorboard')
  disk.fill()
  for step in range(60):
    with contextlib.suppress(SaveError):  # what is left of a block
      board.write({'step': step, 'losses': {f'task{i}': 0.5 for i in range(40)}})
  with pytest.raises(SaveError, match='(5[0-9]|6[01]) records of .*events.out.tfevents.* could not be written'):
    board.write({'step': 60})
  disk.free()
  board.close()
  (path,) = (disk.path / 'tensorboard').iterdir()
  assert path.read_bytes().count(b'losses/task7') == 60
