"""Transformer encoder, and the layers that decoders are made of too."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import Array, InputError
from mtljax.trunks._sequence import Chain, Tokens, check_choice, check_counts, check_heads, repack, unpack
from mtljax.trunks.dropout import dropped

POSITIONS = ('sinusoidal', 'learned', 'rotary', 'none')


def sinusoids(positions: Array, features: int) -> Array:
  """f[N] -> f[N, features]: sines, then cosines, of positions / 10000^(i / half), half = features / 2.

  Reference: Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762 (which interleaves
  sines and cosines).
  """
  angles = _angles(positions, -(-features // 2))
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :features]


def rotate(x: Array, positions: Array) -> Array:
  """Turns (x_i, x_{i + D/2}) by the angle positions / 10000^(2i / D): f[B, N, H, D], D even; scores see distances only.

  Reference: Su et al., RoFormer (2021), https://arxiv.org/abs/2104.09864 (which pairs neighbours).
  """
  angles = _angles(positions, x.shape[-1] // 2)[None, :, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, angles.dtype)), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _angles(positions: Array, size: int) -> Array:
  rates = np.float32(10000.0) ** (-np.arange(size, dtype=np.float32) / size)
  return positions[:, None].astype(jnp.float32) * rates[None]


def empty_cache(batch: int, length: int, features: int, heads: int, dtype: Any = jnp.float32) -> dict[str, Array]:
  """Keys and values f[batch, length, heads, features / heads] of no positions yet, for `Attention`."""
  shape = (batch, length, heads, features // heads)
  return {'key': jnp.zeros(shape, dtype), 'value': jnp.zeros(shape, dtype)}


def attend(q: Array, k: Array, v: Array, seen: Array | None, drop: Callable = lambda weights: weights) -> Array:
  """softmax(q k' / sqrt(d)) v, scores and softmax in float32.

  Args:
    q: f[B, N, heads, d].
    k, v: f[B, M, heads, d].
    seen: bool[B or 1, 1, N or 1, M], or None; a query that sees none gets the mean of all values.
    drop: dropout of the weights.

  Returns:
    f[B, N, heads, d].
  """
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
  scores = scores / np.sqrt(q.shape[-1]).astype(scores.dtype)
  if seen is not None:
    scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
  return jnp.einsum('bhqk,bkhd->bqhd', drop(jax.nn.softmax(scores).astype(v.dtype)), v)


class Attention(nn.Module):
  """Multi-head attention of a sequence to itself, `attend`; to a memory it is `trunks.decoders.MemoryAttention`.

  The parameters are those of `nn.MultiHeadDotProductAttention` without the bias of the keys: it adds the same number
  to all scores of a query, so no loss depends on it.

  Attributes:
    heads: they share the features evenly.
    causal: a place sees itself and those before it.
    rotary: positions enter as rotations of queries and keys (`rotate`).
    dropout: rate, of the attention weights.
    dtype: of the computation (jnp.bfloat16); parameters are float32.

  Reference: Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762.
  """

  heads: int
  causal: bool = False
  rotary: bool = False
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x, mask=None, *, train: bool = False, cache=None, index: Array | int = 0):
    """f[B, N, C] -> f[B, N, C], with a cache also the new cache.

    Args:
      x: f[B, N, C].
      mask: bool[B, M] which places are seen, or bool[B, N, M] by whom; None all. M is N, or the length of the cache.
      train: whether dropout acts.
      cache: of `empty_cache`, keys and values of positions before `index`; x are the positions index, index + 1, ...
        and see all up to their own. It has to be long enough for them.
      index: int32[], may be traced; position of x's first place.
    """
    check_heads('Attention', x.shape[-1], self.heads, self.rotary)
    features = x.shape[-1]
    split = lambda name, bias: nn.DenseGeneral(
      (self.heads, features // self.heads), use_bias=bias, dtype=self.dtype, name=name
    )(x)
    q, k, v = split('query', True), split('key', False), split('value', True)
    positions = index + jnp.arange(x.shape[1])
    if self.rotary:
      q, k = rotate(q, positions), rotate(k, positions)
    if cache is not None:
      start = (0, index, 0, 0)
      write = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)
      cache = {'key': write(cache['key'], k), 'value': write(cache['value'], v)}
      k, v = (cache[name].astype(q.dtype) for name in ('key', 'value'))
    seen = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if cache is not None or self.causal:
      before = (jnp.arange(k.shape[1])[None] <= positions[:, None])[None, None]
      seen = before if seen is None else seen & before
    y = attend(q, k, v, seen, lambda weights: dropped(self.dropout, weights, train))
    y = nn.DenseGeneral(features, axis=(-2, -1), dtype=self.dtype, name='out')(y)
    return y if cache is None else (y, cache)


class FeedForward(nn.Module):
  """Two linear layers and an activation at every place: f[B, N, C] -> f[B, N, C].

  Attributes:
    hidden: width between the two; None is four times C.
    activation: after the first.
    dropout: rate, after the activation.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  hidden: int | None = None
  activation: Callable = nn.gelu
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    """f[B, N, C] -> f[B, N, C]."""
    features = x.shape[-1]
    x = self.activation(nn.Dense(self.hidden or 4 * features, dtype=self.dtype, name='in')(x))
    return nn.Dense(features, dtype=self.dtype, name='out')(dropped(self.dropout, x, train))


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)).

  Attributes:
    heads, causal, rotary: of the attention, see `Attention`.
    hidden, activation: of the feed-forward layers.
    dropout: rate, of attention weights, hidden layers and what is added to x.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  heads: int
  hidden: int | None = None
  causal: bool = False
  rotary: bool = False
  activation: Callable = nn.gelu
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """f[B, N, C], or {'x', 'mask'} -> the same."""
    x, mask = unpack('Block', inputs)
    norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
    add = lambda x, y: x + dropped(self.dropout, y, train)
    attention = Attention(self.heads, self.causal, self.rotary, self.dropout, self.dtype, name='attention')
    x = add(x, attention(norm('attention_norm')(x), mask, train=train))
    feed = FeedForward(self.hidden, self.activation, self.dropout, self.dtype, name='feed_forward')
    return repack(add(x, feed(norm('feed_forward_norm')(x), train)), mask)


class Embed(nn.Module):
  """The entry: a row of a table for every token, or a linear layer; plus positions.

  Attributes:
    features: width.
    vocabulary: number of tokens; None takes floats.
    positions: 'sinusoidal' or 'learned' are added here, 'rotary' and 'none' are not.
    max_length: most places, of learned positions.
    table: initialiser of the table of tokens (`pretrained`), or None.
    dropout: rate.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
  """

  features: int
  vocabulary: int | None = None
  positions: Literal['sinusoidal', 'learned', 'rotary', 'none'] = 'sinusoidal'
  max_length: int = 512
  table: Callable | None = None
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False, index: Array | int = 0):
    """int[B, N] tokens or f[B, N, D], or {'x', 'mask'} -> f[B, N, features], or {'x', 'mask'}; index as in `Attention`.

    A place's position is its index in the array, so padding belongs at the end.
    """
    check_choice('Embed', 'positions', self.positions, POSITIONS)
    x, mask = unpack('Embed', inputs, tokens=self.vocabulary is not None)
    if self.vocabulary is None:
      x = nn.Dense(self.features, dtype=self.dtype, name='linear')(x)
    else:
      x = Tokens(self.vocabulary, self.features, self.table, self.dtype, name='tokens')(x)
    positions = index + jnp.arange(x.shape[1])
    if self.positions == 'sinusoidal':
      x = x + sinusoids(positions, self.features)[None].astype(x.dtype)
    if self.positions == 'learned':
      if x.shape[1] > self.max_length:
        raise InputError(f'Embed: inputs have {x.shape[1]} places, expected at most max_length={self.max_length}.')
      shape = (self.max_length, self.features)
      learned = self.param('positions', nn.initializers.normal(0.02), shape, jnp.float32)
      x = x + jnp.take(learned, positions, axis=0)[None].astype(x.dtype)
    return repack(dropped(self.dropout, x, train), mask)


class Norm(nn.Module):
  """LayerNorm of every place."""

  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """f[B, N, C], or {'x', 'mask'} -> the same."""
    x, mask = unpack('Norm', inputs)
    return repack(nn.LayerNorm(dtype=self.dtype, name='norm')(x), mask)


class Transformer(Chain):
  """Pre-norm transformer encoder: int[B, N] tokens or f[B, N, D] -> f[B, N, features].

  Inputs may be {'x': ..., 'mask': bool[B, N]}, and so are the features then: padding has no influence, and is zero in
  what comes out. Padding belongs at the end, unless positions are 'none' or 'rotary'.

  Attributes:
    features: width.
    depth: number of blocks.
    heads: of every attention.
    hidden: width of the feed-forward layers, 4 features if None.
    vocabulary: number of tokens; None takes floats through a linear layer.
    positions: 'sinusoidal', 'learned' (at most `max_length` places), 'rotary' (rotations of queries and keys) or
      'none'.
    table: initialiser of the embedding of tokens (`trunks.pretrained`), or None.
    causal: a place sees itself and those before it.
    activation: of the feed-forward layers.
    dropout: rate, of embeddings, attention weights, hidden layers and what every layer adds.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'embed', 'block_0', ..., 'norm'}, modules which one after another are the transformer.

  >>> list(Transformer(8, depth=2, vocabulary=100).stages)
  ['embed', 'block_0', 'block_1', 'norm']

  References: Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762; Xiong et al., On Layer
  Normalization in the Transformer Architecture (2020), https://arxiv.org/abs/2002.04745 (norms before the layers, and
  one at the end); Su et al., RoFormer (2021), https://arxiv.org/abs/2104.09864. Departs from them: keys have no bias.
  """

  features: int = 128
  depth: int = 2
  heads: int = 4
  hidden: int | None = None
  vocabulary: int | None = None
  positions: Literal['sinusoidal', 'learned', 'rotary', 'none'] = 'sinusoidal'
  max_length: int = 512
  table: Callable | None = None
  causal: bool = False
  activation: Callable = nn.gelu
  dropout: float = 0.0
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    self._check()
    embed = Embed(
      self.features,
      self.vocabulary,
      self.positions,
      self.max_length,
      self.table,
      self.dropout,
      self.dtype,
      parent=None,
    )
    block = Block(
      self.heads,
      self.hidden,
      self.causal,
      self.positions == 'rotary',
      self.activation,
      self.dropout,
      self.dtype,
      parent=None,
    )
    blocks = {f'block_{i}': block for i in range(self.depth)}
    return {'embed': embed, **blocks, 'norm': Norm(self.dtype, parent=None)}

  @nn.nowrap
  def _check(self):
    optional = {name: getattr(self, name) for name in ('hidden', 'vocabulary') if getattr(self, name) is not None}
    check_counts('Transformer', depth=self.depth, max_length=self.max_length, **optional)
    check_choice('Transformer', 'positions', self.positions, POSITIONS)
    check_heads('Transformer', self.features, self.heads, self.positions == 'rotary')
