"""Streaming metrics over google-metrax, and the measures that compare methods: Δm, mean rank, confidence intervals.

A factory returns a `Metric`: `update(outputs, labels, mask)` is pure (jit, vmap), what the mask leaves out counts
nothing whatever it holds, and sums are merged before anything is divided. A mean of nothing is NaN.
`mean_iou`, `f1` and `r2` are our own sums: metrax averages the IoU of batches, cannot merge its F score, and takes the
variance of labels as a difference of large numbers.
"""

from mtljax.metrics._averages import accuracy, binary_accuracy, mae, mse, r2, rmse
from mtljax.metrics._comparison import confidence_interval, delta_m, directions, mean_rank
from mtljax.metrics._dense import boundary_f1, mean_angle, median_angle, relative_error, within_angle
from mtljax.metrics._rescaled import rescaled
from mtljax.metrics._segmentation import mean_iou
from mtljax.metrics._spans import span_f1, token_f1
from mtljax.metrics._text import bleu, cer, chrf, wer
from mtljax.metrics._yes_no import auc, f1, precision, recall

__all__ = [
  'accuracy',
  'auc',
  'binary_accuracy',
  'bleu',
  'boundary_f1',
  'cer',
  'chrf',
  'confidence_interval',
  'delta_m',
  'directions',
  'f1',
  'mae',
  'mean_angle',
  'mean_iou',
  'mean_rank',
  'median_angle',
  'mse',
  'precision',
  'r2',
  'recall',
  'relative_error',
  'rescaled',
  'rmse',
  'span_f1',
  'token_f1',
  'wer',
  'within_angle',
]
