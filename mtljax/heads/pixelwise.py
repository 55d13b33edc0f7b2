"""Heads for images: a label or a number at every pixel."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import InputError
from mtljax.heads.dense import _count


class Pixelwise(nn.Module):
  """A linear layer at every pixel of the features, enlarged bilinearly; the outputs are float32.

  Attributes:
    outputs: numbers per pixel, or None for one without an axis of its own: f[B, H, W].
    size: (H, W) of the outputs; None takes that of the task's inputs.
  """

  outputs: int | None
  size: Sequence[int] | None = None

  @nn.compact
  def __call__(self, features, train: bool = False, inputs=None):
    """f[B, h, w, C] -> f[B, H, W, outputs], or f[B, H, W] when `outputs` is None."""
    if getattr(features, 'ndim', 0) != 4:
      found = f'have shape {features.shape}' if hasattr(features, 'shape') else f'are a {type(features).__name__}'
      raise InputError(f'Pixelwise: features {found}, expected [B, h, w, C].')
    size = self.size
    if size is None:
      if getattr(inputs, 'ndim', 0) not in (3, 4):
        found = f'have shape {inputs.shape}' if hasattr(inputs, 'shape') else f'are of type {type(inputs).__name__}'
        raise InputError(f'Pixelwise: inputs {found}, expected images [B, H, W] or [B, H, W, C]; or give `size`.')
      size = inputs.shape[1:3]
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))  # float64 stays what it is
    y = nn.Dense(1 if self.outputs is None else self.outputs)(x)
    y = jax.image.resize(y, (y.shape[0], *size, y.shape[-1]), 'bilinear')  # linear, so after the layer: fewer channels
    return y.squeeze(-1) if self.outputs is None else y


def pixelwise(outputs: int | None = None, size: Sequence[int] | None = None) -> Pixelwise:
  """Logits f[B, H, W, classes] for `losses.softmax_cross_entropy`, or numbers f[B, H, W] (`outputs=None`: depth).

  >>> pixelwise(13).outputs
  13

  Args:
    outputs: classes, or numbers per pixel (3 for `losses.cosine_distance` of surface normals); None is one number
      without an axis of its own.
    size: (H, W) of the outputs; None takes that of the task's inputs.

  Returns:
    A head for features f[B, h, w, C].

  Raises:
    InputError: a count below 1, a size that is not two of them.
  """
  if outputs is not None:
    _count('pixelwise', 'outputs', outputs)
  if size is not None:
    if not isinstance(size, Sequence) or len(size) != 2:
      raise InputError(f'heads.pixelwise: size is {size!r}, expected (height, width).')
    size = tuple(_count('pixelwise', 'size', n) for n in size)
  return Pixelwise(outputs, size)
