"""Imports go down only; a few libraries have one place; only the loop and the command line print."""

import ast
import pathlib

import pytest

import mtljax

ROOT = pathlib.Path(mtljax.__file__).parent
FLOORS = {
  0: ('base', 'arrays', 'version', 'calls'),
  1: ('hosts', 'linalg', 'losses', '_solvers', 'metrics', 'relations', 'inputs'),
  2: ('penalties', 'learned_relations', 'trunks', 'heads', 'balancing', 'data'),
  3: ('sharing',),
  4: ('gradients', 'microbatches', 'optim'),
  5: ('train_step', 'evaluate', 'parallel'),
  6: ('checkpoint', 'transfer', 'analysis'),
  7: ('experiment', 'lock', 'rundir', 'events', 'loop', 'runs', 'training'),
  8: ('__main__', 'cli', 'compare', 'lanes', 'options'),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
OWNERS = {
  'tensorflow_datasets': ('data',),
  'grain': ('data',),
  'orbax': ('checkpoint',),
  'flax': ('trunks', 'heads', 'sharing'),
  'tyro': ('options',),
  'torch': (),
  'scipy': (),
  'tensorflow': (),
}
FILES = sorted(ROOT.rglob('*.py'))


def unit(path):
  """The file or folder directly below the package."""
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imports(path):
  """Dotted names that a file imports, wherever the statement stands; `from mtljax import arrays` is mtljax.arrays."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file(path):
  name = unit(path)
  if name != '__init__':
    assert name in FLOOR, f'{name} has no floor'
  for imported in imports(path):
    parts = imported.split('.')
    if parts[0] == 'mtljax' and len(parts) > 1 and name != '__init__' and parts[1] in FLOOR:
      assert FLOOR[parts[1]] <= FLOOR[name], f'{name} imports {imported}, which is above it'
      if name == 'balancing' or parts[1] == 'balancing':
        assert {name, parts[1]}.isdisjoint({'trunks', 'heads', 'sharing'}), f'{name} imports {imported}'
    if parts[0] in OWNERS:
      assert name in OWNERS[parts[0]], f'{name} imports {imported}, which belongs to {OWNERS[parts[0]]}'
  lines = path.read_text().splitlines()
  assert len(lines) <= 350, f'{path} has {len(lines)} lines'
  if name not in ('loop', 'training', 'cli'):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not any(isinstance(n.func, ast.Name) and n.func.id == 'print' for n in calls), f'{path} prints'


def test_vjp_and_the_level_have_one_place():
  for path in FILES:
    text = path.read_text()
    if unit(path) not in ('gradients',):
      assert 'jax.vjp(' not in text or unit(path) == 'balancing', f'{path} takes vjps'


def test_the_check_can_fail(tmp_path):
  bad = tmp_path / 'bad.py'
  bad.write_text('from mtljax import loop\nimport orbax.checkpoint\n')
  assert list(imports(bad)) == ['mtljax.loop', 'orbax.checkpoint']
