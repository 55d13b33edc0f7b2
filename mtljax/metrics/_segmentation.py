"""Classes of pixels: mean intersection over union."""

import jax.numpy as jnp

from mtljax.base import InputError, Metric
from mtljax.metrics._sums import classes, masked, ratio


def mean_iou(num_classes: int) -> Metric:
  """Mean over classes of TP / (TP + FP + FN) from one confusion matrix; classes that never occur are left out.

  `update` takes logits f[B, ..., C] (or classes int[B, ...]) and classes int[B, ...]; a label outside [0, C) is void
  and counts nothing.
  """

  def update(outputs, labels, mask):
    if jnp.issubdtype(jnp.result_type(outputs), jnp.floating) and jnp.shape(outputs)[-1] != num_classes:
      raise InputError(f'mean_iou: outputs have shape {jnp.shape(outputs)}, expected [B, ..., {num_classes}].')
    predictions, labels, mask = masked(*classes('mean_iou', jnp.asarray(outputs), jnp.asarray(labels)), mask)
    known = mask & (labels >= 0) & (labels < num_classes)
    cells = jnp.where(known, labels * num_classes + predictions, 0)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[cells.ravel()].add(known.ravel().astype(jnp.int32))
    return counts.reshape(num_classes, num_classes)

  def compute(confusion):
    hits = jnp.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return ratio((hits / jnp.maximum(union, 1)).sum(), (union > 0).sum())

  return Metric(update, jnp.add, compute)
