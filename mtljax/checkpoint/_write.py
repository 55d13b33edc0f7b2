"""Writing checkpoints in the background."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtljax import hosts
from mtljax.base import PyTree
from mtljax.checkpoint import _leaks, _quiet, _read
from mtljax.checkpoint._tree import describe, flatten, stored
from mtljax.version import __version__

FORMAT = 1
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
PATIENCE = 60.0  # seconds


class SaveError(OSError):
  """Something that a run has to write could not be written, as on a full disk."""


class Checkpoints:
  """Writes the checkpoints of one run; the last `keep` and the best by validation score stay.

  A checkpoint gets its name in one piece when it is complete, and loses it in one piece before it is removed. What a
  killed run left half written or half removed is cleaned away on opening.

  Args:
    directory: `<run>/checkpoints`.
    keep: how many of the newest stay besides the best.
  """

  def __init__(self, directory, *, keep: int = 2):
    import orbax.checkpoint as ocp

    self.directory, self.keep = pathlib.Path(directory).absolute(), keep
    self.directory.mkdir(parents=True, exist_ok=True)
    self._scores = _read.scores_of(self.directory)
    self._writing = None
    # not ocp.CheckpointManager: it does not open where a removal was cut short, and loses count after a failed save
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler('state', 'manifest'),
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
    )
    _quiet.keep_quiet()
    _leaks.avoid()
    self._clean()

  def save(self, step: int, state: PyTree, manifest: Mapping | None = None, score: float | None = None) -> None:
    """Copies the state and returns; the writing goes on in the background, so the state may be donated at once.

    A checkpoint of the same step is replaced.

    Raises:
      SaveError: this one cannot be written, or the one before could not.
    """
    import orbax.checkpoint as ocp

    self.wait()
    flat = flatten(state)
    head = {'format': FORMAT, 'mtljax': __version__, **(manifest or {}), 'score': score, 'tree': describe(state)}
    # orbax refuses arrays of size zero; the copy is for the CPU, where its background thread would read donated buffers
    arrays = {name: jnp.copy(leaf) for name, leaf in flat.items() if stored(leaf)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(head))
    self._writing, self._scores[step] = step, score

    def write():
      if jax.process_index() == 0:
        _read.remove(self.directory / str(step))
      hosts.barrier('checkpoint')
      self._checkpointer.save(self.directory / str(step), items)

    self._checked(write)

  def check(self) -> None:
    """Removes what need not stay; raises if a write in the background has failed already.

    Raises:
      SaveError: naming the step and the reason.
    """
    self._checked(self._checkpointer.check_for_errors)
    self._prune()

  def wait(self) -> None:
    """Waits for the last write; errors as those of `check`."""
    self._checked(self._checkpointer.wait_until_finished)
    self._writing = None
    self._prune()

  def close(self) -> None:
    """Waits for the last write; errors as those of `check`."""
    try:
      self.wait()
    finally:
      self._checkpointer.close()
      self._clean()

  def _checked(self, call):
    try:
      call()
    except Exception as error:
      reason = _system_reason(error)
      if reason is None:
        raise
      step, self._writing = self._writing, None
      with contextlib.suppress(Exception):  # what other parts of this write met
        self._checkpointer.wait_until_finished()
      _join_writers()
      self._clean()  # makes room
      raise SaveError(f'checkpoint {self.directory / str(step)} could not be written ({reason}).') from error

  def _prune(self):
    """What is on disk is complete: that being written has another name."""
    found = _read.steps(self.directory)
    self._scores = {step: score for step, score in self._scores.items() if step in found or step == self._writing}
    scores = {step: self._scores[step] for step in found if self._scores.get(step) is not None}
    for step in found[self.keep :]:
      if step != _read.best_of(scores) and jax.process_index() == 0:
        _read.remove(self.directory / str(step))

  def _clean(self):
    """Removes what was left half written or half removed."""
    if jax.process_index() == 0:
      for path in self.directory.iterdir():
        if re.fullmatch(rf'[0-9]+(\..*tmp.*|{re.escape(_read.DELETED)})', path.name):
          shutil.rmtree(path, ignore_errors=True)

  def _seal(self):
    """Called when all files of a checkpoint are written, before its folder gets its name: notes their digests."""
    if jax.process_index() != 0:
      return
    for folder in self.directory.iterdir():  # a pattern for every step would be kept, compiled, for the next
      if folder.name.startswith(f'{self._writing}.') and 'tmp' in folder.name:
        (folder / _read.SEAL).write_text(json.dumps(_read.digests(folder)))


def _join_writers():
  """Waits for the threads of a write that failed: orbax gives them up, and they go on in what is to be removed."""
  end = time.monotonic() + PATIENCE
  while time.monotonic() < end:
    writers = [thread for thread in threading.enumerate() if type(thread).__name__ == '_SignalingThread']
    if not writers:
      return
    for thread in writers:  # one may start another; its own `join` raises what it met
      threading.Thread.join(thread, max(end - time.monotonic(), 0))


def _system_reason(error) -> str | None:
  """What the operating system said, if it was the operating system; tensorstore says it in the text of a ValueError."""
  for part in _parts(error):
    if isinstance(part, OSError) and part.errno:
      return os.strerror(part.errno)
    code = re.search(r"os_error_code='(\d+)'|OS error (\d+)", str(part))
    if code:
      return os.strerror(int(code[1] or code[2]))
    for reason in map(os.strerror, FULL):
      if reason in str(part):
        return reason
  return None


def _parts(error):
  """The error, what is grouped in it, and what it came from."""
  while error is not None:
    yield error
    for part in getattr(error, 'exceptions', ()):
      yield from _parts(part)
    error = error.__cause__ or error.__context__
