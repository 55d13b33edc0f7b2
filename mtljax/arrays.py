"""Small things that every floor needs: the task axis, keys by name, masked sums, paths, sums over devices."""

import contextlib
import contextvars
import math
import numbers
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError, PyTree, Task


def task_names(tasks: Sequence[Task]) -> tuple[str, ...]:
  """The order of the task axis, made here and nowhere else (JAX sorts dict keys, so a dict has no order to rely on)."""
  if isinstance(tasks, Task) or not all(isinstance(task, Task) for task in tasks):
    raise InputError(f'tasks: found {tasks!r}, expected a tuple of mtljax.Task.')
  names = tuple(task.name for task in tasks)
  if not names:
    raise InputError('tasks: found an empty tuple, expected at least one mtljax.Task.')
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise InputError(f'tasks: found duplicate names {twice}, expected every name once.')
  return names


def check_names(argument: str, found, expected, *, all_of: bool = True) -> None:
  """Raises unless the keys `found` are the names `expected` (or, with `all_of=False`, are among them)."""
  unknown = sorted(set(found) - set(expected))
  missing = sorted(set(expected) - set(found)) if all_of else []
  if unknown or missing:
    parts = [f'unknown {unknown}'] * bool(unknown) + [f'missing {missing}'] * bool(missing)
    raise InputError(f'{argument}: found {sorted(found)}, expected {sorted(expected)}: {", ".join(parts)}.')


def check_weight(argument: str, value) -> None:
  """Raises unless `value` is what a penalty is weighed with: a number >= 0 or a schedule; a traced one passes."""
  if isinstance(value, jax.core.Tracer):
    return
  array = isinstance(value, jax.Array) and value.ndim == 0
  number = isinstance(value, numbers.Real) and not isinstance(value, bool) or array
  if not callable(value) and not (number and 0 <= value < math.inf):
    raise InputError(f'{argument}: found {value!r}, expected a number >= 0 or a schedule.')


def check_seed(argument: str, seed) -> None:
  """Raises unless it is a whole number of at least 0."""
  if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
    raise InputError(f'{argument}: found {seed!r}, expected a whole number >= 0.')


def stack_tasks(by_task: Mapping[str, Array], names: Sequence[str]) -> Array:
  """{task: array} -> array with a leading task axis."""
  return jnp.stack([by_task[name] for name in names])


def name_key(key: Array | None, name: str) -> Array | None:
  """A key of its own for a name: folds in the crc32, so that it does not depend on which other names there are."""
  return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def real_dtype():
  """float32, or float64 under x64: the dtype of losses, Gramians and solvers whatever the compute dtype."""
  return jnp.result_type(float)


def select(condition: Array | bool, new: PyTree, old: PyTree) -> PyTree:
  """`new` where the scalar `condition` holds, else `old`, leaf by leaf (typed keys too)."""
  if condition is True:
    return new
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def is_float(leaf) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def all_finite(tree: PyTree) -> Array:
  """bool[], every floating entry is finite (on this device)."""
  ok = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_float(leaf)]
  return jnp.stack(ok).all() if ok else jnp.asarray(True)


def split_floats(tree: PyTree) -> tuple[list[Array], list, Callable[[list, list], PyTree]]:
  """Floating leaves, the other leaves, and the function that puts them together again."""
  leaves, treedef = jax.tree.flatten(tree)
  kinds = [is_float(leaf) for leaf in leaves]

  def merge(floats, others):
    floats, others = iter(floats), iter(others)
    return treedef.unflatten([next(floats) if kind else next(others) for kind in kinds])

  return [x for x, k in zip(leaves, kinds) if k], [x for x, k in zip(leaves, kinds) if not k], merge


def path_label(path) -> str:
  """A jax key path as 'a/b/0'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def labelled(tree: PyTree) -> dict[str, Any]:
  """{path: leaf}, paths as 'Dense_0/kernel'."""
  return {path_label(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def pattern(argument: str, where: str) -> re.Pattern:
  """The regular expression `where`; raises an InputError on anything else."""
  try:
    return re.compile(where)
  except (re.error, TypeError) as error:
    raise InputError(f'{argument}: found {where!r}, expected a regular expression of paths: {error}.') from error


def expand_to(mask: Array, ndim: int) -> Array:
  """Adds trailing axes of size one."""
  return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def make_safe(labels: PyTree, mask: Array) -> PyTree:
  """Labels with the masked ones replaced by 0 (integers) or 1 (floats), on which every loss is finite.

  Masking values after the loss leaves NaN gradients, so this comes before it. A mask f[B, ...] that is no prefix of a
  label's shape (shifted tokens) is reduced to its rows: the items of a row that has some are left to the loss.
  """

  def safe(label):
    m = mask if label.shape[: mask.ndim] == mask.shape else mask.reshape(mask.shape[0], -1).any(axis=1)
    return jnp.where(
      expand_to(m, label.ndim), label, jnp.ones_like(label) if is_float(label) else jnp.zeros_like(label)
    )

  return jax.tree.map(safe, jax.tree.map(jnp.asarray, labels))


def masked_mean(values: Array, mask: Array | None) -> tuple[Array, Array]:
  """This device's part of sum(mask * values) / max(sum(mask), 1), and the global count.

  Args:
    values: f[B, ...].
    mask: bool[B] or of the shape of `values`; None counts everything.

  Returns:
    f[], to be summed over devices, and f[] the count over all devices.
  """
  values = values.astype(real_dtype())
  if mask is None:
    count = psum(jnp.asarray(values.size, values.dtype))
    return values.sum() / count, count
  mask = jnp.broadcast_to(expand_to(mask, values.ndim), values.shape)
  count = psum(mask.sum(dtype=values.dtype))
  return jnp.where(mask, values, 0).sum() / jnp.maximum(count, 1), count


# The mesh axis of the step that is being traced: set by the step, read by whatever has to see the whole batch
# (BatchNorm, losses with in-batch negatives, counts of labels). Without an axis every reduction is the identity.
_AXIS: contextvars.ContextVar[str | None] = contextvars.ContextVar('mtljax_axis', default=None)


def axis() -> str | None:
  """Name of the device axis of the step being traced, or None."""
  return _AXIS.get()


@contextlib.contextmanager
def use_axis(name: str | None):
  """Sets `axis()` while a step is traced."""
  token = _AXIS.set(name)
  try:
    yield
  finally:
    _AXIS.reset(token)


_PLACED: contextvars.ContextVar[bool] = contextvars.ContextVar('mtljax_placed', default=False)


def placed_by_compiler() -> bool:
  """Whether arrays of the step being traced are split over devices by the compiler: reshaping one may gather it."""
  return _PLACED.get()


@contextlib.contextmanager
def place_by_compiler():
  """Sets `placed_by_compiler()` while a step is traced."""
  token = _PLACED.set(True)
  try:
    yield
  finally:
    _PLACED.reset(token)


SPLIT_FROM = 2**14  # elements; a collective of less takes longer than what it saves
_SPLIT_FROM: contextvars.ContextVar[int] = contextvars.ContextVar('mtljax_split_from', default=SPLIT_FROM)


def split_from() -> int:
  """How many elements an array has at least that the step being traced splits over the devices of its axis."""
  return _SPLIT_FROM.get()


@contextlib.contextmanager
def use_split_from(elements: int):
  """Sets `split_from()` while a step is traced."""
  token = _SPLIT_FROM.set(elements)
  try:
    yield
  finally:
    _SPLIT_FROM.reset(token)


def psum(tree: PyTree) -> PyTree:
  """Sum over the devices of the axis."""
  return tree if axis() is None else jax.lax.psum(tree, axis())


def pmean(tree: PyTree) -> PyTree:
  """Mean over the devices of the axis, floating leaves only; counters and keys agree already."""
  if axis() is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.pmean(x, axis()) if is_float(x) else x, tree)


def fold_in_device(key: Array | None) -> Array | None:
  """A key of its own for every device (dropout); the balancer's key is not folded, all devices draw the same."""
  return key if key is None or axis() is None else jax.random.fold_in(key, jax.lax.axis_index(axis()))
