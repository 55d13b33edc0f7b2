"""The public names: documented, listed, and importable without touching a device."""

import inspect
import json
import subprocess
import sys

import pytest

import mtljax as mtl


def test_all_is_what_there_is():
  assert mtl.__all__ == sorted(mtl.__all__) and len(set(mtl.__all__)) == len(mtl.__all__) <= 32
  for name in mtl.__all__:
    assert hasattr(mtl, name), name


def public_functions():
  for owner in (
    mtl,
    mtl.balancing,
    mtl.sharing,
    mtl.trunks,
    mtl.heads,
    mtl.losses,
    mtl.metrics,
    mtl.penalties,
    mtl.relations,
    mtl.learned_relations,
    mtl.analysis,
    mtl.data,
  ):
    for name in getattr(owner, '__all__', None) or [n for n in vars(owner) if not n.startswith('_')]:
      value = getattr(owner, name)
      if callable(value) and getattr(value, '__module__', '').startswith('mtljax'):
        yield pytest.param(value, id=f'{owner.__name__}.{name}')


@pytest.mark.parametrize('value', list(public_functions()))
def test_every_public_name_has_a_docstring(value):
  doc = inspect.getdoc(value)
  assert doc and len(doc.splitlines()[0]) > 10 and not doc.startswith(f'{value.__name__}('), value


SCRIPT = """
import json, sys
import mtljax
import jax
from jax._src import xla_bridge
heavy = ('tensorflow_datasets', 'matplotlib', 'sklearn', 'orbax', 'grain', 'tyro', 'metrax', 'PIL', 'soundfile', 'soxr',
         'sentencepiece', 'jiwer', 'sacrebleu')
backends = list(xla_bridge._backends)
arrays = len(jax.live_arrays()) if backends else 0
print(json.dumps({'arrays': arrays, 'backends': backends, 'heavy': [m for m in heavy if m in sys.modules]}))
"""


def test_import_touches_no_backend_and_creates_no_array():
  out = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, check=True)
  found = json.loads(out.stdout)
  assert found['backends'] == [] and found['arrays'] == 0 and found['heavy'] == []
