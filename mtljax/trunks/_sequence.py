"""What trunks for sequences share: inputs with or without a mask, tokens, stages in a row."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import Array, InputError, PyTree

SEQUENCE = "[B, N, D] floats, or {'x': such an array, 'mask': bool[B, N] (optional)}"
TOKENS = "[B, N] integers, or {'x': such an array, 'mask': bool[B, N] (optional)}"


def unpack(owner: str, inputs: PyTree, *, tokens: bool = False) -> tuple[Array, Array | None]:
  """A sequence and which of its places count (None: all of them); the others are zeroed, whatever they hold.

  Args:
    owner: the layer, for errors.
    inputs: f[B, N, D] (int[B, N] with `tokens`), or {'x': such an array, 'mask': bool[B, N] (optional)}. Other
      entries are left alone: a task's inputs hold what its head reads ('targets') beside what the trunk reads, and
      features what decoding needs ('decoder').
    tokens: whether integers are expected.

  Returns:
    x and mask.

  Raises:
    InputError: anything else.
  """
  expected = TOKENS if tokens else SEQUENCE
  x, mask = inputs, None
  if isinstance(inputs, Mapping):
    if 'x' not in inputs:
      raise InputError(f'{owner}: inputs have the keys {sorted(inputs)}, expected {expected}.')
    x, mask = inputs['x'], inputs.get('mask')
  x = jnp.asarray(x)
  kind, ndim = (jnp.integer, 2) if tokens else (jnp.floating, 3)
  if x.ndim != ndim or not jnp.issubdtype(x.dtype, kind):
    raise InputError(f'{owner}: inputs are {x.dtype}{list(x.shape)}, expected {expected}.')
  if mask is not None:
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_ or mask.shape != x.shape[:2]:
      raise InputError(f"{owner}: inputs['mask'] is {mask.dtype}{list(mask.shape)}, expected bool{list(x.shape[:2])}.")
  return zeroed(x, mask), mask


def repack(x: Array, mask: Array | None) -> PyTree:
  """What a layer hands on: {'x', 'mask'} with zeros at places that do not count, or x where all of them do."""
  return x if mask is None else {'x': zeroed(x, mask), 'mask': mask}


def zeroed(x: Array, mask: Array | None) -> Array:
  """x [B, N, ...] with zeros where the mask bool[B, N] is False."""
  if mask is None:
    return x
  return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))


class Chain(nn.Module):
  """A trunk that is its `stages` one after another, under their names."""

  @property
  def stages(self) -> dict[str, nn.Module]:
    raise NotImplementedError

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """Inputs of the first stage -> features, of the last."""
    for name, stage in self.stages.items():
      inputs = stage.copy(name=name)(inputs, train)
    return inputs


class Tokens(nn.Module):
  """A row of a table for every token: int[B, N] -> f[B, N, features].

  Attributes:
    vocabulary: number of tokens, 0 to vocabulary - 1.
    features: width of a row.
    table: initialiser of the table (`pretrained`); None draws it from N(0, 1).
    dtype: of the rows; the table is float32.
  """

  vocabulary: int
  features: int
  table: Callable | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """int[B, N], or with a mask -> f[B, N, features], or with it."""
    x, mask = unpack('Tokens', inputs, tokens=True)
    init = self.table or nn.initializers.normal(1.0)
    embed = nn.Embed(self.vocabulary, self.features, dtype=self.dtype, embedding_init=init, name='table')
    return repack(embed(x), mask)


def pretrained(table) -> Callable:
  """An initialiser that gives the rows of `table` f[vocabulary, features]: embeddings learned elsewhere.

  >>> import jax, numpy as np
  >>> print(pretrained(np.eye(2))(jax.random.key(0), (2, 2)))
  [[1. 0.]
   [0. 1.]]
  """

  def init(key, shape, dtype=jnp.float32):
    found = jnp.asarray(table, dtype)
    if found.shape != tuple(shape):
      raise InputError(f'table: found shape {found.shape}, expected {tuple(shape)}, [vocabulary, features].')
    return found

  return init


def check_counts(owner: str, **counts) -> None:
  """Raises unless every argument is a positive whole number."""
  for name, value in counts.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
      raise InputError(f'{owner}: {name} is {value!r}, expected a positive whole number.')


def check_choice(owner: str, name: str, value, choices) -> None:
  """Raises unless the argument is one of the choices."""
  if value not in choices:
    raise InputError(f'{owner}: {name} is {value!r}, expected one of {tuple(choices)}.')


def check_heads(owner: str, features: int, heads: int, rotary: bool) -> None:
  """Raises unless the heads divide the features, in parts of an even size where they are rotated."""
  check_counts(owner, features=features, heads=heads)
  if features % heads or (rotary and features // heads % 2):
    even = ' in parts of an even size (rotary positions)' if rotary else ''
    closest = math.gcd(features, heads)
    raise InputError(f'{owner}: heads is {heads}, expected a divisor of features={features}{even}, such as {closest}.')
