"""One run at a time in a directory: a lock that ends with the process that holds it, however it ends."""

import contextlib
import os
import pathlib
import socket
import time
import warnings
from collections.abc import Iterator

from mtljax.base import InputError

NAME = 'run.lock'


@contextlib.contextmanager
def hold(directory) -> Iterator[None]:
  """Keeps other runs out of a directory while the block runs.

  The lock is `flock` on the file `run.lock`, which the operating system takes back when the process ends, by
  `kill -9` too; the file itself says who holds it and goes away with the block. What is left of a killed run is an
  unlocked file, which the next run takes over. On NFS the kernel of Linux turns `flock` into a lock on the server,
  which other hosts see. A process forked from the run (not spawned) shares the lock and keeps it while it lives.

  Args:
    directory: that exists.

  Raises:
    InputError: another run holds it, in this process or in another one.
  """
  path = pathlib.Path(directory) / NAME
  file = _acquire(path)
  try:
    with contextlib.suppress(OSError):  # a full disk: the lock holds, only its owner is not named
      os.truncate(file, 0)
      os.pwrite(file, f'process {os.getpid()} on {socket.gethostname()} since {time.strftime("%F %T")}'.encode(), 0)
    yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink()  # before the lock ends, so that it is still this run's file
    os.close(file)


def _acquire(path) -> int:
  """The descriptor of the locked file that has the name now: one locked before may have lost it in between."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
      _flock(file, path)
      if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
        return file
    except BaseException:
      os.close(file)
      raise
    os.close(file)


def _flock(file, path):
  try:
    import fcntl  # not on Windows

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    owner = os.pread(file, 200, 0).decode(errors='replace') or 'an unnamed process'
    raise InputError(
      f'run directory {path.parent}: found a run in progress ({owner}), expected none; '
      'wait for its end, stop it, or use --run_dir for another place.'
    ) from None
  except (ImportError, OSError) as error:
    why = getattr(error, 'strerror', None) or error
    warnings.warn(
      f'run directory {path.parent}: this file system has no locks ({why}); see to it that no other run writes there.',
      stacklevel=5,
    )
