"""What compares methods: Δm, mean rank, confidence intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError, Task

Values = Mapping[str, Mapping[str, float]]


def directions(tasks: Sequence[Task]) -> dict[str, dict[str, bool]]:
  """{task: {its first metric: whether higher is better}}, what `delta_m` and `mean_rank` go by."""
  for task in tasks:
    if not task.metrics:
      raise InputError(f'Task {task.name!r}: metrics are empty, expected at least one to compare methods by.')
  return {task.name: {name: task.metrics[name].higher_is_better for name in list(task.metrics)[:1]} for task in tasks}


def delta_m(values: Values, baseline: Values, higher_is_better: Mapping[str, Mapping[str, bool]]) -> float:
  """Δm: mean over tasks of the relative change against single-task runs, in percent, positive when better.

  >>> better = {'a': {'accuracy': True}, 'b': {'mse': False}}
  >>> delta_m({'a': {'accuracy': 0.9}, 'b': {'mse': 1.0}}, {'a': {'accuracy': 0.8}, 'b': {'mse': 2.0}}, better)
  31.25

  Args:
    values: {task: {metric: value}} of a method; values may be arrays (seeds), element by element.
    baseline: the same of the single-task runs. A value of 0 has no relative change and gives NaN.
    higher_is_better: {task: {metric: bool}}, see `directions`; the first metric of each task counts.

  Returns:
    Percent.

  Raises:
    InputError: a task or metric is missing.

  Reference: Maninis, Radosavovic & Kokkinos, Attentive Single-Tasking of Multiple Tasks (2019),
  https://arxiv.org/abs/1904.08918.
  """
  changes = []
  for task, name, sign in _first_metrics(higher_is_better):
    value, base = (np.asarray(_lookup(a, v, task, name)) for a, v in (('values', values), ('baseline', baseline)))
    with np.errstate(divide='ignore', invalid='ignore'):
      changes.append(sign * np.where(base == 0, np.nan, (value - base) / np.abs(base)))
  mean = 100 * np.mean(changes, axis=0)
  return float(mean) if mean.ndim == 0 else mean


def mean_rank(values: Mapping[str, Values], higher_is_better: Mapping[str, Mapping[str, bool]]) -> dict[str, float]:
  """Rank of every method, 1 the best, mean over tasks; ties share the mean of their ranks, NaN comes last.

  >>> better = {'a': {'accuracy': True}}
  >>> mean_rank({'x': {'a': {'accuracy': 0.9}}, 'y': {'a': {'accuracy': 0.8}}, 'z': {'a': {'accuracy': 0.8}}}, better)
  {'x': 1.0, 'y': 2.5, 'z': 2.5}

  Args:
    values: {method: {task: {metric: value}}}.
    higher_is_better: as for `delta_m`.

  Returns:
    {method: rank}.

  Raises:
    InputError: a task or metric is missing.
  """
  ranks = []
  for task, name, sign in _first_metrics(higher_is_better):
    cost = np.array([-sign * float(_lookup(f'values[{method!r}]', values[method], task, name)) for method in values])
    cost = np.where(np.isnan(cost), np.inf, cost)
    better, same = (cost[None] < cost[:, None]).sum(1), (cost[None] == cost[:, None]).sum(1)
    ranks.append(better + (same + 1) / 2)
  return {method: float(rank) for method, rank in zip(values, np.mean(ranks, axis=0))}


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
  """Mean and half width of the Student-t interval of a mean over seeds; one value has no width (NaN).

  >>> mean, half = confidence_interval([1.0, 2.0, 3.0])
  >>> round(mean, 4), round(half, 4)
  (2.0, 2.4841)

  Raises:
    InputError: no value, or a level outside (0, 1).
  """
  values = np.asarray(values, float)
  if values.ndim != 1 or values.size == 0:
    raise InputError(f'confidence_interval values: found shape {values.shape}, expected [n] with n >= 1.')
  if not 0 < level < 1:
    raise InputError(f'confidence_interval level: found {level!r}, expected a number between 0 and 1.')
  if values.size == 1:
    return float(values[0]), math.nan
  return float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size) * _student(level, values.size - 1))


def _student(level: float, degrees: int) -> float:
  """t with P(|T| < t) = level: the finite series of Abramowitz & Stegun 26.7.3-4, solved by bisection of the angle."""

  def probability(angle):
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, degrees - 1, 2):
      term *= (k - 1) / k * math.cos(angle) ** 2
      total += term
    if odd:
      return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
    return math.sin(angle) * total

  low, high = 0.0, math.pi / 2
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if probability(middle) < level else (low, middle)
  return math.sqrt(degrees) * math.tan(low)


def _first_metrics(higher_is_better):
  for task, metrics in higher_is_better.items():
    name = next(iter(metrics))
    yield task, name, 1.0 if metrics[name] else -1.0


def _lookup(argument: str, values: Values, task: str, name: str):
  check_names(argument, [task] if task in values else list(values), [task])
  check_names(f'{argument}[{task!r}]', [name] if name in values[task] else list(values[task]), [name])
  return values[task][name]
