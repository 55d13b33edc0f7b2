"""Checkpoints of a run: everything that a bit-exact resume needs, written by orbax in the background.

`checkpoints/<step>/` holds the leaves of the state under their path labels and a manifest (library version, tasks,
balancer, config, and the path, shape and dtype of every leaf). The manifest is compared before any array is read, so
a checkpoint of another model is one clear sentence; orbax alone would cast a dtype silently.
"""

import hashlib
import json
import pathlib
import shutil
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.arrays import path_label
from mtljax.base import InputError, PyTree
from mtljax.version import __version__

FORMAT = 1
SEAL = 'digests.json'


def flatten(tree: PyTree) -> dict[str, jax.Array]:
  """{path label: leaf}."""
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  flat = {path_label(path): leaf for path, leaf in pairs}
  if len(flat) < len(pairs):
    raise InputError('checkpoint: two leaves of the state have the same path; names must not contain "/".')
  return flat


def describe(tree: PyTree) -> dict[str, list]:
  """{path label: [shape, dtype]}: what the manifest holds of a tree.

  >>> describe({'shared': {'w': jnp.ones((2, 3))}})
  {'shared/w': [[2, 3], 'float32']}
  """
  return {name: [list(jnp.shape(x)), str(getattr(x, 'dtype', jnp.result_type(x)))] for name, x in flatten(tree).items()}


def params_sha256(params: PyTree) -> str:
  """Digest of a tree: path, shape, dtype and bytes of every leaf, sorted by path. Same digest = same bits."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten(params).items()):
    value = np.asarray(_raw(leaf))
    digest.update(f'{name} {value.shape} {value.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()


def steps(directory) -> list[int]:
  """Steps with a checkpoint in `directory`, newest first, whether damaged or not."""
  directory = pathlib.Path(directory)
  names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
  return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def read_manifest(path) -> dict:
  """The manifest of one checkpoint, `path` being `.../checkpoints/<step>`."""
  return json.loads((pathlib.Path(path) / 'manifest' / 'metadata').read_text())


def best_step(directory) -> int | None:
  """Step with the highest validation score (the latest of equals), or None."""
  scores = {}
  for step in steps(directory):
    try:
      score = read_manifest(pathlib.Path(directory) / str(step)).get('score')
    except (OSError, ValueError):
      continue  # damaged: restoring is the place to say so
    if score is not None:
      scores[step] = score
  return max(scores, key=lambda step: (scores[step], step)) if scores else None


class Checkpoints:
  """Writes the checkpoints of one run; the last `keep` and the best by validation score stay.

  Args:
    directory: `<run>/checkpoints`.
    keep: how many of the newest stay besides the best.
  """

  def __init__(self, directory, *, keep: int = 2):
    import orbax.checkpoint as ocp

    self.directory = pathlib.Path(directory).absolute()
    self._policy = _Newest(keep, best_step(self.directory))
    self._best_score = None
    if self._policy.best is not None:
      self._best_score = read_manifest(self.directory / str(self._policy.best))['score']
    self._writing = None
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._policy,
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  def save(self, step: int, state: PyTree, manifest: Mapping | None = None, score: float | None = None) -> None:
    """Copies the state and returns; the writing goes on in the background, so the state may be donated at once."""
    import orbax.checkpoint as ocp

    flat = flatten(state)
    head = {'format': FORMAT, 'mtljax': __version__, **(manifest or {}), 'score': score, 'tree': describe(state)}
    if score is not None and (self._best_score is None or score >= self._best_score):
      self._policy.best, self._best_score = step, score
    # orbax refuses arrays of size zero; the copy is for the CPU, where its background thread would read donated buffers
    arrays = {name: jnp.copy(leaf) for name, leaf in flat.items() if _stored(leaf)}
    self._manager.wait_until_finished()
    self._writing = step
    items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(head))
    self._manager.save(step, args=items, force=True)

  def close(self) -> None:
    """Waits for the last write."""
    self._manager.wait_until_finished()
    self._manager.close()

  def _seal(self):
    """Called when all files of a checkpoint are written, before its folder gets its name: notes their digests."""
    for folder in self.directory.glob(f'{self._writing}.*tmp*'):
      (folder / SEAL).write_text(json.dumps(_digests(folder)))


class _Newest:
  """Preservation policy of orbax: the newest `keep` and the best (orbax's own `BestN` forgets scores on reopening)."""

  def __init__(self, keep, best):
    self.keep, self.best = keep, best

  def should_preserve(self, checkpoints, *, context):
    newest = {info.step for info in checkpoints[-self.keep :]}
    return [info.step in newest or info.step == self.best for info in checkpoints]


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
  try:
    manifest = read_manifest(path)
    expected, tree = json.loads((path / SEAL).read_text()), manifest['tree']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DamagedError(f'checkpoint {path} is damaged: no readable manifest ({type(error).__name__}).') from error
  found = _digests(path)
  wrong = sorted(name for name in expected if found.get(name) != expected[name])
  if wrong:
    what = 'is missing' if wrong[0] not in found else 'does not hold what was written'
    raise DamagedError(f'checkpoint {path} is damaged: {wrong[0]} {what}.')
  _check_same(path, tree, describe(target))
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
        shutil.rmtree(pathlib.Path(directory) / str(newer))


class DamagedError(InputError):
  """A checkpoint whose files are missing or do not hold what was written."""


def _digests(folder):
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
      there = f'{found[name][1]}{found[name][0]}'
      raise InputError(f'checkpoint {path} is of another model: {name} is {there}, expected {dtype}{shape}.')


def _read(path, target):
  import orbax.checkpoint as ocp

  flat = flatten(target)
  abstract = {name: _abstract(leaf) for name, leaf in flat.items() if _stored(leaf)}
  try:
    with ocp.StandardCheckpointer() as reader:
      arrays = reader.restore(path / 'state', abstract)
  except Exception as error:  # whatever orbax, tensorstore or json make of broken files
    raise DamagedError(f'checkpoint {path} is damaged: its arrays cannot be read ({type(error).__name__}).') from error
  leaves = [_placed(arrays[name], leaf) if name in arrays else _empty(leaf) for name, leaf in flat.items()]
  return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _stored(leaf) -> bool:
  return 0 not in jnp.shape(leaf)


def _committed(leaf) -> bool:
  return isinstance(leaf, jax.Array) and leaf.committed


def _abstract(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if _committed(leaf) else None)


def _placed(value, target):
  """Orbax pins what it reads to a device; where the target was free to move, the value is so too."""
  if _committed(target):
    return value
  free = jnp.asarray(np.asarray(_raw(value)))
  is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
  return jax.random.wrap_key_data(free, impl=jax.random.key_impl(value)) if is_key else free


def _empty(leaf):
  return leaf if isinstance(leaf, jax.Array) else jnp.zeros(leaf.shape, leaf.dtype)


def _raw(leaf):
  return jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf
