"""Multi-layer perceptron."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from mtljax.base import InputError
from mtljax.trunks.batch_norm import BatchNorm
from mtljax.trunks.dropout import dropped


def check_widths(name: str, widths: Sequence[int]) -> None:
  """Raises unless `widths` is a sequence of positive whole numbers."""
  if not isinstance(widths, Sequence) or not all(isinstance(n, numbers.Integral) and n > 0 for n in widths):
    raise InputError(f'{name} is {widths!r}, expected a sequence of positive whole numbers such as (64, 64).')


class MLP(nn.Module):
  """Dense layers, each followed by the activation: features f[B, features[-1]] for any inputs f[B, ...].

  Attributes:
    features: width of every layer.
    activation: applied after every layer, the last one too.
    batch_norm: `BatchNorm` between a layer and its activation.
    dropout: rate, after every activation.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'layer_0': MLP((features[0],)), ...}, which one after another are the MLP.
  """

  features: Sequence[int]
  activation: Callable = nn.relu
  batch_norm: bool = False
  dropout: float = 0.0
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    check_widths('MLP: features', self.features)
    return {f'layer_{index}': self.clone(features=(width,)) for index, width in enumerate(self.features)}

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, ...] -> f[B, features[-1]]."""
    check_widths('MLP: features', self.features)
    x = x.reshape(x.shape[0], -1)
    for width in self.features:
      x = nn.Dense(width, use_bias=not self.batch_norm, dtype=self.dtype)(x)  # a bias would be normalised away
      if self.batch_norm:
        x = BatchNorm(dtype=self.dtype)(x, train)
      x = dropped(self.dropout, self.activation(x), train)
    return x
