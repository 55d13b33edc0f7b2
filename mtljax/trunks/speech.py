"""Speech encoder: convolutions that take every fourth frame, then conformer blocks."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import InputError
from mtljax.trunks._sequence import Chain, check_counts, check_heads, repack, unpack, zeroed
from mtljax.trunks.conv import Conv
from mtljax.trunks.dropout import dropped
from mtljax.trunks.transformer import Attention, FeedForward


class Subsample(nn.Module):
  """Two 3x3 convolutions over time and frequency with stride 2, then a linear layer.

  Frame i of the outputs is centred at frame 4i of the inputs and counts where that does: N' = ceil(N / 4), mask' =
  mask[:, ::4]. What a window sees beyond the end is zero, in a longer array too.

  Attributes:
    features: width.
    channels: of the convolutions.
    dropout: rate, of the outputs.
    impl: of the convolutions, see `Conv`.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  features: int
  channels: int = 32
  dropout: float = 0.0
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """f[B, N, F], or {'x', 'mask'} -> f[B, ceil(N / 4), features], or {'x', 'mask'}."""
    x, mask = unpack('Subsample', inputs)
    x = x[..., None]
    for index in range(2):
      conv = Conv(self.channels, (3, 3), 2, ((1, 1), (1, 1)), impl=self.impl, dtype=self.dtype, name=f'conv_{index}')
      mask = None if mask is None else mask[:, ::2]
      x = zeroed(nn.relu(conv(x)), mask)
    x = nn.Dense(self.features, dtype=self.dtype, name='linear')(x.reshape(*x.shape[:2], -1))
    return repack(dropped(self.dropout, x, train), mask)


class DepthwiseConv(nn.Module):
  """Every channel's own convolution over time, sum_k kernel[k] x[n + k - kernel_size // 2]: f[B, N, C].

  The parameters are those of `nn.Conv(C, (kernel_size,), feature_group_count=C)`; written as a sum over the kernel,
  which is faster than XLA's grouped convolution on the CPU.
  """

  kernel_size: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    """f[B, N, C] -> f[B, N, C], zeros around."""
    size, channels, length = self.kernel_size, x.shape[-1], x.shape[1]
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (size, 1, channels), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
    return sum(x[:, k : k + length] * kernel[k][None] for k in range(size)) + bias[None, None]


class ConvModule(nn.Module):
  """Linear layer with a gate, depthwise convolution over time, LayerNorm, swish, linear layer.

  Attributes:
    kernel_size: of the convolution, odd.
    dropout: rate, of the outputs.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  kernel_size: int
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x, mask=None, train: bool = False):
    """f[B, N, C], bool[B, N] or None -> f[B, N, C]."""
    features = x.shape[-1]
    x = zeroed(nn.glu(nn.Dense(2 * features, dtype=self.dtype, name='in')(x)), mask)
    x = DepthwiseConv(self.kernel_size, self.dtype, name='depthwise')(x)
    x = nn.swish(nn.LayerNorm(dtype=self.dtype, name='norm')(x))
    return dropped(self.dropout, nn.Dense(features, dtype=self.dtype, name='out')(x), train)


class ConformerBlock(nn.Module):
  """x + ff(x) / 2, x + attention(x), x + conv(x), x + ff(x) / 2, LayerNorm; a LayerNorm before each of the four.

  Attributes:
    heads: of the attention, with rotary positions.
    hidden: width of the feed-forward layers, None 4 C.
    kernel_size: of the convolution, odd.
    dropout: rate, of attention weights, hidden layers and what is added to x.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  heads: int
  hidden: int | None = None
  kernel_size: int = 15
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """f[B, N, C], or {'x', 'mask'} -> the same."""
    x, mask = unpack('ConformerBlock', inputs)
    norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
    drop = lambda y: dropped(self.dropout, y, train)
    feed = lambda name: FeedForward(self.hidden, nn.swish, self.dropout, self.dtype, name=name)
    attention = Attention(self.heads, rotary=True, dropout=self.dropout, dtype=self.dtype, name='attention')
    conv = ConvModule(self.kernel_size, self.dropout, self.dtype, name='conv')
    x = x + 0.5 * drop(feed('feed_forward_0')(norm('feed_forward_0_norm')(x), train))
    x = x + drop(attention(norm('attention_norm')(x), mask, train=train))
    x = x + conv(norm('conv_norm')(x), mask, train)
    x = x + 0.5 * drop(feed('feed_forward_1')(norm('feed_forward_1_norm')(x), train))
    return repack(norm('norm')(x), mask)


class Conformer(Chain):
  """Log-mel frames f[B, N, F] -> f[B, ceil(N / 4), features]: convolutions that quarter time, conformer blocks.

  Inputs may be {'x': ..., 'mask': bool[B, N]}, and so are the features then: frame i counts where frame 4i of the
  inputs does. Padding at the end has no influence, and is zero in what comes out. N need not be a multiple of four.

  Attributes:
    features: width.
    depth: number of blocks.
    heads: of every attention.
    hidden: width of the feed-forward layers, 4 features if None.
    kernel_size: of the depthwise convolutions, odd.
    channels: of the convolutions that quarter time (and frequency).
    dropout: rate, of attention weights, hidden layers and what every layer adds.
    impl: of the convolutions, see `Conv`.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'subsample', 'block_0', ...}, modules which one after another are the encoder.

  >>> list(Conformer(8, depth=2).stages)
  ['subsample', 'block_0', 'block_1']

  Reference: Gulati et al., Conformer: Convolution-augmented Transformer for Speech Recognition (2020),
  https://arxiv.org/abs/2005.08100. Departs from it: LayerNorm instead of BatchNorm in the convolution module, so that
  neither padding nor the other utterances matter; rotary instead of relative sinusoidal positions; a kernel of 15.
  """

  features: int = 144
  depth: int = 4
  heads: int = 4
  hidden: int | None = None
  kernel_size: int = 15
  channels: int = 32
  dropout: float = 0.0
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    hidden = {} if self.hidden is None else {'hidden': self.hidden}
    check_counts('Conformer', depth=self.depth, kernel_size=self.kernel_size, channels=self.channels, **hidden)
    check_heads('Conformer', self.features, self.heads, rotary=True)
    if self.kernel_size % 2 == 0:
      raise InputError(f'Conformer: kernel_size is {self.kernel_size}, expected an odd number.')
    subsample = Subsample(self.features, self.channels, self.dropout, self.impl, self.dtype, parent=None)
    block = ConformerBlock(self.heads, self.hidden, self.kernel_size, self.dropout, self.dtype, parent=None)
    return {'subsample': subsample, **{f'block_{i}': block for i in range(self.depth)}}
