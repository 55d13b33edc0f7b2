"""LeNet-size convolutional trunk."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import InputError
from mtljax.trunks.batch_norm import BatchNorm
from mtljax.trunks.conv import Conv, max_pool
from mtljax.trunks.dropout import dropped
from mtljax.trunks.mlp import MLP, check_widths


class LeNet(nn.Module):
  """Convolutions, each followed by activation and 2x2 max pooling, then one dense layer: f[B, hidden].

  Attributes:
    features: channels of every convolution; each halves the image.
    hidden: width of the dense layer, the size of the features; None leaves it out, and the features are images.
    kernel_size: of every convolution, padded to keep the size of the image.
    batch_norm: `BatchNorm` after every convolution.
    dropout: rate, after the dense layer.
    impl: of the convolutions, see `Conv`.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'conv_0': ..., 'dense': ...}, a LeNet of one convolution each and an `MLP`, which one after another are the
      LeNet.

  Reference: LeCun, Bottou, Bengio & Haffner, Gradient-Based Learning Applied to Document Recognition (1998),
  https://doi.org/10.1109/5.726791. Departs from it: ReLU and max pooling, as in MultiMNIST (Sener & Koltun 2018,
  https://arxiv.org/abs/1810.04650).
  """

  features: Sequence[int] = (16, 32)
  hidden: int | None = 64
  kernel_size: int = 5
  activation: Callable = nn.relu
  batch_norm: bool = False
  dropout: float = 0.0
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    self._check()
    stages = {f'conv_{i}': self.clone(features=(width,), hidden=None) for i, width in enumerate(self.features)}
    if self.hidden is not None:
      stages['dense'] = MLP((self.hidden,), self.activation, dropout=self.dropout, dtype=self.dtype, parent=None)
    return stages

  def _check(self):
    check_widths('LeNet: features', self.features)
    if self.hidden is not None:
      check_widths('LeNet: (hidden,)', (self.hidden,))

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W] or f[B, H, W, C] -> f[B, hidden] (f[B, h, w, features[-1]] without a dense layer)."""
    self._check()
    if x.ndim not in (3, 4) or not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f'LeNet: inputs are {x.dtype}{list(x.shape)}, expected floats [B, H, W] or [B, H, W, C].')
    if x.ndim == 3:
      x = x[..., None]
    smallest = 2 ** len(self.features)
    if min(x.shape[1:3]) < smallest:
      raise InputError(f'LeNet: images are {x.shape[1]}x{x.shape[2]}, expected at least {smallest}x{smallest}.')
    for channels in self.features:
      size, use_bias = (self.kernel_size,) * 2, not self.batch_norm  # a bias would be normalised away
      x = Conv(channels, size, use_bias=use_bias, impl=self.impl, dtype=self.dtype)(x)
      if self.batch_norm:
        x = BatchNorm(dtype=self.dtype)(x, train)
      x = max_pool(self.activation(x))
    if self.hidden is None:
      return x
    x = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
    return dropped(self.dropout, x, train)
