"""Convolution and pooling for small images, fast on the CPU too."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError
from mtljax.trunks.mlp import check_widths

IMPLEMENTATIONS = ('auto', 'lax', 'im2col')


class Conv(nn.Module):
  """`nn.Conv` (same parameters, same numbers) with a choice of how it is computed.

  `lax` is `jax.lax.conv_general_dilated`; `im2col` lays the windows side by side and multiplies once. Inside a loop
  (`lax.scan`) XLA has no fast convolution on the CPU (jax-ml/jax#12868), where im2col was 19 times faster; outside a
  loop the two are alike.

  Attributes:
    features: output channels.
    kernel_size: one size per spatial axis.
    strides: the same, or one for all.
    padding: 'SAME', 'VALID' or (low, high) pairs.
    dilation: distance of neighbours in the window, one per spatial axis or one for all (`kernel_dilation`).
    impl: 'auto' takes im2col on the CPU and lax elsewhere, decided while tracing.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  features: int
  kernel_size: Sequence[int]
  strides: int | Sequence[int] = 1
  padding: str | Sequence[tuple[int, int]] = 'SAME'
  dilation: int | Sequence[int] = 1
  use_bias: bool = True
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None
  param_dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    """f[B, *spatial, C] -> f[B, *spatial, features]."""
    check_widths('Conv: kernel_size', self.kernel_size)
    size = tuple(self.kernel_size)
    if x.ndim != len(size) + 2:
      raise InputError(f'Conv: inputs have shape {x.shape}, expected [B, *spatial, C] with {len(size)} spatial axes.')
    if self.impl not in IMPLEMENTATIONS:
      raise InputError(f'Conv: impl is {self.impl!r}, expected one of {IMPLEMENTATIONS}.')
    strides, dilation = (
      (given,) * len(size) if isinstance(given, int) else tuple(given) for given in (self.strides, self.dilation)
    )
    kernel = self.param('kernel', self.kernel_init, (*size, x.shape[-1], self.features), self.param_dtype)
    bias = self.param('bias', self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    padding = self.padding
    if isinstance(padding, str):
      padding = jax.lax.padtype_to_pads(x.shape[1:-1], _spans(size, dilation), strides, padding)
    if any(n + sum(pads) < span for n, pads, span in zip(x.shape[1:-1], padding, _spans(size, dilation))):
      spans = tuple(_spans(size, dilation))
      raise InputError(f'Conv: inputs have shape {x.shape}, padding {padding}: no window of {spans} fits.')
    im2col = self.impl == 'im2col' or (self.impl == 'auto' and jax.default_backend() == 'cpu')
    y = (_im2col if im2col else _lax)(x, kernel, strides, padding, dilation)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _spans(size: Sequence[int], dilation: Sequence[int]) -> list[int]:
  """How far a window reaches."""
  return [(k - 1) * d + 1 for k, d in zip(size, dilation)]


def _lax(x: Array, kernel: Array, strides, padding, dilation) -> Array:
  spatial = ''.join('DHW'[-(x.ndim - 2) :])
  layout = (f'N{spatial}C', f'{spatial}IO', f'N{spatial}C')
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=layout)


def _im2col(x: Array, kernel: Array, strides, padding, dilation) -> Array:
  x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
  size = kernel.shape[:-2]
  counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], _spans(size, dilation), strides)]
  window = lambda i, d, s, n: slice(i * d, i * d + s * (n - 1) + 1, s)
  # One slice per place in the window; their order is that of the kernel's leading axes.
  windows = [
    x[(slice(None), *map(window, place, dilation, strides, counts))] for place in itertools.product(*map(range, size))
  ]
  return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(x: Array, window: int = 2) -> Array:
  """Maximum over windows that do not overlap, rows and columns that fill no window dropped: f[B, H, W, C].

  `nn.max_pool(x, (window, window), (window, window))` as a reshape, whose pullback is faster on the CPU; where
  several places hold the maximum the gradient is shared between them.

  >>> max_pool(jnp.arange(20.0).reshape(1, 4, 5, 1)).squeeze().tolist()
  [[6.0, 8.0], [16.0, 18.0]]
  """
  batch, height, width, channels = x.shape
  rows, columns = height // window, width // window
  x = x[:, : rows * window, : columns * window]
  return x.reshape(batch, rows, window, columns, window, channels).max(axis=(2, 4))
