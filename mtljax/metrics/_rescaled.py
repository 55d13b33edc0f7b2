"""Metrics in the original unit of standardised labels."""

from collections.abc import Callable

from mtljax.base import Array, Metric


def rescaled(metric: Metric, inverse: Callable[[Array], Array]) -> Metric:
  """A metric of outputs and labels that are both mapped back first: `rescaled(rmse(), scaler.inverse)`.

  >>> import jax.numpy as jnp
  >>> from mtljax.metrics import mae
  >>> metric = rescaled(mae(), lambda z: 10 * z + 3)
  >>> print(metric.compute(metric.update(jnp.array([1.0]), jnp.array([1.5]), jnp.array([True]))))
  5.0

  Args:
    metric: of numbers.
    inverse: of what the labels went through, `data.tables.Scaler.inverse` or any function of arrays that is traceable.
  """
  update = lambda outputs, labels, mask: metric.update(inverse(outputs), inverse(labels), mask)
  return metric._replace(update=update)
