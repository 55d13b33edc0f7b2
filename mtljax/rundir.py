"""The run directory: `config.json`, `metrics.jsonl`, `checkpoints/`, `curves.png`, `result.json`."""

import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtljax import lock
from mtljax.base import InputError, StepInfo
from mtljax.checkpoint import SaveError

# What a run may leave behind; `overwrite` removes these and nothing else.
FILES = ('config.json', 'metrics.jsonl', 'curves.png', 'result.json', 'compare.json', 'compare.csv', 'compare.png')
FOLDERS = ('checkpoints', 'tensorboard')


@contextlib.contextmanager
def use(path, *, overwrite: bool = False, resume: bool = False) -> Iterator[pathlib.Path]:
  """A run directory, for one run at a time while the block runs (`lock.hold`).

  Args:
    path: of the directory; it and its parents are made.
    overwrite: as for `create`.
    resume: whether files may be there, of the run that goes on.

  Raises:
    InputError: another run is using it, it holds something already, or it cannot be written.
  """
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    held = contextlib.ExitStack()
    held.enter_context(lock.hold(path))
  except OSError as error:
    raise InputError(f'run directory {path}: cannot be written ({_reason(error)}).') from error
  with held:
    if not resume:
      create(path, overwrite=overwrite)
    for name in FILES:  # of a run that was killed
      _partial(path / name).unlink(missing_ok=True)
    yield path


def create(path, *, overwrite: bool = False) -> pathlib.Path:
  """Makes a run directory.

  Args:
    path: of the directory; parents are made.
    overwrite: whether what an earlier run left there may be removed.

  Raises:
    InputError: it holds something already, or cannot be written.
  """
  path = pathlib.Path(path)
  try:
    if path.is_dir() and any(not _passing(file.name) for file in path.iterdir()):
      if not overwrite:
        raise InputError(
          f'run directory {path}: found files of an earlier run, expected an empty or a new directory; '
          'use --overwrite to replace it, --resume to go on with it, or --run_dir for another place.'
        )
      for name in FILES:
        (path / name).unlink(missing_ok=True)
      for name in FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'run directory {path}: cannot be written ({_reason(error)}).') from error
  return path


def _passing(name) -> bool:
  """The lock, and what a run that was killed before its first file was complete leaves."""
  return name == lock.NAME or name in {_partial(pathlib.Path(file)).name for file in FILES}


def _partial(path):
  """The name of a file that is not complete yet."""
  return path.with_name(f'{path.stem}.partial{path.suffix}')


@contextlib.contextmanager
def whole(path) -> Iterator[pathlib.Path]:
  """A path to write to; the file gets its name when it is complete: a killed run leaves the old one or the new one.

  Raises:
    SaveError: the block raised an OSError (a full disk); the old file stays and nothing else.
  """
  path = pathlib.Path(path)
  partial = _partial(path)
  try:
    yield partial
    with partial.open('rb+') as file:
      os.fsync(file.fileno())  # a name that outlives a power cut without its content is worse than none
    os.replace(partial, path)
  except OSError as error:
    raise SaveError(f'{path} could not be written ({_reason(error)}).') from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Strict JSON (NaN and infinities become null), in one piece.

  Raises:
    SaveError: as for `whole`.
  """
  with whole(path) as partial:
    partial.write_text(json.dumps(finite(value), indent=2) + '\n')


def read_json(path) -> dict[str, Any]:
  """Reads config.json, result.json or compare.json.

  Raises:
    InputError: there is none, or it is no JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'run directory {path.parent}: found no {path.name}, expected the directory of a run.')
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise InputError(f'{path}: found something else than JSON ({error}).') from error
  if not isinstance(value, dict):
    raise InputError(f'{path}: found a {type(value).__name__}, expected an object.')
  return value


def finite(value: Any) -> Any:
  """Numbers as JSON knows them: NaN and infinities become None."""
  if isinstance(value, Mapping):
    return {str(name): finite(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path) -> list[dict]:
  """The records of a metrics.jsonl up to a line that is none (the last one, if a killed run cut it off)."""
  return [record for record, _ in _records(path)]


def _records(path) -> Iterator[tuple[dict, int]]:
  """Records, each with the place in the file behind it."""
  place = 0
  for line in pathlib.Path(path).read_bytes().splitlines(keepends=True):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      return
    place += len(line)
    if not isinstance(record, dict) or not isinstance(record.get('step'), int) or not line.endswith(b'\n'):
      return
    yield record, place


class Appending:
  """A file that grows in whole pieces, each with the operating system when `write` returns.

  Args:
    path: of the file, made if it is not there.
    end: what is behind this place is cut off.
  """

  def __init__(self, path, end: int = 0):
    self.path, self._end = pathlib.Path(path), end
    self._waiting = []  # pieces for which there was no room
    self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.truncate(self._file, end)

  def write(self, *pieces: bytes) -> None:
    """Appends; without pieces, what could not be written before.

    Raises:
      SaveError: there is no room. The file ends with the last whole piece; the others are tried again the next time.
    """
    self._waiting += pieces
    data, done = b''.join(self._waiting), 0
    try:
      while done < len(data):
        done += os.pwrite(self._file, data[done:], self._end + done)
    except OSError as error:
      with contextlib.suppress(OSError):
        os.truncate(self._file, self._end)
      what = f'{len(self._waiting)} records of {self.path} could not be written'
      raise SaveError(f'{what} ({_reason(error)}).') from error
    self._end += len(data)
    self._waiting = []

  def close(self) -> None:
    """
    Raises:
      SaveError: something is left for which there is no room.
    """
    try:
      self.write()
    finally:
      os.close(self._file)


class MetricsFile(Appending):
  """metrics.jsonl, one record a line.

  Args:
    path: of the file.
    keep_to: records after this step are dropped, as if the run had been killed right there.

  Raises:
    InputError: the file cannot be written.
  """

  def __init__(self, path, *, keep_to: int = 0):
    try:
      found = _records(pathlib.Path(path)) if pathlib.Path(path).exists() else ()
      ends = [end for record, end in itertools.takewhile(lambda pair: pair[0]['step'] <= keep_to, found)]
      super().__init__(path, ends[-1] if ends else 0)
    except OSError as error:
      raise InputError(f'metrics file {path}: cannot be written ({_reason(error)}).') from error

  def write(self, *records: Mapping) -> None:
    """Appends records; errors as those of `Appending`."""
    super().write(*((json.dumps(finite(record)) + '\n').encode() for record in records))


def _reason(error: OSError) -> str:
  return error.strerror or str(error)


def record(step: int, info: StepInfo, names: Sequence[str]) -> dict[str, Any]:
  """A line of metrics.jsonl: what belongs to an absent task is null, its weight 0."""

  def values_of(values, where=None):
    if values is None:
      return None
    return {n: _number(v) if where is None or where[t] else None for t, (n, v) in enumerate(zip(names, values))}

  record = {'step': step, 'losses': values_of(info.losses, info.present), 'weights': values_of(info.weights)}
  record |= angles(info.gramian, names)
  return record | {
    'grad_norm': _number(info.grad_norm),
    'penalty': _number(info.penalty),
    'finite': bool(info.finite),
    'nonfinite': [name for name, wrong in zip(names, info.nonfinite) if wrong],
  }


def angles(gramian: np.ndarray | None, names: Sequence[str]) -> dict[str, Any]:
  """Gradient norms and pairwise cosines; null where a gradient is zero (an absent task)."""
  if gramian is None:
    return {'norms': None, 'cosines': None}
  norms = np.sqrt(np.diagonal(gramian))
  unit = gramian / np.where(norms > 0, norms, np.nan)[:, None] / np.where(norms > 0, norms, np.nan)[None]
  pairs = itertools.combinations(range(len(names)), 2)
  return {
    'norms': {name: _number(norm) if norm > 0 else None for name, norm in zip(names, norms)},
    'cosines': {f'{names[s]}/{names[t]}': None if 0 in (norms[s], norms[t]) else _number(unit[s, t]) for s, t in pairs},
  }


def _number(value) -> float:
  return float(str(value))  # the shortest digits of its own precision
