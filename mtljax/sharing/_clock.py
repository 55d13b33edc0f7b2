"""Schedules inside an architecture: how many training passes each task has had, and what is read off that number."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from mtljax.base import Array, InputError

# A clock per task, not one of the model: in a multi-input batch the trunk is called once per task, and a task without
# labels has no call that counts. Every task then sees the steps in which it was there, whoever else was.
Clock = dict[str, Array]
COLDEST = 1e-3  # temperature


def start(tasks: Sequence[str]) -> Clock:
  """{task: int32[]}, all zero; it lies in the model state."""
  return {task: jnp.zeros((), jnp.int32) for task in sorted(tasks)}


def step(clock: Mapping[str, Array], tasks: Sequence[str]) -> Array:
  """int32[], the training passes before this one: of the task of it that has had the most (all tasks if none is named).

  >>> step({'a': jnp.array(3), 'b': jnp.array(5)}, ('a',)).item()
  3
  """
  return jnp.max(jnp.stack([clock[task] for task in tasks or clock]))


def tick(clock: Mapping[str, Array], tasks: Sequence[str], train: bool) -> Clock:
  """The clock after a pass of these tasks, which counts if it trains.

  >>> {t: n.item() for t, n in tick({'a': jnp.array(3), 'b': jnp.array(5)}, ('a',), train=True).items()}
  {'a': 4, 'b': 5}
  """
  return {task: n + 1 if train and task in (tasks or clock) else n for task, n in clock.items()}


def annealed(first: float, last: float = 0.5) -> Callable[[Array], Array]:
  """The schedule tau(n) = max(first / sqrt(n + 1), last).

  >>> [annealed(10.0)(n).item() for n in (0, 3, 99, 10_000)]
  [10.0, 5.0, 1.0, 0.5]
  """
  return lambda n: jnp.maximum(first / jnp.sqrt(n + 1.0), last)


def temperature(argument: str, value: float | Callable | None, first: float) -> Callable[[Array], Array]:
  """A schedule from what the user gave: a schedule, a number > 0 (constant), or None (`annealed(first)`).

  One that falls to 0 stops at `COLDEST`, where draws are as good as hard: at 0 a softmax is not a number.
  """
  if value is None:
    return annealed(first)
  if callable(value):
    return lambda n: jnp.maximum(value(n), COLDEST)
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
    raise InputError(f'{argument}: found {value!r}, expected a number > 0, an optax schedule or None.')
  return lambda n: value


def check_steps(argument: str, value) -> None:
  """Raises unless `value` is a number of steps."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
    raise InputError(f'{argument}: found {value!r}, expected a whole number of steps >= 0.')
