"""docs/balancing.md is what its generator makes, every method says what it is for, and its code runs."""

import importlib.util
import json
import pathlib
import re

import pytest

from mtljax import balancing

DOCS = pathlib.Path(__file__).parent.parent / 'docs'


@pytest.fixture(scope='module')
def generator():
  spec = importlib.util.spec_from_file_location('make_balancing', DOCS / 'make_balancing.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('name', balancing.METHODS)
def test_every_method_says_what_it_needs_helps_and_breaks_on(name, generator):
  found = generator.facts(balancing.METHODS[name])
  assert tuple(found) == generator.LABELS
  assert all(3 <= len(text) <= 110 for text in found.values())


def test_a_missing_line_is_named(generator):
  def method():
    """Does something.

    Needs: nothing.
    Helps: nobody.
    """

  with pytest.raises(ValueError, match='method: found 0 lines "Breaks'):
    generator.facts(method)


def test_page_is_what_the_generator_makes(generator):
  assert (DOCS / 'balancing.md').read_text() == generator.make(), 'run: python docs/make_balancing.py'


def test_page_has_every_method_once(generator):
  page = (DOCS / 'balancing.md').read_text()
  rows = re.findall(r'^\| `(\w+)\(', page, flags=re.M)
  assert sorted(rows) == sorted(balancing.METHODS)


def test_costs_belong_to_methods(generator):
  measured = json.loads(generator.COSTS.read_text())
  assert set(measured['cost']) <= set(balancing.METHODS)
  assert all(measured['cost']['equal']['params'][T] == 1 for T in generator.TASKS)


def test_sections_of_the_contents_exist():
  page = (DOCS / 'balancing.md').read_text()
  anchors = re.findall(r'\]\(#([a-z0-9-]+)\)', page)
  titles = [re.sub(r'[^a-z0-9 -]', '', t.lower()).replace(' ', '-') for t in re.findall(r'^## (.+)$', page, flags=re.M)]
  assert anchors == titles


def test_names_in_the_prose_exist():
  """Whatever looks like a call or a name of a method is one."""
  prose = re.sub(r'```.*?```', '', (DOCS / 'balancing_template.md').read_text(), flags=re.S)
  names = set(re.findall(r'`([a-z_0-9]+)(?:\([^`]*\))?`', prose)) - {'chunk_size', 'optimizer', 'cost'}
  assert names and names <= set(balancing.METHODS)


def test_the_sweep_runs_as_written():
  (code,) = re.findall(r'^```python\n(.*?)^```$', (DOCS / 'balancing.md').read_text(), flags=re.M | re.S)
  names = {}
  exec(code, names)
  losses, again = names['losses'], names['again']
  assert losses.shape == again.shape == (11, 50, 2) and len(names['traces']) == 1
  assert (losses[:, -1] < losses[:, 0]).all()  # every lane trains
  assert len({float(x) for x in losses[:, -1, 0]}) == 11  # and every c is another run
