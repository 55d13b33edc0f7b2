"""Predictions at every pixel: errors of depth, angles of surface normals, boundaries."""

import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError, Metric
from mtljax.metrics._sums import alike, masked, ratio


def relative_error() -> Metric:
  """Mean of |output - label| / |label| over items whose label is not 0 (depth); lower is better.

  `update` takes outputs and labels f[B, ...] of one shape. The absolute error of depth is `mae`.

  >>> metric = relative_error()
  >>> print(metric.compute(metric.update(jnp.array([3.0, 1.0, 9.0]), jnp.array([2.0, 4.0, 0.0]), None)))
  0.625
  """

  def update(outputs, labels, mask):
    outputs, labels, mask = masked(*alike('relative_error', outputs, labels), mask)
    mask = mask & (labels != 0)
    return _sum(jnp.abs(outputs - labels) / jnp.where(mask, jnp.abs(labels), 1), mask)

  return _mean(update, higher_is_better=False)


def mean_angle() -> Metric:
  """Mean angle in degrees between outputs and labels f[B, ..., D], vectors of any length (normals); lower is better.

  >>> metric = mean_angle()
  >>> outputs, labels = jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 1.0], [0.0, 3.0]])
  >>> print(metric.compute(metric.update(outputs, labels, None)).round(3))
  67.5

  A label of length 0 says nothing and counts nothing; an output of length 0 is at 90 degrees.
  """
  return _mean(lambda *args: _sum(*_angles('mean_angle', *args)), higher_is_better=False)


def median_angle(bins: int = 3600) -> Metric:
  """Median angle in degrees, as `mean_angle`; lower is better.

  Sums are a histogram of the angles from 0 to 180 degrees; the median is interpolated in its bin, so it is exact to
  180 / bins degrees.
  """
  if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
    raise InputError(f'median_angle bins: found {bins!r}, expected a positive whole number.')

  def update(outputs, labels, mask):
    angles, mask = _angles('median_angle', outputs, labels, mask)
    place = jnp.minimum((angles * (bins / 180)).astype(jnp.int32), bins - 1)
    return jnp.zeros(bins, jnp.int32).at[place.ravel()].add(mask.ravel().astype(jnp.int32))

  def compute(counts):
    below = jnp.cumsum(counts)
    half = below[-1] / 2
    place = jnp.searchsorted(below, half)
    inside = (half - (below[place] - counts[place])) / jnp.maximum(counts[place], 1)
    return jnp.where(below[-1] > 0, (place + inside) * (180 / bins), jnp.nan)

  return Metric(update, jnp.add, compute, higher_is_better=False)


def within_angle(degrees: float) -> Metric:
  """Share of vectors within so many degrees of the label, as `mean_angle`; papers give 11.25, 22.5 and 30."""
  if isinstance(degrees, bool) or not isinstance(degrees, int | float) or not 0 < degrees <= 180:
    raise InputError(f'within_angle degrees: found {degrees!r}, expected a number in (0, 180].')

  def update(outputs, labels, mask):
    angles, mask = _angles('within_angle', outputs, labels, mask)
    return _sum((angles < degrees).astype(angles.dtype), mask)

  return _mean(update)


def boundary_f1(tolerance: int = 1, threshold: float = 0.0) -> Metric:
  """F1 of pixels on a boundary, where one is right if there is one of the other kind within `tolerance` pixels.

  Precision is the share of predicted pixels with a true one in the square of (2 tolerance + 1)^2 pixels around them,
  recall that of true pixels with a predicted one, both over all images; 0 where either is. `update` takes logits
  f[B, H, W], positive above the threshold, and 0/1 labels of the same shape. Pixels that the mask leaves out are on no
  boundary. 0 pixels of tolerance give `f1`.

  >>> metric = boundary_f1(1)
  >>> outputs, labels = jnp.array([[[-1.0, 2.0, -1.0, 3.0]]]), jnp.array([[[1, 0, 0, 0]]])
  >>> print(metric.compute(metric.update(outputs, labels, None)).round(4))  # precision 1/2, recall 1
  0.6667

  Departs from Martin, Fowlkes & Malik 2004 (https://doi.org/10.1109/TPAMI.2004.1273918), the measure of boundaries in
  drawings, in what it leaves out: thinned edges, pairs one to one, the best of many thresholds.
  """
  if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
    raise InputError(f'boundary_f1 tolerance: found {tolerance!r}, expected a whole number >= 0.')

  def near(edges):
    window = (1, 2 * tolerance + 1, 2 * tolerance + 1)
    return jax.lax.reduce_window(edges.astype(jnp.float32), 0.0, jax.lax.max, window, (1, 1, 1), 'SAME') > 0

  def update(outputs, labels, mask):
    outputs, labels, mask = masked(*alike('boundary_f1', outputs, labels), mask)
    if labels.ndim != 3:
      raise InputError(f'boundary_f1: labels have shape {labels.shape}, expected [B, H, W].')
    found, true = mask & (outputs > threshold), mask & (labels > 0.5)
    counts = {'found': found, 'found_right': found & near(true), 'true': true, 'true_found': true & near(found)}
    return {name: pixels.sum(dtype=jnp.int32) for name, pixels in counts.items()}

  def merge(a, b):
    return {name: a[name] + b[name] for name in a}

  def compute(sums):
    precision = sums['found_right'] / jnp.maximum(sums['found'], 1)
    recall = sums['true_found'] / jnp.maximum(sums['true'], 1)
    return 2 * precision * recall / jnp.where(precision + recall == 0, 1, precision + recall)

  return Metric(update, merge, compute)


def _sum(values: Array, mask: Array) -> dict[str, Array]:
  return {'sum': jnp.where(mask, values, 0).sum(), 'count': mask.sum(dtype=jnp.int32)}


def _mean(update, higher_is_better: bool = True) -> Metric:
  merge = lambda a, b: {name: a[name] + b[name] for name in a}
  return Metric(update, merge, lambda sums: ratio(sums['sum'], sums['count']), higher_is_better)


def _angles(metric: str, outputs: Array, labels: Array, mask: Array | None) -> tuple[Array, Array]:
  """Degrees f[B, ...] and which of them count."""
  outputs, labels = alike(metric, outputs, labels)
  if labels.ndim < 2:
    raise InputError(f'{metric}: labels have shape {labels.shape}, expected vectors [B, ..., D].')
  shape = labels.shape[:-1]
  mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask, bool)
  if mask.ndim > len(shape) or mask.shape != shape[: mask.ndim]:
    raise InputError(f'{metric}: mask has shape {mask.shape}, expected {shape} or its leading axes.')
  mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
  outputs, labels = (jnp.where(mask[..., None], x, 0) for x in (outputs, labels))
  u, v = _unit(outputs), _unit(labels)
  # Exact for small angles, where the arc cosine of a dot product is not; 90 degrees where u is 0.
  angles = 2 * jnp.arctan2(_length(u - v), _length(u + v))[..., 0]
  return jnp.rad2deg(angles), mask & (labels != 0).any(-1)


def _length(x: Array) -> Array:
  return jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))


def _unit(x: Array) -> Array:
  largest = jnp.abs(x).max(-1, keepdims=True)
  x = x / jnp.where(largest == 0, 1, largest)
  length = _length(x)
  return x / jnp.where(length == 0, 1, length)
