"""Averages over items: accuracy, errors of regression, R²."""

import jax.numpy as jnp

from mtljax.base import Metric
from mtljax.metrics._sums import alike, average, classes, masked, ratio


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
    return classes('accuracy', outputs, labels)

  return average('Accuracy', prepare)


def binary_accuracy(threshold: float = 0.0) -> Metric:
  """Share of correct yes/no answers: logits f[B, ...] above the threshold against 0/1 labels of the same shape."""

  def prepare(outputs, labels):
    outputs, labels = alike('binary_accuracy', outputs, labels)
    return outputs > threshold, labels > 0.5

  return average('Accuracy', prepare)


def mse() -> Metric:
  """Mean squared error; outputs and labels f[B, ...] of one shape; lower is better."""
  return average('MSE', lambda outputs, labels: alike('mse', outputs, labels), higher_is_better=False)


def rmse() -> Metric:
  """Root of the mean squared error over all batches; outputs and labels f[B, ...] of one shape; lower is better."""
  return average('RMSE', lambda outputs, labels: alike('rmse', outputs, labels), higher_is_better=False)


def mae() -> Metric:
  """Mean absolute error; outputs and labels f[B, ...] of one shape; lower is better."""
  return average('MAE', lambda outputs, labels: alike('mae', outputs, labels), higher_is_better=False)


def r2() -> Metric:
  """1 - sum (labels - outputs)^2 / sum (labels - mean label)^2; outputs and labels f[B, ...] of one shape.

  Means and squared deviations of batches are merged pairwise (Chan, Golub & LeVeque 1983,
  https://doi.org/10.1080/00031305.1983.10483115), which keeps labels with a large mean exact.
  """

  def update(outputs, labels, mask):
    outputs, labels, mask = masked(*alike('r2', outputs, labels), mask)
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

  return Metric(update, merge, lambda sums: 1 - ratio(sums['error'], sums['deviation']))
