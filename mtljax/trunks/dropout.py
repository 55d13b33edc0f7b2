"""Dropout whose rate is checked: `flax.linen.Dropout` computes with any number."""

import numbers

import flax.linen as nn

from mtljax.base import Array, InputError


def dropout(rate: float) -> nn.Dropout:
  """The layer. Raises unless 0 <= rate < 1."""
  check_rate(rate)
  return nn.Dropout(rate)


def dropped(rate: float, x: Array, train: bool) -> Array:
  """Dropout of x, inside a compact method. Raises unless 0 <= rate < 1."""
  check_rate(rate)
  return nn.Dropout(rate, deterministic=not train)(x) if rate else x


def check_rate(rate) -> None:
  """Raises unless 0 <= rate < 1."""
  if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
    raise InputError(f'dropout: found {rate!r}, expected a rate of at least 0 and below 1.')
