"""Two processes are one: the same numbers, bit for bit, as one process with as many devices."""

import json
import pathlib

import hosts_cases
import processes
import pytest
import tiny

from mtljax import checkpoint

MEMBER = pathlib.Path(__file__).with_name('member.py')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tiny.write(tmp_path_factory.mktemp('experiment'), 'own_rows', hosts_cases.SOURCE)


@pytest.fixture(scope='module')
def alone(path, tmp_path_factory):
  """Where runs of this process are, on two of its devices."""
  folder = tmp_path_factory.mktemp('alone')
  for options in (hosts_cases.PCGRAD, hosts_cases.OF_SECOND):
    hosts_cases.train_here(path, options, folder / options.balancer, devices=2)
  return folder


@pytest.fixture(scope='module')
def pair(path, tmp_path_factory):
  """Where two processes of one device ran, themselves, and what each of them saw."""
  folder = tmp_path_factory.mktemp('pair')
  found = processes.run(folder, 2, 1, path, folder / 'seen', script=[MEMBER])
  return folder, found, [json.loads((folder / f'seen.{i}').read_text()) for i in range(2)]


@pytest.mark.parametrize('balancer', ['pcgrad', 'equal'])
def test_the_numbers_are_those_of_one_process(alone, pair, balancer):
  hosts_cases.assert_same_run(pair[0] / 'runs' / balancer, alone / balancer)


def test_the_run_directory_is_that_of_one_process(alone, pair):
  one, two = alone / 'pcgrad', pair[0] / 'runs' / 'pcgrad'
  assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
  assert checkpoint.steps(two / 'checkpoints') == checkpoint.steps(one / 'checkpoints') == [8, 4]
  assert len(list((two / 'tensorboard').iterdir())) == len(list((one / 'tensorboard').iterdir()))


def test_only_the_first_one_writes_and_prints(pair):
  _, (first, second), (seen, other) = pair
  of_all = [text for text in other['written'] if '/checkpoints' not in text]  # those orbax writes in all of them
  assert any('metrics.jsonl' in text for text in seen['written']) and of_all == []
  assert 'test  accuracy' in first.out.read_text()
  assert [line for line in second.out.read_text().splitlines() if not line.startswith('[Gloo]')] == []
  assert 'warning' not in first.said() + second.said()


def test_they_know_each_other(pair):
  assert [seen['place'] for seen in pair[2]] == [[0, 2, 2], [1, 2, 2]]
  assert all(seen['from_first'] == {'long': [0] * 300, 'own': 0} for seen in pair[2])
  assert all(seen['code'] == 0 and seen['same'] is None for seen in pair[2])


@pytest.mark.parametrize(
  'what, message',
  [
    ('jit', "mode: found 'jit' with 2 processes, expected 'shard_map' or 'sharded'"),
    ('pmap', "mode: found 'pmap' with several processes, expected 'shard_map'"),
    ('batch_size', 'batch_size: found 5, expected one that can be divided by 2, the number of devices of all 2 proc'),
    ('not batches', 'Experiment train: found function with several processes, expected data.Batches or data.Stream'),
    ('on_save_error', "on_save_error: found 'continue' with several processes, expected 'stop'"),
    ('in use', 'run directory runs/pcgrad: found files of an earlier run, expected an empty or a new directory'),
    ('on_first', 'only the first one knows'),
    ('elsewhere', 'run_dir: process 1 does not see runs/elsewhere/run.lock, which process 0 made'),
  ],
  ids=['jit', 'pmap', 'rows', 'not batches', 'goes on', 'in use', 'first', 'elsewhere'],
)
def test_what_is_wrong_is_said_by_all(pair, what, message):
  assert all(seen[what].startswith(message) for seen in pair[2]), [seen[what] for seen in pair[2]]


def test_options_that_differ_are_named_where_they_do(pair):
  first, second = (seen['others'] for seen in pair[2])
  assert second.startswith(
    'width: found 9, expected 8, as in process 0: all processes have to be started with the same'
  )
  assert first.startswith('process 1 was started with other options than process 0')
