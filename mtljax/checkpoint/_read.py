"""Reading checkpoints: what is damaged is said and never taken."""

import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.checkpoint import _quiet
from mtljax.checkpoint._tree import describe, flatten, raw, stored

SEAL = 'digests.json'
DELETED = '.deleted'  # behind the name of a checkpoint that is being removed


class DamagedError(InputError):
  """A checkpoint whose files are missing or do not hold what was written."""


def steps(directory) -> list[int]:
  """Steps with a checkpoint in `directory`, newest first, whether damaged or not."""
  directory = pathlib.Path(directory)
  names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
  return sorted((int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name)), reverse=True)


def read_manifest(path) -> dict:
  """The manifest of one checkpoint, `path` being `.../checkpoints/<step>`.

  Raises:
    DamagedError: there is none that can be read.
  """
  return _read_json(pathlib.Path(path), 'manifest/metadata')


def _read_json(path, name):
  try:
    value = json.loads((path / name).read_text())
    if not isinstance(value, dict):
      raise TypeError
  except (OSError, ValueError, TypeError, RecursionError) as error:
    what = f'no readable {name} ({type(error).__name__})'
    raise DamagedError(f'checkpoint {path} is damaged: {what}.') from error
  return value


def best_step(directory) -> int | None:
  """Step with the highest validation score (the latest of equals), or None."""
  return best_of(scores_of(directory))


def scores_of(directory) -> dict[int, float]:
  """{step: score}, where there is one and no file is missing."""
  scores = {}
  for step in steps(directory):
    path = pathlib.Path(directory) / str(step)
    try:
      score, names = read_manifest(path).get('score'), _read_json(path, SEAL)
    except DamagedError:
      continue  # restoring is the place to say so
    if isinstance(score, int | float) and math.isfinite(score) and all((path / name).is_file() for name in names):
      scores[step] = score
  return scores


def best_of(scores):
  return max(scores, key=lambda step: (scores[step], step)) if scores else None


def remove(path):
  """Its name first: a half removed folder is no checkpoint."""
  gone = path.with_name(path.name + DELETED)
  if path.exists():
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
  shutil.rmtree(gone, ignore_errors=True)


def restore(path, target: PyTree) -> tuple[PyTree, dict]:
  """Reads one checkpoint.

  Args:
    path: `.../checkpoints/<step>`.
    target: a tree of arrays or ShapeDtypeStructs, the state that is expected; shardings are its own.

  Returns:
    the state in the structure of `target`, and the manifest.

  Raises:
    InputError: the checkpoint is of another model, or damaged.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise InputError(f'checkpoint: {path} not found, expected a folder .../checkpoints/<step>.')
  manifest, expected = read_manifest(path), _read_json(path, SEAL)
  try:
    found = digests(path)
  except OSError as error:
    raise DamagedError(f'checkpoint {path} is damaged: {error.filename or path} cannot be read ({error}).') from error
  wrong = sorted(name for name in {*expected, 'manifest/metadata'} if found.get(name) != expected.get(name))
  if wrong:
    what = 'is missing' if wrong[0] not in found else 'does not hold what was written'
    raise DamagedError(f'checkpoint {path} is damaged: {wrong[0]} {what}.')
  if not isinstance(manifest.get('tree'), dict):
    raise DamagedError(f'checkpoint {path} is damaged: its manifest describes no tree.')
  _check_same(path, manifest['tree'], describe(target))
  return _read(path, target), manifest


def restore_latest(directory, target: PyTree) -> tuple[PyTree, dict, int]:
  """Reads the newest checkpoint that is whole; warns of a damaged one and takes the one before.

  Returns:
    state, manifest, step.

  Raises:
    InputError: there is none, all are damaged, or the newest readable one is of another model.
  """
  directory = pathlib.Path(directory)
  found = steps(directory)
  if not found:
    raise InputError(f'checkpoint: no checkpoint in {directory}, expected folders named by step, as 100/.')
  for step in found:
    try:
      return *restore(directory / str(step), target), step
    except DamagedError as error:
      warnings.warn(f'{error} Taking the one before.', stacklevel=2)
  raise InputError(f'checkpoint: all checkpoints in {directory} are damaged: {sorted(found)}.')


def discard_after(directory, step: int) -> None:
  """Removes checkpoints newer than `step` (damaged ones, when a run goes on from an older one)."""
  if jax.process_index() == 0:
    for newer in steps(directory):
      if newer > step:
        remove(pathlib.Path(directory) / str(newer))


def digests(folder):
  """{file: sha256} of what a restore reads: tensorstore does not notice every flipped bit."""
  files = [path for part in ('state', 'manifest') for path in (folder / part).rglob('*') if path.is_file()]
  named = {path.relative_to(folder).as_posix(): path for path in files if path.name != 'commit_success.txt'}
  digests = {}
  for name, path in sorted(named.items()):
    with path.open('rb') as file:
      digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def _check_same(path, found, expected):
  missing, extra = [n for n in expected if n not in found], [n for n in found if n not in expected]
  if missing:
    raise InputError(f'checkpoint {path} is of another model: {missing[0]} is expected and not in it.')
  if extra:
    raise InputError(f'checkpoint {path} is of another model: it has {extra[0]}, which is not expected.')
  for name, (shape, dtype) in expected.items():
    if found[name] != [shape, dtype]:
      there = f'{found[name][1]}{found[name][0]}' if isinstance(found[name], list) and found[name][1:] else found[name]
      raise InputError(f'checkpoint {path} is of another model: {name} is {there}, expected {dtype}{shape}.')


def _read(path, target):
  import orbax.checkpoint as ocp

  _quiet.keep_quiet()
  flat = flatten(target)
  abstract = {name: _abstract(leaf) for name, leaf in flat.items() if stored(leaf)}
  try:
    with ocp.StandardCheckpointer() as reader:
      arrays = reader.restore(path / 'state', abstract)
  except Exception as error:  # no damage, the digests are right: nothing may be taken for it and removed
    _quiet.clear(error)
    text = f'{type(error).__name__}: {error}'.splitlines()[0]
    raise InputError(f'checkpoint {path} holds what was written and yet cannot be read ({text[:300]}).') from error
  leaves = [_placed(arrays[name], leaf) if name in arrays else _empty(leaf) for name, leaf in flat.items()]
  return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _lies(leaf):
  """Where a leaf has to be, or None where it is free to move."""
  return getattr(leaf, 'sharding', None) if getattr(leaf, 'committed', True) else None


def _abstract(leaf):
  # given in any case: else orbax asks for the devices of the run that wrote
  sharding = _lies(leaf) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _placed(value, target):
  """Orbax pins what it reads to a device; where the target was free to move, the value is so too."""
  if _lies(target) is not None:
    return value
  free = jnp.asarray(np.asarray(raw(value)))
  is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
  return jax.random.wrap_key_data(free, impl=jax.random.key_impl(value)) if is_key else free


def _empty(leaf):
  return leaf if isinstance(leaf, jax.Array) else jnp.zeros(leaf.shape, leaf.dtype, device=_lies(leaf))
