"""docs/sharing.md is what its generator makes, its figures are there, its names exist and its code runs."""

import importlib.util
import pathlib
import re

import pytest

import mtljax as mtl
from mtljax import cli, experiment, sharing

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
PAGE = (DOCS / 'sharing.md').read_text()


@pytest.fixture(scope='module')
def generator():
  spec = importlib.util.spec_from_file_location('make_sharing', DOCS / 'make_sharing.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_page_is_what_the_generator_makes(generator):
  assert PAGE == generator.make(), 'run: python docs/make_sharing.py'


def test_page_has_every_architecture_twice(generator):
  """In the table of costs and in that of its family."""
  rows = re.findall(r'^\| `(\w+)', PAGE, flags=re.M)
  listed = [name for name in rows if name in sharing.ARCHITECTURES]
  assert sorted(set(listed)) == sorted(sharing.ARCHITECTURES)
  assert all(listed.count(name) >= 2 for name in sharing.ARCHITECTURES)


def test_an_architecture_without_a_family_is_an_error(generator, monkeypatch):
  monkeypatch.setitem(generator.FAMILIES, 'stitching', generator.FAMILIES['stitching'][1:])
  with pytest.raises(ValueError, match=r"FAMILIES: \['cross_stitch'\] of sharing.ARCHITECTURES are in no family"):
    generator.costs_table()


def test_a_table_that_is_missing_is_an_error(generator, monkeypatch):
  assert generator.TABLES and all(
    f'{{{{table {name}}}}}' in generator.TEMPLATE.read_text() for name in generator.TABLES
  )
  monkeypatch.setattr(generator, 'TABLES', ('no_such_table.txt',))
  with pytest.raises(FileNotFoundError):
    generator.make()


def test_a_reference_that_is_missing_is_named(generator):
  def method():
    """Does something."""

  with pytest.raises(ValueError, match='method: found no line "Reference: '):
    generator.paper(method)


def test_figures_are_those_of_the_generator(generator):
  shown = re.findall(r'^!\[.+\]\(images/(\w+)\.png\)$', PAGE, flags=re.M)
  assert sorted(shown) == sorted(generator.FIGURES)
  files = {path.stem for path in (DOCS / 'images').glob('sharing_*.png')}
  assert files == set(generator.FIGURES)
  assert all((DOCS / 'images' / f'{name}.png').read_bytes().startswith(b'\x89PNG') for name in shown)


def test_sections_of_the_contents_exist():
  anchors = re.findall(r'^- .*\]\(#([a-z0-9-]+)\)', PAGE, flags=re.M)
  titles = [re.sub(r'[^a-z0-9 -]', '', t.lower()).replace(' ', '-') for t in re.findall(r'^## (.+)$', PAGE, flags=re.M)]
  assert titles == anchors


def test_names_in_the_prose_exist():
  """Whatever looks like a name of the library is one."""
  prose = re.sub(r'```.*?```', '', (DOCS / 'sharing_template.md').read_text(), flags=re.S)
  names = set(re.findall(r'`([a-z_]+)`', prose))
  arguments = {'cuts', 'stems', 'frozen', 'needed', 'mix'}
  assert len(names) > 15
  for name in names - arguments - set(sharing.ARCHITECTURES):
    assert hasattr(sharing, name) or hasattr(mtl, name), name


def test_commands_have_these_options():
  blocks = [block.replace('\\\n', ' ') for block in re.findall(r'^```\n(.*?)^```$', PAGE, flags=re.M | re.S)]
  lines = [line for block in blocks for line in block.splitlines()]
  commands = [line.removeprefix('mtljax ') for line in lines if line.startswith('mtljax ')]
  assert len(commands) == 6
  for line in commands:
    command, _, *rest = line.split()
    config = experiment.load(str(DOCS.parent / line.split()[1])).Config
    known = {*cli.COMMANDS[command][0].__dataclass_fields__, *config.__dataclass_fields__}
    assert {option[2:] for option in rest if option.startswith('--')} <= known, line


def test_the_code_runs_as_written():
  (code,) = re.findall(r'^```python\n(.*?)^```$', PAGE, flags=re.M | re.S)
  names = {}
  exec(code, names)
  assert ('trunk/conv_0', 'trunk/conv_1') in names['graph'].edges and names['figure'].axes
  assert f'```\n{names["table"]}\n```' in PAGE  # the table below the code is its result
