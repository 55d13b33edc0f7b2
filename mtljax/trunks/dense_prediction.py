"""Dilated residual network with spatial pyramid pooling: features for a label at every pixel."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mtljax.trunks._sequence import Chain, check_choice, check_counts
from mtljax.trunks.mlp import check_widths
from mtljax.trunks.resnet import NORMS, STEMS, Stage, Stem, _conv, _normalised, _Part, _part


class SpatialPyramid(_Part):
  """Side by side a 1x1 convolution, one 3x3 for every dilation and the mean over pixels; a 1x1 convolution of them all.

  Attributes:
    channels: of every branch and of the result.
    rates: dilations.
  """

  channels: int = 256
  rates: Sequence[int] = (6, 12, 18)

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W, C] -> f[B, H, W, channels]."""
    branches = [_conv(self, x, self.channels, 1), *(_conv(self, x, self.channels, 3, 1, rate) for rate in self.rates)]
    branches = [nn.relu(_normalised(self, branch, train)) for branch in branches]
    # Without a norm: one pixel normalised over itself would be zero.
    mean = nn.relu(nn.Dense(self.channels, dtype=self.dtype, name='mean')(x.mean(axis=(1, 2), keepdims=True)))
    x = jnp.concatenate([*branches, jnp.broadcast_to(mean, branches[0].shape)], axis=-1)
    return nn.relu(_normalised(self, _conv(self, x, self.channels, 1), train))


class Refine(_Part):
  """The decoder: a 3x3 convolution without dilation, which smooths the grid that dilated ones leave."""

  channels: int = 256

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, H, W, C] -> f[B, H, W, channels]."""
    return nn.relu(_normalised(self, _conv(self, x, self.channels, 3), train))


class DilatedResNet(Chain):
  """ResNet whose later stages dilate instead of halving, a spatial pyramid, a decoder: f[B, H, W, C] -> f[B, h, w, D].

  The image shrinks by 8 (entry 'imagenet') or 2 (entry 'cifar'), rounded up; `heads.pixelwise` returns to its size.

  Attributes:
    depths: residual blocks of every stage; stage 2 has stride 2, stage i > 2 has dilation 2^(i - 2).
    bottleneck, width, entry: see `ResNet`.
    features: D, channels of the pyramid and of the decoder.
    rates: dilations of the pyramid.
    norm: 'group' (any batch size) or 'batch' (`trunks.BatchNorm`).
    groups: of GroupNorm; where it does not divide the channels, its greatest common divisor with them.
    impl: of the convolutions, see `Conv`.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'stem', 'stage1', ..., 'pyramid', 'decoder'}, modules which one after another are the trunk.

  >>> list(DilatedResNet((2, 2, 2)).stages)
  ['stem', 'stage1', 'stage2', 'stage3', 'pyramid', 'decoder']

  References: Yu, Koltun & Funkhouser, Dilated Residual Networks (CVPR 2017), https://arxiv.org/abs/1705.09914; Chen,
  Papandreou, Schroff & Adam, Rethinking Atrous Convolution for Semantic Image Segmentation (DeepLabv3, 2017),
  https://arxiv.org/abs/1706.05587. Departs from them: one layer instead of two residual levels against the grid of
  dilated convolutions; no norm on the pyramid's mean; GroupNorm.
  """

  depths: Sequence[int] = (2, 2, 2, 2)
  bottleneck: bool = False
  width: int = 64
  entry: Literal['cifar', 'imagenet'] = 'imagenet'
  features: int = 256
  rates: Sequence[int] = (6, 12, 18)
  norm: Literal['group', 'batch'] = 'group'
  groups: int = 32
  impl: Literal['auto', 'lax', 'im2col'] = 'auto'
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    check_widths('DilatedResNet: depths', self.depths)
    check_widths('DilatedResNet: rates', self.rates)
    check_counts('DilatedResNet', width=self.width, features=self.features, groups=self.groups)
    check_choice('DilatedResNet', 'norm', self.norm, NORMS)
    check_choice('DilatedResNet', 'entry', self.entry, STEMS)
    stages = {'stem': _part(self, Stem, channels=self.width, entry=self.entry)}
    for i, depth in enumerate(self.depths):
      size = dict(channels=self.width * 2**i, depth=depth, bottleneck=self.bottleneck)
      stages[f'stage{i + 1}'] = _part(self, Stage, stride=2 if i == 1 else 1, dilation=2 ** max(i - 1, 0), **size)
    stages['pyramid'] = _part(self, SpatialPyramid, channels=self.features, rates=tuple(self.rates))
    stages['decoder'] = _part(self, Refine, channels=self.features)
    return stages
