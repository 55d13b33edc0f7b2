"""Every kind of run, by two processes: dropout, BatchNorm, augmentation, streams, an input per task, features."""

import pathlib

import hosts_cases
import processes
import pytest

pytestmark = pytest.mark.slow

SCRIPT = pathlib.Path(__file__).with_name('kinds.py')
KINDS = 'dropout,batch_norm,batch_norm sharded,features,transform,stream,multi,split,turns,parts'.split(',')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Runs of one process with two devices, and of two with one each."""
  one, two = (tmp_path_factory.mktemp(name) for name in ('one', 'two'))
  processes.run(one, 1, 2, script=[SCRIPT])
  processes.run(two, 2, 1, script=[SCRIPT])
  return one / 'runs', two / 'runs'


def test_all_ran(folders):
  assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [sorted(KINDS)] * 2


@pytest.mark.parametrize('kind', KINDS)
def test_same_run(folders, kind):
  one, two = folders
  # where parameters are split, one process evaluates with sums over devices, and two without
  hosts_cases.assert_same_run(two / kind, one / kind, tolerance=2e-6 if kind == 'split' else 0)
