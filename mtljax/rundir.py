"""The run directory: `config.json`, `metrics.jsonl`, `checkpoints/`, `curves.png`, `result.json`."""

import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtljax.base import InputError, StepInfo

# What a run may leave behind; `overwrite` removes these and nothing else.
FILES = ('config.json', 'metrics.jsonl', 'curves.png', 'result.json', 'compare.json', 'compare.csv', 'compare.png')
FOLDERS = ('checkpoints', 'tensorboard')


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
    if path.is_dir() and any(path.iterdir()):
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


def write_json(path: pathlib.Path, value: Any) -> None:
  """Strict JSON (NaN and infinities become null), in one piece: a killed run leaves the old file or the new one."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(json.dumps(finite(value), indent=2) + '\n')
  os.replace(partial, path)


def read_json(path) -> Any:
  """Reads config.json, result.json or compare.json.

  Raises:
    InputError: there is none, or it is no JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f'run directory {path.parent}: found no {path.name}, expected the directory of a run.')
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise InputError(f'{path}: found something else than JSON ({error}).') from error


def finite(value: Any) -> Any:
  """Numbers as JSON knows them: NaN and infinities become None."""
  if isinstance(value, Mapping):
    return {str(name): finite(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path) -> list[dict]:
  """The records of a metrics.jsonl; a last line that was cut off is left out."""
  records = []
  for line in pathlib.Path(path).read_text().splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:
      break
  return records


class MetricsFile:
  """metrics.jsonl, one record a line, complete after every `write`.

  Args:
    path: of the file.
    keep_to: records after this step are dropped, as if the run had been killed right there.

  Raises:
    InputError: the file cannot be written.
  """

  def __init__(self, path, *, keep_to: int = 0):
    self.path = pathlib.Path(path)
    try:
      kept = [r for r in read_metrics(self.path) if r['step'] <= keep_to] if self.path.exists() else []
      self._rewrite(kept)
      self._file = self.path.open('a')
    except OSError as error:
      raise InputError(f'metrics file {self.path}: cannot be written ({_reason(error)}).') from error

  def write(self, record: Mapping) -> None:
    """Appends a record and hands it to the operating system."""
    self._file.write(json.dumps(finite(record)) + '\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _rewrite(self, records: Iterable[Mapping]) -> None:
    if self.path.exists() and not self.path.is_file():
      raise IsADirectoryError(21, 'Is a directory')
    partial = self.path.with_name(self.path.name + '.partial')
    partial.write_text(''.join(json.dumps(record) + '\n' for record in records))
    os.replace(partial, self.path)


class TensorBoard:
  """The same records as TensorBoard events, if tensorboardX is installed; else nothing.

  Args:
    path: of the folder.
    start: what is there for later steps is overwritten in TensorBoard's view.
  """

  def __init__(self, path, start: int = 0):
    try:
      from tensorboardX import SummaryWriter
    except ImportError:
      self._writer = None
    else:
      self._writer = SummaryWriter(str(path), purge_step=start + 1 if start else None)

  def write(self, record: Mapping) -> None:
    """One scalar for every number of the record, under its path."""
    if self._writer is not None:
      for name, value in _numbers(record):
        if name != 'step':
          self._writer.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


def _numbers(value, name=''):
  if isinstance(value, Mapping):
    for key, part in value.items():
      yield from _numbers(part, f'{name}/{key}' if name else str(key))
  elif isinstance(value, int | float):
    yield name, float(value)


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
