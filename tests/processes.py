"""Several processes of one run, on 127.0.0.1, for tests."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

MAIN = ('-c', 'import sys; from mtljax.cli import main; sys.exit(main())')
OTHERS = re.compile(r'.*_proxy|(SLURM|OMPI|PMIX|KUBERNETES|TPU|MEGASCALE)_.*|JAX_(COORDINATOR|LOCAL).*', re.IGNORECASE)
PATIENCE = 300  # seconds; a test on a busy machine is slow, and one that hangs is to end
ATTEMPTS = 5


@dataclasses.dataclass
class Process:
  """One of them; `out` and `err` are files, which cannot block it."""

  popen: subprocess.Popen
  out: pathlib.Path
  err: pathlib.Path

  def wait(self, seconds=PATIENCE):
    """Its exit code."""
    try:
      return self.popen.wait(seconds)
    except subprocess.TimeoutExpired:
      raise AssertionError(f'still running after {seconds} s:\n{self.said()}') from None

  def said(self):
    return self.out.read_text() + self.err.read_text()


def environment(devices, **more):
  """Of a process with so many devices of its own, and nothing of a cluster that the tests themselves may run in."""
  kept = {name: value for name, value in os.environ.items() if not OTHERS.fullmatch(name)}
  flags = [flag for flag in kept.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
  flags.append(f'--xla_force_host_platform_device_count={devices}')
  return {**kept, 'XLA_FLAGS': ' '.join(flags), 'PYTHONPATH': str(pathlib.Path(__file__).parent), **more}


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@contextlib.contextmanager
def started(folder, number, devices, *argv, script=MAIN, cluster=None):
  """The processes, which are killed at the end of the block where they are still there.

  Args:
    folder: where they run, and where their output goes.
    number: of processes, of `devices` each; one is started without the options of several.
    argv: what all get, besides what tells them of each other.
    script: what Python runs.
    cluster: `(process, port) -> environment` that tells them of each other instead.
  """
  processes = []
  try:
    for attempt in range(ATTEMPTS):
      port = free_port()
      processes[:] = [_start(folder, number, devices, argv, script, cluster, port, i) for i in range(number)]
      if number == 1 or attempt == ATTEMPTS - 1 or not _port_was_taken(processes[0]):
        break
      _kill(processes)
    yield processes
  finally:
    _kill(processes)


def _start(folder, number, devices, argv, script, cluster, port, process):
  more = {'JAX_COORDINATOR_BIND_ADDRESS': f'127.0.0.1:{port}', 'PYTHONUNBUFFERED': '1'}
  if cluster:
    more |= cluster(process, port)
  elif number > 1:
    argv = (*argv, '--coordinator', f'127.0.0.1:{port}', '--num_processes', number, '--process_id', process)
  out, err = (pathlib.Path(folder) / f'{name}.{process}' for name in ('out', 'err'))
  command = [sys.executable, *map(str, script), *map(str, argv)]
  with out.open('w') as to_out, err.open('w') as to_err:
    popen = subprocess.Popen(command, cwd=folder, env=environment(devices, **more), stdout=to_out, stderr=to_err)
  return Process(popen, out, err)


def _port_was_taken(first):
  """Whether somebody else got the port before process 0 listened there; waits until that is known."""
  end = time.monotonic() + PATIENCE
  while first.popen.poll() is None and time.monotonic() < end:
    if 'connected to' in first.said():  # what the transport says when they are together
      return False
    time.sleep(0.05)
  said = first.said()  # our words, or the runtime's before it crashes
  return 'cannot listen' in said or 'Failed to add port' in said


def _kill(processes):
  for process in processes:
    if process.popen.poll() is None:
      process.popen.send_signal(signal.SIGKILL)
    process.popen.wait()


def run(folder, number, devices, *argv, codes=None, **kwargs):
  """Starts them, waits for their end and returns them; `codes` are those expected, of all 0."""
  with started(folder, number, devices, *argv, **kwargs) as processes:
    found = [process.wait() for process in processes]
    text = '\n'.join(process.said() for process in processes)
    assert found == (codes or [0] * number), text
    return processes
