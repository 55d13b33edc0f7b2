"""Nothing that is read is executed: no module unpickles or evaluates, values of the command line are literals."""

import ast
import pathlib

import pytest
import tiny

import mtljax
from mtljax import balancing, cli
from mtljax.base import InputError

ROOT = pathlib.Path(mtljax.__file__).parent
MODULES = {'pickle', 'cPickle', '_pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}
CODE = "__import__('pathlib').Path('executed').write_text('')"


def offences(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [node.module or ''] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
      yield from (f'line {node.lineno}: imports {name}' for name in names if name.split('.')[0] in MODULES)
    if isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name) and node.func.id in ('eval', 'exec'):
        yield f'line {node.lineno}: calls {node.func.id}'
      for keyword in node.keywords:
        if keyword.arg == 'allow_pickle' and getattr(keyword.value, 'value', True) is not False:
          yield f'line {node.lineno}: allow_pickle'


def test_no_module_unpickles_or_evaluates():
  files = sorted(ROOT.rglob('*.py'))
  assert len(files) > 50
  assert [f'{path.relative_to(ROOT)}, {what}' for path in files for what in offences(ast.parse(path.read_text()))] == []


@pytest.mark.parametrize('text', ['import pickle', 'from dill import x', 'eval("1")', 'f(x, allow_pickle=True)'])
def test_what_is_looked_for_is_found(text):
  assert list(offences(ast.parse(text)))


@pytest.mark.parametrize('text', [CODE, f'cagrad(c={CODE})', f'cagrad(c=[{CODE}])'], ids=['call', 'argument', 'nested'])
def test_a_balancer_is_no_code(tmp_path, monkeypatch, text):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError):
    balancing.parse(text, steps_per_epoch=1)
  assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('option', ['--width', '--layers', '--rate_of_labels', '--steps', '--balancer'])
def test_values_of_the_command_line_are_no_code(tmp_path, monkeypatch, capsys, option):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['train', str(tiny.write(tmp_path)), option, CODE]) == 2
  assert not (tmp_path / 'executed').exists()
