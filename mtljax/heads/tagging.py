"""Heads for sequences: a label at every place, or one for the whole through another head."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtljax.heads.dense import _count
from mtljax.trunks._sequence import unpack
from mtljax.trunks.dropout import dropped
from mtljax.trunks.mlp import check_widths


class Tagging(nn.Module):
  """Optional hidden layers and one linear layer at every place; the outputs are float32.

  Attributes:
    outputs: numbers per place.
    hidden: widths of hidden layers.
    activation: after every hidden layer.
    dropout: rate, after every hidden layer.
    dtype: of the hidden layers (jnp.bfloat16); the last layer and all parameters are float32.
  """

  outputs: int
  hidden: Sequence[int] = ()
  activation: Callable = nn.relu
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, features, train: bool = False):
    """f[B, N, C], or {'x': f[B, N, C], 'mask': bool[B, N]} -> f[B, N, outputs]."""
    check_widths('Tagging: hidden', self.hidden)
    x, _ = unpack('Tagging', features)
    for width in self.hidden:
      x = dropped(self.dropout, self.activation(nn.Dense(width, dtype=self.dtype)(x)), train)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # float64 stays what it is
    return nn.Dense(self.outputs)(x)


def tagging(num_tags: int, **options) -> Tagging:
  """Logits f[B, N, num_tags] for `losses.softmax_cross_entropy` with tags int[B, N]; options are fields of `Tagging`.

  Padding is left out by the batch's mask, bool[B, N] as the losses are.

  >>> tagging(9, hidden=(32,)).outputs
  9
  """
  return Tagging(_count('tagging', 'num_tags', num_tags, at_least=2), **options)


class Pooled(nn.Module):
  """The mean over the places that count, then another head; a sequence without any gives the mean 0.

  Attributes:
    head: a linen module, f[B, C] -> outputs; it is told `train` if it names it.
  """

  head: nn.Module

  @nn.compact
  def __call__(self, features, train: bool = False):
    """f[B, N, C], or {'x': f[B, N, C], 'mask': bool[B, N]} -> outputs of the head."""
    x, mask = unpack('Pooled', features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.shape[1] if mask is None else jnp.maximum(mask.sum(axis=1), 1)[:, None].astype(x.dtype)
    mode = {'train': train} if 'train' in inspect.signature(type(self.head).__call__).parameters else {}
    return self.head(x.sum(axis=1) / count, **mode)


def pooled(head: nn.Module) -> Pooled:
  """A head for the whole of a sequence: its mean, then `head`.

  >>> from mtljax import heads
  >>> pooled(heads.classify(3)).head.outputs
  3
  """
  return Pooled(head)
