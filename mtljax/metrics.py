"""Streaming metrics over google-metrax, and the measures that compare methods: Δm, mean rank, confidence intervals.

A factory returns a `Metric`: `update(outputs, labels, mask)` is pure (jit, vmap), what the mask leaves out counts
nothing whatever it holds, and sums are merged before anything is divided. A mean of nothing is NaN.
`mean_iou`, `f1` and `r2` are our own sums: metrax averages the IoU of batches, cannot merge its F score, and takes the
variance of labels as a difference of large numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.arrays import check_names, expand_to
from mtljax.base import Array, InputError, Metric, PyTree, Task

Values = Mapping[str, Mapping[str, float]]


def accuracy() -> Metric:
  """Share of correct classes.

  `update` takes logits f[B, ..., C] and classes int[B, ...] or distributions f[B, ..., C]; or predicted classes
  int[B, ...].

  >>> metric = accuracy()
  >>> sums = metric.update(jnp.eye(3), jnp.array([0, 1, 0]), jnp.array([True, True, True]))
  >>> print(metric.compute(metric.merge(sums, sums)).round(4))
  0.6667
  """

  def prepare(outputs, labels):
    if labels.ndim == outputs.ndim and jnp.issubdtype(labels.dtype, jnp.floating):
      labels = labels.argmax(-1)
    return _classes('accuracy', outputs, labels)

  return _average('Accuracy', prepare)


def binary_accuracy(threshold: float = 0.0) -> Metric:
  """Share of correct yes/no answers: logits f[B, ...] above the threshold against 0/1 labels of the same shape."""

  def prepare(outputs, labels):
    outputs, labels = _alike('binary_accuracy', outputs, labels)
    return outputs > threshold, labels > 0.5

  return _average('Accuracy', prepare)


def mse() -> Metric:
  """Mean squared error; outputs and labels f[B, ...] of one shape; lower is better."""
  return _average('MSE', lambda outputs, labels: _alike('mse', outputs, labels), higher_is_better=False)


def rmse() -> Metric:
  """Root of the mean squared error over all batches; outputs and labels f[B, ...] of one shape; lower is better."""
  return _average('RMSE', lambda outputs, labels: _alike('rmse', outputs, labels), higher_is_better=False)


def mae() -> Metric:
  """Mean absolute error; outputs and labels f[B, ...] of one shape; lower is better."""
  return _average('MAE', lambda outputs, labels: _alike('mae', outputs, labels), higher_is_better=False)


def r2() -> Metric:
  """1 - sum (labels - outputs)^2 / sum (labels - mean label)^2; outputs and labels f[B, ...] of one shape.

  Means and squared deviations of batches are merged pairwise (Chan, Golub & LeVeque 1983,
  https://doi.org/10.1080/00031305.1983.10483115), which keeps labels with a large mean exact.
  """

  def update(outputs, labels, mask):
    outputs, labels, mask = _masked(*_alike('r2', outputs, labels), mask)
    count = mask.sum(dtype=labels.dtype)
    mean, error = labels.sum() / jnp.maximum(count, 1), jnp.square(outputs - labels).sum()
    deviation = jnp.where(mask, jnp.square(labels - mean), 0).sum()
    return {'count': count, 'mean': mean, 'deviation': deviation, 'error': error}

  def merge(a, b):
    count = a['count'] + b['count']
    share, gap = b['count'] / jnp.maximum(count, 1), b['mean'] - a['mean']
    deviation = a['deviation'] + b['deviation'] + gap**2 * share * a['count']
    mean, error = a['mean'] + gap * share, a['error'] + b['error']
    return {'count': count, 'mean': mean, 'deviation': deviation, 'error': error}

  return Metric(update, merge, lambda sums: 1 - _ratio(sums['error'], sums['deviation']))


def precision(threshold: float = 0.0) -> Metric:
  """TP / (TP + FP) of yes/no answers, all together; 0 when nothing is predicted.

  `update` takes logits f[B, ...], positive above the threshold, and 0/1 labels of the same shape.
  """
  return _binary('Precision', threshold)


def recall(threshold: float = 0.0) -> Metric:
  """TP / (TP + FN) of yes/no answers, all together; 0 without a positive label; arguments as for `precision`."""
  return _binary('Recall', threshold)


def f1(threshold: float = 0.0) -> Metric:
  """2 TP / (2 TP + FP + FN), the harmonic mean of `precision` and `recall`; 0 without a true positive."""
  parts = (_binary('Precision', threshold), _binary('Recall', threshold))

  def compute(sums):
    true, false_positives, false_negatives = sums[0].true_positives, sums[0].false_positives, sums[1].false_negatives
    return true / jnp.maximum(true + (false_positives + false_negatives) / 2, 1)

  return Metric(
    update=lambda outputs, labels, mask: tuple(part.update(outputs, labels, mask) for part in parts),
    merge=lambda a, b: tuple(part.merge(x, y) for part, x, y in zip(parts, a, b)),
    compute=compute,
  )


def auc(num_thresholds: int = 1000) -> Metric:
  """Area under the ROC curve of yes/no answers, all together; NaN while one of the classes is missing.

  `update` takes logits f[B, ...] and 0/1 labels of the same shape. Scores are compared with thresholds spread over
  sigmoid(logit / 4), which resolves logits from -16 to 16; within a step of them they count as ties. Sums are
  4 * num_thresholds numbers, an update num_thresholds * items of work.
  """

  def update(outputs, labels, mask):
    outputs, labels, mask = _masked(*_alike('auc', outputs, labels), mask)
    # An axis for the thresholds; the area does not change under a monotone map of the scores.
    scores, labels = jax.nn.sigmoid(outputs.reshape(1, -1) / 4), labels.reshape(1, -1) > 0.5
    return _sums(
      _metrax().AUCROC.from_model_output(scores, labels, mask.reshape(1, -1).astype(jnp.int32), num_thresholds)
    )

  def compute(sums):
    both = (sums.true_positives[..., 0] > 0) & (sums.false_positives[..., 0] > 0)
    return jnp.where(both, sums.compute(), jnp.nan)

  return Metric(update, lambda a, b: a.merge(b), compute)


def mean_iou(num_classes: int) -> Metric:
  """Mean over classes of TP / (TP + FP + FN) from one confusion matrix; classes that never occur are left out.

  `update` takes logits f[B, ..., C] (or classes int[B, ...]) and classes int[B, ...]; a label outside [0, C) is void
  and counts nothing.
  """

  def update(outputs, labels, mask):
    if jnp.issubdtype(jnp.result_type(outputs), jnp.floating) and jnp.shape(outputs)[-1] != num_classes:
      raise InputError(f'mean_iou: outputs have shape {jnp.shape(outputs)}, expected [B, ..., {num_classes}].')
    predictions, labels, mask = _masked(*_classes('mean_iou', jnp.asarray(outputs), jnp.asarray(labels)), mask)
    known = mask & (labels >= 0) & (labels < num_classes)
    cells = jnp.where(known, labels * num_classes + predictions, 0)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[cells.ravel()].add(known.ravel().astype(jnp.int32))
    return counts.reshape(num_classes, num_classes)

  def compute(confusion):
    hits = jnp.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return _ratio((hits / jnp.maximum(union, 1)).sum(), (union > 0).sum())

  return Metric(update, jnp.add, compute)


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


def _metrax():
  import metrax  # takes a third of a second

  return metrax


def _average(name: str, prepare: Callable, higher_is_better: bool = True) -> Metric:
  """A metrax average over items; `prepare(outputs, labels)` gives predictions and labels of one shape."""

  def update(outputs, labels, mask):
    predictions, labels, mask = _masked(*prepare(jnp.asarray(outputs), jnp.asarray(labels)), mask)
    return getattr(_metrax(), name).from_model_output(predictions, labels, mask.astype(jnp.int32))

  def compute(sums):
    return jnp.where(sums.count > 0, sums.compute(), jnp.nan)

  return Metric(update, lambda a, b: a.merge(b), compute, higher_is_better)


def _binary(name: str, threshold: float) -> Metric:
  """A metrax count of positives; it has no weights, but a label that is neither 0 nor 1 counts nothing."""

  def update(outputs, labels, mask):
    outputs, labels, mask = _masked(*_alike(name.lower(), outputs, labels), mask)
    labels = jnp.where(mask, (labels > 0.5).astype(jnp.int32), -1)
    return _sums(getattr(_metrax(), name).from_model_output((outputs > threshold).astype(outputs.dtype), labels))

  return Metric(update, lambda a, b: a.merge(b), lambda sums: sums.compute())


def _sums(metric: PyTree) -> PyTree:
  return jax.tree.map(jnp.asarray, metric)  # metrax keeps Python numbers among the sums


def _ratio(numerator: Array, denominator: Array) -> Array:
  return jnp.where(denominator == 0, jnp.nan, numerator / jnp.where(denominator == 0, 1, denominator))


def _masked(outputs: Array, labels: Array, mask: Array | None) -> tuple[Array, Array, Array]:
  """Outputs and labels with 0 where the mask leaves them out (NaN times 0 is NaN), and the mask item by item."""
  mask = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
  if mask.ndim > labels.ndim or mask.shape != labels.shape[: mask.ndim]:
    raise InputError(f'metric: mask has shape {mask.shape}, expected {labels.shape} or its leading axes.')
  mask = jnp.broadcast_to(expand_to(mask, labels.ndim), labels.shape)
  return jnp.where(mask, outputs, 0), jnp.where(mask, labels, 0), mask


def _classes(metric: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
  predictions = outputs.argmax(-1) if jnp.issubdtype(outputs.dtype, jnp.floating) and outputs.ndim else outputs
  if predictions.shape != labels.shape or jnp.issubdtype(labels.dtype, jnp.inexact):
    raise InputError(
      f'{metric}: labels are {labels.dtype}{list(labels.shape)}, expected integers {list(predictions.shape)} '
      f'for outputs {outputs.dtype}{list(outputs.shape)}.'
    )
  return predictions.astype(jnp.int32), labels.astype(jnp.int32)


def _alike(metric: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
  outputs, labels = jnp.asarray(outputs), jnp.asarray(labels)
  if outputs.shape != labels.shape:
    raise InputError(f"{metric}: labels have shape {labels.shape}, expected {outputs.shape}, the outputs' shape.")
  dtype = jnp.promote_types(outputs.dtype, jnp.float32)
  return outputs.astype(dtype), labels.astype(dtype)
