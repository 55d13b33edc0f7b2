"""BatchNorm over the whole batch, on one device or on many."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtljax import arrays


class BatchNorm(nn.Module):
  """Batch normalisation whose statistics are those of the global batch, whatever the number of devices.

  It reads `arrays.axis()`, the device axis of the step being traced; without one it is a plain `nn.BatchNorm`, whose
  fields, parameters and statistics it has.

  Reference: Ioffe & Szegedy, Batch Normalization (ICML 2015), https://arxiv.org/abs/1502.03167.
  """

  momentum: float = 0.99
  epsilon: float = 1e-5
  dtype: Any = None
  param_dtype: Any = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  scale_init: Callable = nn.initializers.ones
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, ..., C] -> f[B, ..., C]: batch statistics when `train`, running averages otherwise."""
    norm = nn.BatchNorm(
      use_running_average=not train,
      axis_name=arrays.axis(),
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      use_bias=self.use_bias,
      use_scale=self.use_scale,
      scale_init=self.scale_init,
      bias_init=self.bias_init,
    )
    nn.share_scope(self, norm)  # no level of its own in the parameters' paths
    return norm(x)
