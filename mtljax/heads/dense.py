"""Dense heads: classification, regression, several labels at once."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import InputError
from mtljax.trunks.dropout import dropped
from mtljax.trunks.mlp import check_widths


class Dense(nn.Module):
  """Flattened features, optional hidden layers, one linear layer; the outputs are float32 whatever the compute dtype.

  Attributes:
    outputs: number of outputs, or None for one number per example without an axis of its own: f[B].
    hidden: widths of hidden layers.
    activation: after every hidden layer.
    dropout: rate, after every hidden layer.
    dtype: of the hidden layers (jnp.bfloat16); the last layer and all parameters are float32.
  """

  outputs: int | None
  hidden: Sequence[int] = ()
  activation: Callable = nn.relu
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, features, train: bool = False):
    """f[B, ...] -> f[B, outputs], or f[B] when `outputs` is None."""
    check_widths('Dense: hidden', self.hidden)
    if not hasattr(features, 'reshape'):
      kind = type(features).__name__
      raise InputError(f'Dense: features are a {kind}, expected an array f[B, ...]; for a sequence, heads.pooled.')
    x = features.reshape(features.shape[0], -1)
    for width in self.hidden:
      x = dropped(self.dropout, self.activation(nn.Dense(width, dtype=self.dtype)(x)), train)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # float64 stays what it is
    y = nn.Dense(1 if self.outputs is None else self.outputs)(x)
    return y.squeeze(-1) if self.outputs is None else y


def classify(num_classes: int, **options) -> Dense:
  """Logits f[B, num_classes] for `losses.softmax_cross_entropy`; options are the fields of `Dense`.

  >>> classify(10, hidden=(32,)).outputs
  10
  """
  return Dense(_count('classify', 'num_classes', num_classes, at_least=2), **options)


def regress(outputs: int | None = None, **options) -> Dense:
  """Predictions f[B] (`outputs=None`) or f[B, outputs]; options are the fields of `Dense`."""
  return Dense(outputs if outputs is None else _count('regress', 'outputs', outputs), **options)


def multilabel(num_labels: int, **options) -> Dense:
  """Logits f[B, num_labels], one yes or no each; options are the fields of `Dense`."""
  return Dense(_count('multilabel', 'num_labels', num_labels), **options)


def _count(head: str, argument: str, value, at_least: int = 1) -> int:
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
    raise InputError(f'heads.{head}: {argument} is {value!r}, expected a whole number of at least {at_least}.')
  return value
