"""A run directory of somebody else, with pickles and code everywhere: nothing is executed, what is wrong is said."""

import json
import pathlib
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtljax import checkpoint, cli
from mtljax.base import InputError
from mtljax.checkpoint import _read


class Evil:
  """Unpickled, it writes a file."""

  def __init__(self, sentinel):
    self.code = code(sentinel)

  def __reduce__(self):
    return eval, (self.code,)


def code(sentinel):
  return f"__import__('pathlib').Path({str(sentinel)!r}).write_text('')"


@pytest.fixture
def sentinel(tmp_path):
  path = tmp_path / 'executed'
  yield path
  assert not path.exists()


def state(value=0.0):
  return {'w': jnp.full((4, 3), value), 'b': jnp.full(3, value)}


@pytest.fixture
def saved(tmp_path):
  """A checkpoint that is whole."""
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(1, state(1.0), {'seconds': 1.0}, score=0.5)
  checkpoints.close()
  return tmp_path / 'checkpoints' / '1'


def seal(folder):
  """Who can change files can change their digests."""
  (folder / _read.SEAL).write_text(json.dumps(_read.digests(folder)))


def test_what_the_sentinel_is_for(tmp_path):
  """The pickles below would do it."""
  pickle.loads(pickle.dumps(Evil(tmp_path / 'executed')))
  assert (tmp_path / 'executed').exists()


def test_files_that_do_not_belong_there_are_not_looked_at(saved, sentinel):
  code_file = f'{code(sentinel)}\n'
  for folder in (saved.parent, saved, saved / 'state', saved / 'manifest'):
    (folder / 'state.pkl').write_bytes(pickle.dumps(Evil(sentinel)))
    np.save(folder / 'w.npy', np.array([Evil(sentinel)], object), allow_pickle=True)
    np.savez(folder / 'w.npz', w=np.array([Evil(sentinel)], object))
    for name in ('__init__.py', 'conftest.py', 'sitecustomize.py', 'jax.py', 'w.pth'):
      (folder / name).write_text(code_file)
  seal(saved)
  restored, manifest, step = checkpoint.restore_latest(saved.parent, state())
  assert step == 1 and manifest['score'] == 0.5 and checkpoint.best_step(saved.parent) == 1
  np.testing.assert_array_equal(restored['w'], 1.0)


PLACES = (
  'manifest/metadata',
  'digests.json',
  'state/manifest.ocdbt',
  'state/_METADATA',
  'state/d',
  'state/array_metadatas',
)


@pytest.mark.parametrize('how', ['pickle', 'code'])
@pytest.mark.parametrize('place', PLACES)
def test_pickles_and_code_in_place_of_files(saved, sentinel, place, how):
  data = pickle.dumps(Evil(sentinel)) if how == 'pickle' else code(sentinel).encode()
  for path in (saved / place).iterdir() if (saved / place).is_dir() else [saved / place]:
    path.write_bytes(data)
  if place != 'digests.json':
    seal(saved)
  damaged = place in ('manifest/metadata', 'digests.json')
  message = rf'is damaged: no readable {place}' if damaged else 'holds what was written and yet cannot be read'
  with pytest.raises(InputError, match=f'checkpoint {saved} {message}'):
    checkpoint.restore(saved, state())


@pytest.mark.parametrize('place', ['state/_sharding', '_CHECKPOINT_METADATA'])
def test_files_that_nothing_depends_on(saved, sentinel, place):
  (saved / place).write_bytes(pickle.dumps(Evil(sentinel)))
  seal(saved)
  np.testing.assert_array_equal(checkpoint.restore(saved, state())[0]['w'], 1.0)


def test_handlers_and_types_by_name_are_not_imported(saved, sentinel, tmp_path, monkeypatch):
  (tmp_path / 'evil.py').write_text(code(sentinel))
  monkeypatch.syspath_prepend(tmp_path)
  meta = json.loads((saved / '_CHECKPOINT_METADATA').read_text())
  meta['item_handlers'] = dict.fromkeys(meta['item_handlers'], 'evil.Handler')
  (saved / '_CHECKPOINT_METADATA').write_text(json.dumps(meta))
  text = (saved / 'state' / '_METADATA').read_text()
  (saved / 'state' / '_METADATA').write_text(text.replace('jax.Array', 'evil.Array'))
  seal(saved)
  np.testing.assert_array_equal(checkpoint.restore(saved, state())[0]['w'], 1.0)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda text: {'tree': text}, 'its manifest describes no tree'),
    (lambda text: {'tree': {'w': text, 'b': text}}, 'b is __import__.*, expected float32\\[3\\]'),
    (lambda text: {'tree': {text: [[3], 'float32']}}, 'is of another model: '),
    (lambda text: {'tree': {'w': [[4, 3], text], 'b': [[3], 'float32']}}, 'w is __import__'),
  ],
  ids=['tree', 'leaves', 'name', 'dtype'],
)
def test_code_in_the_manifest(saved, sentinel, change, message):
  path = saved / 'manifest' / 'metadata'
  path.write_text(json.dumps({**json.loads(path.read_text()), **change(code(sentinel))}))
  seal(saved)
  with pytest.raises(InputError, match=message):
    checkpoint.restore(saved, state())


# A whole run, by the command line


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  place = tmp_path_factory.mktemp('run')
  assert cli.main(['train', str(tiny.write(place)), '--steps', '2', '--run_dir', str(place / 'run')]) == 0
  return place / 'run'


@pytest.fixture
def copy(run, tmp_path):
  return pathlib.Path(shutil.copytree(run, tmp_path / 'run'))


COMMANDS = (['evaluate'], ['train', '--steps', '4', '--resume'])


def assert_refused(capsys, copy, message):
  for command in COMMANDS:
    assert cli.main([*command, str(copy)]) == 2, command
    said = capsys.readouterr().err
    assert message in said and 'Traceback' not in said, said


# What it is, without the text: evaluating reads fewer of them
@pytest.mark.parametrize(
  'name',
  ['source', 'balancer', 'seed', 'steps', 'learning_rate', 'at', 'mode', 'config', 'width', 'rate_of_labels', 'layers'],
)
@pytest.mark.parametrize('wrap', [lambda text: text, lambda text: [text]], ids=['text', 'list'])
def test_code_in_config(copy, sentinel, capsys, monkeypatch, name, wrap):
  monkeypatch.chdir(copy)
  stored = json.loads((copy / 'config.json').read_text())
  (stored if name in stored else stored['config'])[name] = wrap(code(sentinel))
  (copy / 'config.json').write_text(json.dumps(stored))
  said = {'source': 'experiment' if wrap('') == '' else 'source'}.get(name, name)
  assert_refused(capsys, copy, said)


def test_code_in_place_of_config(copy, sentinel, capsys):
  for data in (code(sentinel).encode(), pickle.dumps(Evil(sentinel))):
    (copy / 'config.json').write_bytes(data)
    assert_refused(capsys, copy, 'config.json: found something else than JSON')


@pytest.mark.parametrize('how', ['inside', 'relative', 'link', 'dots'])
def test_the_experiment_is_not_taken_from_the_directory(copy, sentinel, capsys, monkeypatch, how):
  monkeypatch.chdir(copy)
  (copy / 'evil.py').write_text(code(sentinel))
  (copy.parent / 'link.py').symlink_to(copy / 'evil.py')
  source = {'inside': copy / 'evil.py', 'relative': 'evil.py', 'link': '../link.py', 'dots': f'{copy}/x/../evil.py'}[
    how
  ]
  if how == 'dots':
    (copy / 'x').mkdir()
  stored = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps({**stored, 'source': str(source)}))
  assert_refused(capsys, copy, 'a file within the directory, expected one outside: it would be executed.')


def test_code_in_metrics_and_result(copy, sentinel, capsys):
  """Lines that are no records are cut off, as after a power cut."""
  (copy / 'metrics.jsonl').write_bytes(pickle.dumps(Evil(sentinel)) + f'\n{code(sentinel)}\n'.encode())
  (copy / 'tensorboard' / 'state.pkl').write_bytes(pickle.dumps(Evil(sentinel)))
  (copy / 'result.json').write_text(code(sentinel))
  assert cli.main(['train', '--steps', '4', '--resume', str(copy)]) == 2
  assert 'result.json: found something else than JSON' in capsys.readouterr().err
  (copy / 'result.json').unlink()
  assert cli.main(['train', '--steps', '4', '--resume', str(copy)]) == 0
  assert [json.loads(line)['step'] for line in (copy / 'metrics.jsonl').read_text().splitlines()] == [4, 4]


def test_code_in_the_manifest_of_a_run(copy, sentinel, capsys):
  folder = copy / 'checkpoints' / '2'
  manifest = json.loads((folder / 'manifest' / 'metadata').read_text())
  for name in ('seconds', 'score', 'balancer', 'tasks', 'config'):
    changed = {**manifest, name: code(sentinel)}
    (folder / 'manifest' / 'metadata').write_text(json.dumps(changed))
    seal(folder)
    assert cli.main(['evaluate', str(copy)]) == 0
  (folder / 'manifest' / 'metadata').write_text(json.dumps({**manifest, 'seconds': code(sentinel)}))
  seal(folder)
  assert cli.main(['train', '--steps', '4', '--resume', str(copy)]) == 2
  assert 'its manifest says "__import__' in capsys.readouterr().err
