"""Residual networks for images, whole and in stages."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import InputError
from mtljax.trunks.batch_norm import BatchNorm
from mtljax.trunks.conv import Conv
from mtljax.trunks.mlp import check_widths

NORMS = ('group', 'batch')
STEMS = ('cifar', 'imagenet')


class _Part(nn.Module, kw_only=True):
  """What every part of a ResNet is told."""

  norm: Literal['group', 'batch'] = 'group'
  groups: int = 32
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None


def _conv(part, x, channels: int, size: int, stride: int = 1, dilation: int = 1):
  """A convolution of the part, padded as if the stride were one, without a bias (the norm after it has one)."""
  return Conv(
    channels,
    (size, size),
    stride,
    padding=((size // 2 * dilation, size // 2 * dilation),) * 2,
    dilation=dilation,
    use_bias=False,
    impl=part.impl,
    dtype=part.dtype,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
  )(x)


def _normalised(part, x, train: bool):
  if part.norm == 'batch':
    return BatchNorm(momentum=0.9, dtype=part.dtype)(x, train)
  return nn.GroupNorm(math.gcd(part.groups, x.shape[-1]), dtype=part.dtype)(x)


class Stem(_Part):
  """The entry: 3x3 convolution ('cifar'), or 7x7 with stride 2 and 3x3 max pooling with stride 2 ('imagenet')."""

  channels: int = 64
  entry: Literal['cifar', 'imagenet'] = 'cifar'

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W] or f[B, H, W, C] -> f[B, h, w, channels]."""
    if x.ndim not in (3, 4) or not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f'ResNet: inputs are {x.dtype}{list(x.shape)}, expected floats [B, H, W] or [B, H, W, C].')
    x = x[..., None] if x.ndim == 3 else x
    size, stride = (3, 1) if self.entry == 'cifar' else (7, 2)
    x = nn.relu(_normalised(self, _conv(self, x, self.channels, size, stride), train))
    return x if self.entry == 'cifar' else nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Block(_Part):
  """relu(g(x) + r(x)): r two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels; g a 1x1 where needed."""

  channels: int = 64
  stride: int = 1
  bottleneck: bool = False
  dilation: int = 1  # of the 3x3 convolutions

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W, C] -> f[B, H / stride, W / stride, channels (times 4)]."""
    out = self.channels * (4 if self.bottleneck else 1)
    if self.bottleneck:
      layers = ((self.channels, 1, 1), (self.channels, 3, self.stride), (out, 1, 1))
    else:
      layers = ((out, 3, self.stride), (out, 3, 1))
    y = x
    for index, (channels, size, stride) in enumerate(layers):
      y = nn.relu(y) if index else y
      y = _normalised(self, _conv(self, y, channels, size, stride, self.dilation), train)
    if x.shape[-1] != out or self.stride > 1:
      x = _normalised(self, _conv(self, x, out, 1, self.stride), train)
    return nn.relu(x + y)


class Stage(_Part):
  """Residual blocks of one width, the first with the stride."""

  channels: int = 64
  depth: int = 2
  stride: int = 1
  bottleneck: bool = False
  dilation: int = 1  # of the 3x3 convolutions

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W, C] -> f[B, H / stride, W / stride, channels (times 4)]."""
    for index in range(self.depth):
      block = _block(self, self.channels, 1 if index else self.stride, self.dilation)
      x = block.copy(name=f'block{index}')(x, train)
    return x


class Pool(nn.Module):
  """Mean over pixels."""

  def __call__(self, x):
    """f[B, H, W, C] -> f[B, C]."""
    return x.mean(axis=(1, 2))


class ResNet(_Part):
  """Stem, residual stages of width, 2 width, 4 width, ... (each but the first halves the image), mean over pixels.

  Attributes:
    depths: residual blocks of every stage.
    bottleneck: blocks of three convolutions to four times the width (ResNet-50) instead of two (ResNet-18, 34).
    width: channels of the first stage.
    entry: 'cifar', 3x3 convolution, for images of some 32 pixels, or 'imagenet', which quarters the image first.
    norm: 'group' (any batch size) or 'batch' (`trunks.BatchNorm`).
    groups: of GroupNorm; where it does not divide the channels, its greatest common divisor with them.
    impl: of the convolutions, see `Conv`.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'stem', 'stage1', ..., 'pool'}, modules which one after another are the ResNet, with its parameters.
    blocks: the same with every residual block a stage of its own: {'stem', 'stage1_block0', ..., 'pool'}.

  References: He, Zhang, Ren & Sun, Deep Residual Learning for Image Recognition (CVPR 2016),
  https://arxiv.org/abs/1512.03385; Wu & He, Group Normalization (ECCV 2018), https://arxiv.org/abs/1803.08494. Departs
  from the first: in a bottleneck the stride is at the 3x3 convolution, as in most code since; GroupNorm.
  """

  depths: Sequence[int] = (2, 2, 2, 2)
  bottleneck: bool = False
  width: int = 64
  entry: Literal['cifar', 'imagenet'] = 'cifar'

  @property
  def stages(self) -> dict[str, nn.Module]:
    self._check()
    stages = {
      f'stage{i + 1}': _part(self, Stage, channels=width, depth=depth, stride=stride, bottleneck=self.bottleneck)
      for i, (depth, width, stride) in enumerate(self._plan)
    }
    return {'stem': self._stem, **stages, 'pool': Pool(parent=None)}

  @property
  def blocks(self) -> dict[str, nn.Module]:
    self._check()
    blocks = {
      f'stage{i + 1}_block{j}': _block(self, width, 1 if j else stride)
      for i, (depth, width, stride) in enumerate(self._plan)
      for j in range(depth)
    }
    return {'stem': self._stem, **blocks, 'pool': Pool(parent=None)}

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W] or f[B, H, W, C] -> f[B, features]."""
    for name, stage in self.stages.items():
      stage = stage.copy(name=name)
      x = stage(x) if name == 'pool' else stage(x, train)
    return x

  @property
  def _plan(self):
    """(depth, channels, stride) of every stage."""
    return [(depth, self.width * 2**i, 2 if i else 1) for i, depth in enumerate(self.depths)]

  @property
  def _stem(self):
    return _part(self, Stem, channels=self.width, entry=self.entry)

  @nn.nowrap
  def _check(self):
    check_widths('ResNet: depths', self.depths)
    for name in ('width', 'groups'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f'ResNet: {name} is {value!r}, expected a positive whole number.')
    for name, choices in (('norm', NORMS), ('entry', STEMS)):
      if getattr(self, name) not in choices:
        raise InputError(f'ResNet: {name} is {getattr(self, name)!r}, expected one of {choices}.')


def _part(net, kind: type[_Part], **fields) -> _Part:
  """A part with the options of the net, not yet in it."""
  return kind(norm=net.norm, groups=net.groups, impl=net.impl, dtype=net.dtype, parent=None, **fields)


def _block(net, channels: int, stride: int, dilation: int = 1) -> Block:
  return _part(net, Block, channels=channels, stride=stride, bottleneck=net.bottleneck, dilation=dilation)


def resnet18(**options) -> ResNet:
  """ResNet-18, features f[B, 8 width]; options are the fields of `ResNet`.

  >>> list(resnet18(entry='imagenet').stages)
  ['stem', 'stage1', 'stage2', 'stage3', 'stage4', 'pool']
  """
  return ResNet(**{'depths': (2, 2, 2, 2), **options})


def resnet34(**options) -> ResNet:
  """ResNet-34, features f[B, 8 width]; options are the fields of `ResNet`."""
  return ResNet(**{'depths': (3, 4, 6, 3), **options})


def resnet50(**options) -> ResNet:
  """ResNet-50, features f[B, 32 width]; options are the fields of `ResNet`."""
  return ResNet(**{'depths': (3, 4, 6, 3), 'bottleneck': True, **options})
