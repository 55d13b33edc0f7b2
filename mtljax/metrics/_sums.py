"""What streaming metrics share: masked sums, and metrax behind the one door that imports it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtljax.arrays import expand_to
from mtljax.base import Array, InputError, Metric, PyTree


def average(name: str, prepare: Callable, higher_is_better: bool = True) -> Metric:
  """A metrax average over items; `prepare(outputs, labels)` gives predictions and labels of one shape."""

  def update(outputs, labels, mask):
    predictions, labels, mask = masked(*prepare(jnp.asarray(outputs), jnp.asarray(labels)), mask)
    return getattr(metrax_module(), name).from_model_output(predictions, labels, mask.astype(jnp.int32))

  def compute(sums):
    return jnp.where(sums.count > 0, sums.compute(), jnp.nan)

  return Metric(update, lambda a, b: a.merge(b), compute, higher_is_better)


def metrax_module():
  import metrax  # takes a third of a second

  return metrax


def as_arrays(metric: PyTree) -> PyTree:
  return jax.tree.map(jnp.asarray, metric)  # metrax keeps Python numbers among the sums


def ratio(numerator: Array, denominator: Array) -> Array:
  return jnp.where(denominator == 0, jnp.nan, numerator / jnp.where(denominator == 0, 1, denominator))


def masked(outputs: Array, labels: Array, mask: Array | None) -> tuple[Array, Array, Array]:
  """Outputs and labels with 0 where the mask leaves them out (NaN times 0 is NaN), and the mask item by item."""
  mask = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask, bool)
  if mask.ndim > labels.ndim or mask.shape != labels.shape[: mask.ndim]:
    raise InputError(f'metric: mask has shape {mask.shape}, expected {labels.shape} or its leading axes.')
  mask = jnp.broadcast_to(expand_to(mask, labels.ndim), labels.shape)
  return jnp.where(mask, outputs, 0), jnp.where(mask, labels, 0), mask


def classes(metric: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
  predictions = outputs.argmax(-1) if jnp.issubdtype(outputs.dtype, jnp.floating) and outputs.ndim else outputs
  if predictions.shape != labels.shape or jnp.issubdtype(labels.dtype, jnp.inexact):
    raise InputError(
      f'{metric}: labels are {labels.dtype}{list(labels.shape)}, expected integers {list(predictions.shape)} '
      f'for outputs {outputs.dtype}{list(outputs.shape)}.'
    )
  return predictions.astype(jnp.int32), labels.astype(jnp.int32)


def alike(metric: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
  outputs, labels = jnp.asarray(outputs), jnp.asarray(labels)
  if outputs.shape != labels.shape:
    raise InputError(f"{metric}: labels have shape {labels.shape}, expected {outputs.shape}, the outputs' shape.")
  dtype = jnp.promote_types(outputs.dtype, jnp.float32)
  return outputs.astype(dtype), labels.astype(dtype)
