"""Processes that train together, on one machine or on many: how they find each other, agree and end.

All of it is `jax.distributed`. Every process runs the same program on its own rows of every batch; the first one
(process 0) writes and prints. What one of them finds out, the others learn by `from_first`.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtljax.base import InputError

BLOCK = 256  # bytes that are sent at a time
GRACE = 3  # seconds by which the first process outlives the others: they end when it does
SETTLE = 60  # seconds after which a network file system shows a new file to all
CANNOT_LISTEN = 'process 0 cannot listen there; is the port in use?'
_CALLS = itertools.count()  # of `reached_stop`, the same in all processes
# What is said when a process is gone, in the words of the transport, of the coordination service, or of orbax.
GONE = re.compile(r'gloo|nccl|heartbeat|coordination|barrier|connection (closed|reset)|unavailable', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class HostOptions:
  """Of a run of several processes.

  Attributes:
    coordinator: HOST:PORT of process 0, for a run of several processes; 'auto' takes all from SLURM, Open MPI,
      Kubernetes or Cloud TPU. Empty is a run of one process.
    num_processes: how many processes there are; 0 is what the cluster says.
    process_id: which of them this is, from 0; -1 is what the cluster says.
    connect_seconds: how long the processes wait for each other at the start.
    heartbeat_seconds: a process that is not heard of for so long is dead, and the others end.
  """

  coordinator: str = ''
  num_processes: int = 0
  process_id: int = -1
  connect_seconds: int = 300
  heartbeat_seconds: int = 60

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(':')
    if self.coordinator not in ('', 'auto') and not (host and port.isdecimal() and 0 < int(port) < 2**16):
      raise InputError(f"coordinator: found {self.coordinator!r}, expected HOST:PORT or 'auto'.")
    if self.num_processes < 0:
      raise InputError(f'num_processes: found {self.num_processes}, expected a positive integer.')
    if self.process_id < -1:
      raise InputError(f'process_id: found {self.process_id}, expected an integer >= 0.')
    if self.process_id >= 0 and not self.num_processes:
      raise InputError(f'process_id: found {self.process_id} without num_processes, expected both.')
    if self.num_processes and self.process_id >= self.num_processes:
      raise InputError(
        f'process_id: found {self.process_id}, expected one of 0 to {self.num_processes - 1}, '
        f'of num_processes {self.num_processes}.'
      )
    for name in ('connect_seconds', 'heartbeat_seconds'):
      if getattr(self, name) < 1:
        raise InputError(f'{name}: found {getattr(self, name)}, expected a positive integer.')

  @property
  def asked(self) -> bool:
    """Whether the options say anything of several processes."""
    return bool(self.coordinator or self.num_processes or self.process_id >= 0)


def start(options: HostOptions) -> tuple[int, int]:
  """Joins the processes of a run; before anything touches a device.

  Returns:
    Which process this is, and how many there are; (0, 1) where the options ask for nothing.

  Raises:
    InputError: something is not given and no cluster says it, or the coordinator cannot listen. Where processes do not
      come together in `connect_seconds`, this one says so and ends: there is no way back out of the connection.
  """
  if not options.asked:
    return 0, 1
  where = 'as the cluster says' if options.coordinator in ('', 'auto') else options.coordinator
  if options.process_id == 0 and where == options.coordinator:
    _check_port(where)
  watch = threading.Timer(options.connect_seconds, _give_up, (options, where))
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      None if options.coordinator in ('', 'auto') else options.coordinator,
      options.num_processes or None,
      options.process_id if options.process_id >= 0 else None,
      initialization_timeout=options.connect_seconds + 60,  # `watch` is earlier, and says why
      heartbeat_timeout_seconds=options.heartbeat_seconds,
      shutdown_timeout_seconds=options.heartbeat_seconds,
    )
    return jax.process_index(), jax.process_count()
  except (ValueError, RuntimeError) as error:
    raise InputError(f'coordinator ({where}): {_reason(error)}') from error
  finally:
    watch.cancel()


def _check_port(coordinator):
  """Raises where the port of process 0 is in use: the runtime (jaxlib 0.10) may crash when it finds that out itself."""
  host, _, port = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', f':{coordinator.rpartition(":")[2]}').rpartition(':')
  kinds = dict(type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
  for family, kind, _, _, address in socket.getaddrinfo(host.strip('[]') or None, port, **kinds):
    try:
      with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        probe.bind(address)
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        raise InputError(f'coordinator ({coordinator}): {CANNOT_LISTEN}') from error


def _give_up(options, where):
  number = f'all {options.num_processes}' if options.num_processes else 'all'
  sys.stderr.write(
    f'mtljax: coordinator ({where}): after {options.connect_seconds} s not {number} processes have come together, '
    f'expected them to reach process 0 there; see whether they all run, the address, and the firewall '
    '(--connect_seconds waits longer).\n'
  )
  sys.stderr.flush()
  os._exit(2)


def _reason(error) -> str:
  text = str(error)
  if 'should be defined' in text or 'must be defined' in text:
    what = 'coordinator' if 'coordinator' in text else 'num_processes' if 'Number' in text else 'process_id'
    return (
      f'{what} is not given, and none of SLURM, Open MPI, Kubernetes (package kubernetes) and Cloud TPU says it; '
      'expected --coordinator HOST:PORT --num_processes N --process_id I.'
    )
  if 'RPC server' in text:
    return CANNOT_LISTEN
  return text


def several() -> bool:
  """Whether this is one of several processes."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
  """While the block runs, prints and warnings of the first process are seen, and no others."""
  if not label() or is_first():
    yield
    return
  with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def from_first(value: Any) -> Any:
  """The first process's value, in all of them: numbers, strings, lists and dicts as JSON has them.

  All processes have to call it, at the same place of the program; it waits for the devices.
  """
  if not several():
    return value
  data = json.dumps(value).encode() if is_first() else b''
  data = len(data).to_bytes(4, 'big') + data
  found, size = b'', 1
  while len(found) < size:
    block = data[len(found) :][:BLOCK].ljust(BLOCK, b'\0')
    found += multihost_utils.broadcast_one_to_all(np.frombuffer(block, np.uint8)).tobytes()
    size = 4 + int.from_bytes(found[:4], 'big')
  return json.loads(found[4:size])


def on_first(call: Callable[[], Any]) -> None:
  """Runs `call` in the first process, while the others wait; if it fails, all do.

  Raises:
    InputError: what the first process raised, an InputError or an OSError.
  """
  failed = None
  if is_first():
    try:
      call()
    except (InputError, OSError) as error:
      failed = error
  message = from_first(None if failed is None else str(failed))
  if failed is not None:
    raise failed
  if message is not None:
    raise InputError(message)


def check_same(values: Mapping[str, Any]) -> None:
  """Raises an InputError in all processes unless all have the same values (as JSON has them)."""
  if not several():
    return
  own = dict(_flat(json.loads(json.dumps(values))))
  first = from_first(own)
  other = [name for name in {**first, **own} if own.get(name) != first.get(name)]
  wrong = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(other))))
  if other:
    name = other[0]
    raise InputError(
      f'{name}: found {own.get(name)!r}, expected {first.get(name)!r}, as in process 0: all processes have to be '
      'started with the same options.'
    )
  if wrong.size:
    raise InputError(f'process {wrong[0]} was started with other options than process 0; its message says which.')


def check_shared(path) -> None:
  """Raises an InputError in all processes unless all see the file, which the first one made."""
  if not several():
    return
  end = time.monotonic() + SETTLE
  while not os.path.exists(path) and time.monotonic() < end:
    time.sleep(0.1)
  blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(os.path.exists(path))))
  if blind.size:
    raise InputError(
      f'run_dir: process {blind[0]} does not see {path}, which process 0 made; expected a directory that all processes '
      'share, as on NFS.'
    )


def _flat(values):
  for name, value in values.items():
    yield from _flat(value) if isinstance(value, dict) else [(name, value)]


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if several():
    multihost_utils.sync_global_devices(name)


def reached_stop() -> bool:
  """Whether a process got a SIGTERM and this is the call at which all stop: soon after, the same call for all.

  To be called by all processes after every step; 0.15 microseconds, no device is waited for.
  """
  return multihost_utils.reached_preemption_sync_point(next(_CALLS))


def label() -> str:
  """' (process 1 of 2)' for messages, '' where there is one."""
  joined = jax.distributed.is_initialized() and several()
  return f' (process {jax.process_index()} of {jax.process_count()})' if joined else ''


def is_lost(error: BaseException) -> bool:
  """Whether an error says that another process is gone."""
  return bool(label()) and isinstance(error, ValueError | RuntimeError | TimeoutError) and bool(GONE.search(str(error)))


def explain(error: Exception) -> str:
  """What to say of an error that ended one of several processes; prints where it came from unless that is known."""
  if is_lost(error):
    what = f'another process is gone ({str(error).splitlines()[0]})'
  else:
    traceback.print_exception(error)
    what = 'stopped by the error above'
  return f'{what}; start all processes again, with --resume.'


def leave(code: int) -> int:
  """Ends one of several processes that failed, at once; else returns `code`.

  Its normal exit would wait for the others, and they for it.
  """
  if code and label():
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
      time.sleep(GRACE)
    os._exit(code)
  return code
