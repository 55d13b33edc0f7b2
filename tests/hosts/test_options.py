"""How processes are told of each other: what is wrong is named, and clusters are asked by jax.distributed."""

import re
import socket

import jax
import processes
import pytest

from mtljax import cli, hosts, options
from mtljax.base import InputError
from mtljax.hosts import HostOptions

TWO = {'coordinator': 'a:1', 'num_processes': 2}
SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'node[07-08]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}


@pytest.mark.parametrize(
  'given, message',
  [
    ({**TWO, 'process_id': 2}, 'process_id: found 2, expected one of 0 to 1, of num_processes 2'),
    ({**TWO, 'process_id': -2}, 'process_id: found -2, expected an integer >= 0'),
    ({'coordinator': 'a:1', 'process_id': 0}, 'process_id: found 0 without num_processes, expected both'),
    ({'num_processes': -1}, 'num_processes: found -1, expected a positive integer'),
    ({'coordinator': 'a'}, "coordinator: found 'a', expected HOST:PORT or 'auto'"),
    ({'coordinator': ':80'}, "coordinator: found ':80'"),
    ({'coordinator': 'a:http'}, "coordinator: found 'a:http'"),
    ({'coordinator': 'a:65536'}, "coordinator: found 'a:65536'"),
    ({'connect_seconds': 0}, 'connect_seconds: found 0, expected a positive integer'),
    ({'heartbeat_seconds': -5}, 'heartbeat_seconds: found -5, expected a positive integer'),
  ],
  ids=lambda value: '+'.join(value) if isinstance(value, dict) else '',
)
def test_what_cannot_be_is_named(given, message):
  with pytest.raises(InputError, match=re.escape(message)):
    HostOptions(**given)


@pytest.fixture
def asked(monkeypatch):
  """What `jax.distributed.initialize` is asked for, in the environment of no cluster."""
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **kwargs: calls.append((args, kwargs)))
  for name in list(processes.os.environ):
    if processes.OTHERS.fullmatch(name):
      monkeypatch.delenv(name)
  return calls


def test_a_run_of_one_process_asks_for_nothing(asked):
  assert hosts.start(HostOptions()) == (0, 1) and asked == []


def test_what_is_given_is_handed_on(asked):
  hosts.start(HostOptions('10.0.0.1:1234', 3, 2, heartbeat_seconds=17, connect_seconds=9))
  (args, kwargs) = asked[0]
  assert args == ('10.0.0.1:1234', 3, 2)
  assert kwargs['heartbeat_timeout_seconds'] == 17 and kwargs['initialization_timeout'] > 9
  assert kwargs.keys() == {'heartbeat_timeout_seconds', 'initialization_timeout', 'shutdown_timeout_seconds'}


@pytest.mark.parametrize(
  'given, expected',
  [(('auto',), (None, None, None)), (('', 4), (None, 4, None)), (('auto', 4, 3), (None, 4, 3))],
  ids=['auto', 'number', 'number and place'],
)
def test_what_is_not_given_is_left_to_the_cluster(asked, monkeypatch, given, expected):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  hosts.start(HostOptions(*given))
  assert asked[0][0] == expected


def test_the_command_line_reads_them_before_the_experiment(asked, monkeypatch, capsys):
  given = ['--num_processes', '2', '--process-id=1', '--coordinator', 'node07:81', '--heartbeat_seconds', '20']
  assert cli.main(['train', 'no_such.py', '--width', '8', *given]) == 2
  assert asked[0][0] == ('node07:81', 2, 1) and asked[0][1]['heartbeat_timeout_seconds'] == 20
  assert 'no_such.py' in capsys.readouterr().err
  assert options.early('train', HostOptions, ['x.py', '--steps', '3']) == HostOptions()


@pytest.mark.parametrize(
  'given, message',
  [
    (['--coordinator', '127.0.0.1:81'], 'num_processes is not given, and none of SLURM, Open MPI, Kubernetes'),
    (['--num_processes', '2', '--process_id', '1'], 'coordinator is not given, and none of SLURM'),
    (['--coordinator', 'auto'], 'coordinator is not given, and none of SLURM'),
    (['--coordinator', '127.0.0.1:81', '--num_processes', '2'], 'process_id is not given, and none of SLURM'),
    (['--coordinator', '127.0.0.1:81', '--num_processes', '2', '--process_id', '2'], 'process_id: found 2, expected'),
    (['--coordinator', '127.0.0.1:81', '--num_processes', 'two'], 'num_processes'),
  ],
  ids=['no number', 'no coordinator', 'no cluster', 'no place', 'beyond', 'no integer'],
)
def test_what_nobody_says_is_named(asked, monkeypatch, capsys, given, message):
  state = jax._src.distributed.State()  # the real one, but for its connection: this process has touched its devices
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **kwargs: state.initialize(*args, **kwargs))
  assert cli.main(['train', 'no_such.py', *given]) == 2
  error = capsys.readouterr().err
  assert error.startswith('mtljax train: ') and message in error and len(error.splitlines()) == 1


def test_a_coordinator_that_does_not_answer_or_cannot_listen(tmp_path):
  """In one process: first its port is in use, then nobody is at the other end."""
  code = (
    'import sys; from mtljax import cli; port = sys.argv[1]; of_all = ["--num_processes", "2", "--coordinator"];'
    'print(cli.main(["train", "x.py", *of_all, "127.0.0.1:" + port, "--process_id", "0"]));'
    'cli.main(["train", "x.py", *of_all, "127.0.0.1:" + port, "--process_id", "1", "--connect_seconds", "1"])'
  )
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    bind = lambda process, _: {'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}'}
    found = processes.run(tmp_path, 1, 1, port, script=['-c', code], cluster=bind, codes=[2])
  said = found[0].err.read_text()
  assert found[0].out.read_text() == '2\n'
  assert f'coordinator (127.0.0.1:{port}): process 0 cannot listen there; is the port in use?' in said
  assert f'coordinator (127.0.0.1:{port}): after 1 s not all 2 processes have come together' in said
