"""Yes/no answers: precision, recall, F1, area under the ROC curve."""

import jax
import jax.numpy as jnp

from mtljax.base import Metric
from mtljax.metrics._sums import alike, as_arrays, masked, metrax_module


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
    outputs, labels, mask = masked(*alike('auc', outputs, labels), mask)
    # An axis for the thresholds; the area does not change under a monotone map of the scores.
    scores, labels = jax.nn.sigmoid(outputs.reshape(1, -1) / 4), labels.reshape(1, -1) > 0.5
    return as_arrays(
      metrax_module().AUCROC.from_model_output(scores, labels, mask.reshape(1, -1).astype(jnp.int32), num_thresholds)
    )

  def compute(sums):
    both = (sums.true_positives[..., 0] > 0) & (sums.false_positives[..., 0] > 0)
    return jnp.where(both, sums.compute(), jnp.nan)

  return Metric(update, lambda a, b: a.merge(b), compute)


def _binary(name: str, threshold: float) -> Metric:
  """A metrax count of positives; it has no weights, but a label that is neither 0 nor 1 counts nothing."""

  def update(outputs, labels, mask):
    outputs, labels, mask = masked(*alike(name.lower(), outputs, labels), mask)
    labels = jnp.where(mask, (labels > 0.5).astype(jnp.int32), -1)
    return as_arrays(
      getattr(metrax_module(), name).from_model_output((outputs > threshold).astype(outputs.dtype), labels)
    )

  return Metric(update, lambda a, b: a.merge(b), lambda sums: sums.compute())
