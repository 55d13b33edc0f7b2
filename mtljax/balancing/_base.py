"""What every balancing method shares: `make`, which puts the contract around an update rule, and small helpers.

A rule sees only sane input: no gradient flows in, rows of absent tasks are 0 and their losses 1, whatever they held.
Every leaf of a state leads with the task axis, so that the entries of absent tasks can be held here, once for all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax import linalg
from mtljax.arrays import expand_to, real_dtype
from mtljax.base import Array, Balancer, InputError, PyTree

SHAPES = {'losses': 'f[T]', 'gramian': 'f[T, T]', 'jacobian': 'leaves f[T, *param]'}


def make(
  level: str, update: Callable, init: Callable | None = None, observe: Callable | None = None, parts: int = 1
) -> Balancer:
  """A `Balancer` from an update rule.

  Args:
    level: 'losses', 'gramian', 'jacobian' or 'oracle'.
    update: `(statistic, state, *, losses, present, key, step, **extras) -> (result, state)`. The result's entries of
      absent tasks and the state's entries of absent tasks may be anything.
    init: `example of the statistic -> state`, every leaf leading with the task axis; None for no state. At level
      oracle the example is that of the Jacobian.
    observe: `(losses, state) -> state`.
    parts: how many independent parts of the batch an oracle is asked for.
  """
  if level == 'oracle':
    return _make_oracle(update, init, parts)

  def checked(statistic, state, /, *, losses, present, key, step, **extras):
    present = jnp.asarray(present, bool)
    tasks = check_statistic(level, statistic)
    check_length('present', present, tasks)
    check_length('losses', losses, tasks)
    statistic, losses = jax.lax.stop_gradient((statistic, losses))
    losses = jnp.where(present, as_float(losses), 1)
    if level == 'losses':
      masked = jnp.where(present, as_float(statistic), 1)
    else:
      masked = linalg.mask_rows(present, jax.tree.map(as_float, statistic))
      masked = jnp.where(present, masked, 0) if level == 'gramian' else masked
    step = jnp.asarray(step, jnp.int32)
    result, new = update(masked, state, losses=losses, present=present, key=key, step=step, **extras)
    new = hold(present, new, state)
    if level == 'jacobian':
      some = jnp.any(present)
      return jax.tree.map(lambda d, leaf: jnp.where(some, d, 0).astype(jnp.result_type(leaf)), result, statistic), new
    return jnp.where(present, result, 0).astype(masked.dtype), new

  def checked_init(example):
    check_statistic(level, example)
    return () if init is None else init(example)

  return Balancer(checked_init, checked, level, observe=observe)


def _make_oracle(update, init, parts) -> Balancer:
  """The same contract where the statistic is a function; see `gradients.task_gradients` for what it returns."""

  def checked(oracle, state, /, *, losses, present, key, step, **extras):
    present = jnp.asarray(present, bool)
    if not callable(oracle):
      raise InputError(f'statistic: found {type(oracle).__name__}, expected a function at level oracle.')
    check_length('losses', losses, len(present))
    losses = jnp.where(present, as_float(jax.lax.stop_gradient(losses)), 1)

    def sane(shared_delta=None, part=0, *, weights=None):
      more = {} if weights is None else {'weights': jnp.where(present, weights, 0)}
      out = jax.lax.stop_gradient(oracle(shared_delta, part, **more))
      here = present & out.present
      shared = jax.tree.map(as_float, out.grads['shared'])
      shared = linalg.mask_rows(here, shared) if weights is None else shared
      return out._replace(
        grads={**out.grads, 'shared': shared}, losses=jnp.where(here, as_float(out.losses), 1), present=here
      )

    step = jnp.asarray(step, jnp.int32)
    direction, new = update(sane, state, losses=losses, present=present, key=key, step=step, **extras)
    some = jnp.any(present)
    return jax.tree.map(lambda d: jnp.where(some, d, 0), direction), hold(present, new, state)

  def checked_init(example):
    check_statistic('jacobian', example)
    return () if init is None else init(example)

  return Balancer(checked_init, checked, 'oracle', parts=parts)


def hold(present: Array, new: PyTree, old: PyTree) -> PyTree:
  """`new` for the tasks that are present, `old` for the others; dtypes of `old`."""

  def held(a, b):
    b = jnp.asarray(b)
    return jnp.where(expand_to(present, b.ndim), a, b).astype(b.dtype)

  return jax.tree.map(held, new, old)


def as_float(x) -> Array:
  """At least float32."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_statistic(level: str, statistic: PyTree) -> int:
  """The number of tasks T; raises if the statistic is not one of its level."""
  leaves = jax.tree.leaves(statistic)
  shapes = [np.shape(leaf) for leaf in leaves]
  ok = bool(leaves) and all(shape and shape[0] == shapes[0][:1][0] for shape in shapes)
  if level != 'jacobian':
    ok = ok and len(leaves) == 1 and shapes[0] == shapes[0][:1] * (1 if level == 'losses' else 2)
  if not ok or shapes[0][0] == 0:
    found = shapes[0] if len(shapes) == 1 else shapes
    raise InputError(f'statistic: found shape {found}, expected {SHAPES[level]} at level {level!r}.')
  return shapes[0][0]


def check_length(name: str, value: Any, tasks: int) -> None:
  if np.shape(value) != (tasks,):
    raise InputError(f'{name}: found shape {np.shape(value)}, expected ({tasks},), one entry per task.')


def check_number(
  method: str, name: str, value: Any, expected: str, ok: Callable[[Any], bool], scalar: bool = True
) -> None:
  """Raises unless a concrete `value` is one number, or with scalar=False any array, finite and `ok` throughout."""
  if isinstance(value, jax.core.Tracer):
    return
  try:
    array = np.asarray(value, dtype=float)
    good = bool(np.all(np.isfinite(array)) and np.all(ok(array))) and not (scalar and array.ndim)
  except (TypeError, ValueError):
    good = False
  if not good:
    raise InputError(f'{method}: {name} is {value!r}, expected {expected}.')


def check_count(method: str, name: str, value: Any, least: int = 0) -> int:
  """`value` as an int; raises unless it is a whole number >= least. A traced value is returned as it is."""
  check_number(method, name, value, f'a whole number >= {least}', lambda x: (x >= least) & (x == np.round(x)))
  return value if isinstance(value, jax.core.Tracer) else int(value)


def check_optimizer(method: str, optimizer: Any) -> None:
  if not (optimizer is None or isinstance(optimizer, optax.GradientTransformation)):
    raise InputError(f'{method}: optimizer is {optimizer!r}, expected None or an optax transformation.')


def check_choice(method: str, name: str, value: Any, choices: tuple) -> None:
  if value not in choices:
    raise InputError(f'{method}: {name} is {value!r}, expected one of {choices}.')


def check_balancer(method: str, value: Any, levels: tuple[str, ...], why: str) -> None:
  if not isinstance(value, Balancer):
    raise InputError(f'{method}: found {value!r}, expected a Balancer, such as mgda().')
  if value.level not in levels:
    raise InputError(f'{method}: found a balancer of level {value.level!r}, expected one of {levels}: {why}.')


def check_preference(method: str, preference: Any) -> None:
  if preference is not None:
    expected = 'None or numbers >= 0, one per task, not all 0'
    check_number(method, 'preference', preference, expected, lambda x: x >= 0, scalar=False)
    if not isinstance(preference, jax.core.Tracer) and not (
      np.ndim(preference) == 1 and np.any(np.asarray(preference))
    ):
      raise InputError(f'{method}: preference is {preference!r}, expected None or f[T] >= 0, not all 0.')


def preference_weights(preference: Any, present: Array, dtype) -> Array:
  """The preference f[T] as given, 1 / (number of present tasks) for None; 0 where absent."""
  if preference is None:
    preference = jnp.broadcast_to(1 / jnp.maximum(jnp.sum(present), 1), present.shape)
  check_length('preference', preference, len(present))
  return jnp.where(present, jnp.asarray(preference, dtype), 0)


def softmax(logits: Array, present: Array) -> Array:
  """Softmax over the present tasks, 0 for the others."""
  top = jnp.max(jnp.where(present, logits, -jnp.inf))
  powers = jnp.where(present, jnp.exp(jnp.where(present, logits - jnp.where(jnp.isfinite(top), top, 0), 0)), 0)
  return divide(powers, jnp.sum(powers))


def mean(values: Array, present: Array) -> Array:
  """Mean over the present tasks."""
  return jnp.sum(jnp.where(present, values, 0)) / jnp.maximum(jnp.sum(present), 1)


def normalise(weights: Array, present: Array) -> Array:
  """Non-negative weights of the present tasks scaled to sum 1."""
  weights = jnp.where(present, weights, 0)
  return divide(weights, jnp.sum(weights))


def divide(a: Array, b: Array) -> Array:
  """a / b, 0 where b is 0."""
  return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


def positive(losses: Array) -> Array:
  """Losses kept away from 0, where logarithms and quotients end."""
  return jnp.maximum(losses, jnp.finfo(losses.dtype).tiny)


def over_trace(G: Array) -> Array:
  """G / tr G, so that what is added to it is relative."""
  return divide(G, jnp.trace(G))


def add_rows(values: Array) -> Array:
  """sum_t of f[T, ...] as a product with ones: XLA's reduction over a leading axis takes far longer on a CPU."""
  return jnp.tensordot(jnp.ones(len(values), values.dtype), values, axes=1, precision=linalg.HIGHEST)


def task_count(example: PyTree) -> int:
  return np.shape(jax.tree.leaves(example)[0])[0]


def zeros(example: PyTree, value: float = 0.0) -> Array:
  """f[T] for a state; `example` is any statistic."""
  leaf = jax.tree.leaves(example)[0]
  return jnp.full(task_count(example), value, jnp.promote_types(leaf.dtype, real_dtype()))


def zero_rows(example: PyTree) -> PyTree:
  """Leaves f[T, *param] of zeros for a state; `example` is a Jacobian."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), example)


def init_per_task(optimizer: optax.GradientTransformation, parameters: Array) -> PyTree:
  """An optimiser state of its own for every task (counters included), so that absent tasks can be held."""
  return jax.vmap(optimizer.init)(parameters)


def update_per_task(optimizer, gradients: Array, state: PyTree, parameters: Array) -> tuple[Array, PyTree]:
  """One step of the optimiser on f[T]: (new parameters, new state)."""
  updates, state = jax.vmap(optimizer.update)(gradients, state, parameters)
  return optax.apply_updates(parameters, updates), state
