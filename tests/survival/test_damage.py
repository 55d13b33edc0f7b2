"""Damaged, missing and half-removed checkpoints: said, passed over, never taken; nothing is lost by looking."""

import hashlib
import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from mtljax import checkpoint, rundir, training
from mtljax.base import InputError
from mtljax.experiment import Options

OPTIONS = Options(balancer='pcgrad', steps=16, eval_every=8, checkpoint_every=4, log_every=4, learning_rate=0.01)
JUNK = (
  b'',
  b'null',
  b'[]',
  b'{}',
  b'{"score": "high"}',
  b'[' * 100_000,
  b'\x00' * 300,
  b'\xff\xfe\xfd',
  b'{"score": NaN}',
)


def state(value):
  return {'w': jnp.full((40, 3), value), 'key': jax.random.key(int(value)), 'none': jnp.zeros((0, 2))}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Checkpoints 1, 2 and 3."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(folder, keep=3)
  for step in (1, 2, 3):
    checkpoints.save(step, state(float(step)), {'seconds': 1.0}, score=-float(step))
  checkpoints.close()
  return folder


def files(folder):
  return sorted(path for path in pathlib.Path(folder).rglob('*') if path.is_file())


def content(folder):
  """{file: digest}, and the folders."""
  paths = sorted(pathlib.Path(folder).rglob('*'))
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else '' for p in paths}


def garble(folder, chance):
  """One file of those that a restore reads, damaged in a random way; returns what was done."""
  path = chance.choice([p for p in files(folder) if p.name not in ('commit_success.txt', '_CHECKPOINT_METADATA')])
  data = path.read_bytes()
  how = chance.choice(['cut', 'bit', 'junk', 'gone', 'longer', 'folder', 'zeros'])
  if how == 'cut':
    path.write_bytes(data[: chance.randrange(len(data))])
  elif how == 'bit':
    place = chance.randrange(len(data))
    path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :])
  elif how == 'junk':
    path.write_bytes(chance.choice([junk for junk in JUNK if junk != data]))
  elif how == 'longer':
    path.write_bytes(data + b'\n{}')
  elif how == 'zeros':  # what a file is after a power cut
    path.write_bytes(bytes(len(data)))
  else:
    path.unlink()
    if how == 'folder':
      path.mkdir()
  return f'{how} {path.relative_to(folder)}'


@pytest.mark.parametrize('seed', range(24))
def test_a_garbled_newest_checkpoint_is_passed_over(saved, tmp_path, seed):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  what = garble(folder / '3', random.Random(seed))
  with pytest.warns(UserWarning, match=r'checkpoints/3 is damaged: .* Taking the one before\.'):
    restored, manifest, step = checkpoint.restore_latest(folder, state(0.0))
  assert step == 2 and manifest['score'] == -2, what
  np.testing.assert_array_equal(restored['w'], 2.0)
  assert checkpoint.best_step(folder) == 1, what


@pytest.mark.parametrize('how', ['empty', 'file', 'nothing', '007', '-1', '3.orbax-checkpoint-tmp', 'link'])
def test_folders_that_are_no_checkpoints(saved, tmp_path, how):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  if how == 'empty':
    (folder / '9').mkdir()
  elif how == 'file':
    (folder / '9').write_text('')
  elif how == 'link':
    (folder / '9').symlink_to(tmp_path / 'nowhere')
  elif how != 'nothing':
    (folder / how).mkdir()
  if how == 'empty':
    with pytest.warns(UserWarning, match='checkpoints/9 is damaged: no readable manifest'):
      assert checkpoint.restore_latest(folder, state(0.0))[2] == 3
  else:
    assert checkpoint.restore_latest(folder, state(0.0))[2] == 3
  checkpoint.discard_after(folder, 3)
  checkpoint.Checkpoints(folder, keep=3).close()
  assert checkpoint.steps(folder) == [3, 2, 1]


@pytest.mark.parametrize('seed', range(4))
def test_all_garbled_is_one_error_and_nothing_is_touched(saved, tmp_path, seed):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  chance = random.Random(seed)
  for step in (1, 2, 3):
    garble(folder / str(step), chance)
  before = content(tmp_path)
  with pytest.warns(UserWarning), pytest.raises(InputError, match=r'all checkpoints in .* are damaged: \[1, 2, 3\]'):
    checkpoint.restore_latest(folder, state(0.0))
  assert content(tmp_path) == before


def test_what_was_written_and_cannot_be_read_is_no_damage(saved, tmp_path, monkeypatch):
  """A lack of memory, say: taken for damage, a good checkpoint would be removed."""

  def restore(*_, **__):
    raise MemoryError('no memory')

  monkeypatch.setattr(ocp.StandardCheckpointer, 'restore', restore)
  with pytest.raises(
    InputError, match=r'3 holds what was written and yet cannot be read \(MemoryError: no memory\)'
  ) as e:
    checkpoint.restore_latest(saved, state(0.0))
  assert not isinstance(e.value, checkpoint.DamagedError)


@pytest.mark.parametrize('junk', JUNK)
def test_damage_in_an_older_checkpoint_is_no_obstacle(saved, tmp_path, junk):
  """Not to scores, nor to opening the folder."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  for path in files(folder / '2'):
    path.write_bytes(junk)
  (folder / '1' / 'digests.json').write_bytes(junk)
  checkpoints = checkpoint.Checkpoints(folder, keep=2)
  checkpoints.save(4, state(4.0), score=-0.5)
  checkpoints.close()
  assert checkpoint.steps(folder) == [4, 3] and checkpoint.best_step(folder) == 4


def test_leftovers_of_kills_are_cleaned_away(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  shutil.rmtree(folder / '1' / 'state')  # while it was being removed
  (folder / '1' / '_CHECKPOINT_METADATA').unlink()
  shutil.copytree(folder / '3' / 'state', folder / '4.orbax-checkpoint-tmp' / 'state.orbax-checkpoint-tmp')
  shutil.copytree(folder / '2', folder / '0.deleted')
  (folder / 'notes').mkdir()
  checkpoints = checkpoint.Checkpoints(folder, keep=2)
  assert sorted(path.name for path in folder.iterdir()) == ['1', '2', '3', 'notes']
  checkpoints.save(4, state(4.0))
  checkpoints.close()
  assert sorted(path.name for path in folder.iterdir()) == ['2', '3', '4', 'notes']  # 2 was the best


def test_a_checkpoint_is_replaced(saved, tmp_path):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(saved, folder)
  checkpoints = checkpoint.Checkpoints(folder, keep=3)
  checkpoints.save(3, state(7.0), score=5.0)
  checkpoints.close()
  restored, manifest, step = checkpoint.restore_latest(folder, state(0.0))
  assert (step, manifest['score']) == (3, 5.0) and float(restored['w'][0, 0]) == 7
  assert checkpoint.best_step(folder) == 3


# A whole run


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  return tiny.build(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def undisturbed(experiment, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  return folder, training.train(experiment, OPTIONS, folder, progress=False)


def test_all_bad_leaves_the_run_as_it_was(experiment, undisturbed, tmp_path):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  for step in checkpoint.steps(tmp_path / 'run' / 'checkpoints'):
    (tmp_path / 'run' / 'checkpoints' / str(step) / 'manifest' / 'metadata').write_text('')
  before = content(tmp_path / 'run')
  with pytest.warns(UserWarning), pytest.raises(InputError, match='are damaged'):
    training.train(experiment, OPTIONS, tmp_path / 'run', resume=True, progress=False)
  assert content(tmp_path / 'run') == before


@pytest.mark.parametrize(
  'tail', [b'\x00' * 50, b'{"step": 99', b'\xff\xfe\n', b'[3]\n', b'{"loss": 3}\n', b'{"step": 12}']
)
def test_the_end_of_metrics_after_a_power_cut(experiment, undisturbed, tmp_path, tail):
  folder, result = undisturbed
  shutil.copytree(folder, tmp_path / 'run')
  path = tmp_path / 'run' / 'metrics.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole + tail)
  assert rundir.read_metrics(path) == [json.loads(line) for line in whole.splitlines()]
  resumed = training.train(experiment, OPTIONS, tmp_path / 'run', resume=True, progress=False)
  assert path.read_bytes() == whole and resumed['params_sha256'] == result['params_sha256']


def test_files_in_one_piece(tmp_path):
  path = tmp_path / 'result.json'
  rundir.write_json(path, {'a': 1})
  with pytest.raises(ZeroDivisionError), rundir.whole(path) as partial:
    partial.write_text('half')
    1 / 0  # noqa: B018
  assert rundir.read_json(path) == {'a': 1} and [p.name for p in tmp_path.iterdir()] == ['result.json']
  path.write_text('[1]')
  with pytest.raises(InputError, match='found a list, expected an object'):
    rundir.read_json(path)


def test_partial_files_and_the_lock_of_a_killed_run_are_no_obstacle(experiment, tmp_path):
  run_dir = tmp_path / 'run'
  run_dir.mkdir()
  for name in ('config.partial.json', 'curves.partial.png', 'run.lock'):
    (run_dir / name).write_text('{"ex')
  training.train(experiment, Options(steps=2), run_dir, progress=False)
  assert {path.name for path in run_dir.iterdir()} - {'tensorboard'} == {
    *('config.json', 'metrics.jsonl', 'checkpoints', 'curves.png', 'result.json')
  }
