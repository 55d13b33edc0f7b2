"""Decoders over tokens, bodies of `heads.Decoder` and `trunks.Seq2Seq`: teacher forcing, and one token at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError, PyTree
from mtljax.trunks._sequence import Tokens, check_choice, check_counts, check_heads, zeroed
from mtljax.trunks.dropout import dropout
from mtljax.trunks.transformer import Attention, Embed, FeedForward, attend, empty_cache


def as_memory(features: PyTree) -> tuple[Array, Array]:
  """What a trunk hands on, as items to attend to: memory f[B, M, C] and mask bool[B, M].

  Args:
    features: f[B, M, C], all of it valid; {'x': f[B, M, C], 'mask': bool[B, M]}; pooled f[B, C], which is one item; or
      images f[B, H, W, C], which are H * W.

  Returns:
    The memory, 0 where the mask is False (whatever stood there), and the mask.

  Raises:
    InputError: features that are none of these.
  """
  x, mask = (features['x'], features.get('mask')) if hasattr(features, 'keys') and 'x' in features else (features, None)
  if not hasattr(x, 'ndim') or x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
    found = f'{x.dtype}{list(x.shape)}' if hasattr(x, 'ndim') else type(x).__name__
    raise InputError(f"decoder: features are {found}, expected floats [B, ..., C] or {{'x': floats, 'mask': bool}}.")
  x = x.reshape(x.shape[0], -1, x.shape[-1])
  mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
  if mask.shape != x.shape[:2] or mask.dtype != bool:
    raise InputError(f'decoder: mask is {mask.dtype}{list(mask.shape)}, expected bool{list(x.shape[:2])}.')
  return zeroed(x, mask), mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoundDecoder:
  """A decoder with its parameters and what it attends to: all that decoding needs, as a pytree.

  Attributes:
    module: the decoder, unbound (static).
    params: its parameters.
    memory: f[B, M, C].
    mask: bool[B, M].
  """

  module: nn.Module = dataclasses.field(metadata={'static': True})
  params: PyTree
  memory: Array
  mask: Array

  @classmethod
  def of(cls, module: nn.Module, memory: Array, mask: Array) -> 'BoundDecoder':
    """From a decoder that is a submodule of the one that runs."""
    return cls(module.clone(parent=None, name=None), module.variables['params'], memory, mask)

  def start(self, width: int, length: int) -> tuple[PyTree, PyTree]:
    """The decoder's `start`."""
    return self.module.apply({'params': self.params}, self.memory, self.mask, width, length, method='start')

  def step(self, tokens: Array, index: Array, context: PyTree, cache: PyTree) -> tuple[Array, PyTree]:
    """The decoder's `step`."""
    return self.module.apply({'params': self.params}, tokens, index, context, cache, method='step')


class MemoryAttention(nn.Module):
  """Multi-head attention to a memory, `attend`, whose keys and values are made once for all tokens.

  The parameters are those of `trunks.transformer.Attention`.
  """

  heads: int
  features: int
  dtype: Any = None

  def setup(self):
    split = lambda bias: nn.DenseGeneral((self.heads, self.features // self.heads), use_bias=bias, dtype=self.dtype)
    self.query, self.key, self.value = split(True), split(False), split(True)
    self.out = nn.DenseGeneral(self.features, axis=(-2, -1), dtype=self.dtype)

  def keys_values(self, memory):
    """f[B, M, C'] -> f[B, M, heads, C / heads] twice."""
    return self.key(memory), self.value(memory)

  def __call__(self, x, keys, values, mask):
    """f[B, N, C] -> f[B, N, C]; `mask` is bool[B, M]."""
    return self.out(attend(self.query(x), keys, values, mask[:, None, None]))


class DecoderBlock(nn.Module):
  """x + attention(norm(x)), then x + attention(norm(x), memory), then x + feed_forward(norm(x))."""

  features: int
  heads: int
  hidden: int | None = None
  rotary: bool = False
  activation: Callable = nn.gelu
  dropout: float = 0.0
  dtype: Any = None

  def setup(self):
    norm = lambda: nn.LayerNorm(dtype=self.dtype)
    self.attention_norm, self.memory_norm, self.feed_forward_norm = norm(), norm(), norm()
    self.attention = Attention(self.heads, True, self.rotary, self.dropout, self.dtype)
    self.memory = MemoryAttention(self.heads, self.features, self.dtype)
    self.feed_forward = FeedForward(self.hidden, self.activation, self.dropout, self.dtype)
    self.drop = dropout(self.dropout)

  def context(self, memory):
    """Keys and values of the memory."""
    return self.memory.keys_values(memory)

  def __call__(self, x, context, mask, train: bool = False):
    """f[B, L, C] -> f[B, L, C]."""
    return self._rest(x, self.attention(self.attention_norm(x), train=train), context, mask, train)

  def step(self, x, index, context, mask, cache):
    """One token of K hypotheses, f[B, K, C] -> the same; the leaves of the cache are f[B, K, length, ...]."""
    flat = lambda z: z.reshape(-1, *z.shape[2:])  # hypotheses are rows of their own, which share the memory
    y, new = self.attention(flat(self.attention_norm(x))[:, None], cache=jax.tree.map(flat, cache), index=index)
    new = jax.tree.map(lambda c, old: c.reshape(old.shape), new, cache)
    return self._rest(x, y.reshape(x.shape), context, mask, False), new

  def _rest(self, x, attended, context, mask, train):
    add = lambda x, y: x + self.drop(y, deterministic=not train)
    x = add(x, attended)
    x = add(x, self.memory(self.memory_norm(x), *context, mask))
    return add(x, self.feed_forward(self.feed_forward_norm(x), train))


class TransformerDecoder(nn.Module):
  """Embedded tokens, blocks of attention to earlier tokens, attention to the memory and feed-forward layers, a norm.

  Attributes:
    vocabulary: number of tokens.
    features: C, width of the states.
    depth: number of blocks.
    heads: of every attention.
    hidden: width of the feed-forward layers, 4 features if None.
    positions: 'sinusoidal', 'rotary' or 'none'.
    activation: of the feed-forward layers.
    dropout: rate, of embeddings, weights of the attention to tokens, hidden layers and what every layer adds.
    dtype: of the computation (jnp.bfloat16); parameters are float32.

  References: Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762; Xiong et al., On Layer
  Normalization in the Transformer Architecture (2020), https://arxiv.org/abs/2002.04745 (norms before the layers, and
  one at the end). Departs from them: keys have no bias, embeddings are not tied to the output layer. With a memory of
  one item (pooled features) the queries and keys of the attention to it choose from nothing and get no gradient.
  """

  vocabulary: int
  features: int = 128
  depth: int = 2
  heads: int = 4
  hidden: int | None = None
  positions: Literal['sinusoidal', 'rotary', 'none'] = 'sinusoidal'
  activation: Callable = nn.gelu
  dropout: float = 0.0
  dtype: Any = None

  def setup(self):
    optional = {} if self.hidden is None else {'hidden': self.hidden}
    check_counts('TransformerDecoder', vocabulary=self.vocabulary, depth=self.depth, **optional)
    check_choice('TransformerDecoder', 'positions', self.positions, ('sinusoidal', 'rotary', 'none'))
    rotary = self.positions == 'rotary'
    check_heads('TransformerDecoder', self.features, self.heads, rotary)
    self.embed = Embed(self.features, self.vocabulary, self.positions, dropout=self.dropout, dtype=self.dtype)
    options = (self.hidden, rotary, self.activation, self.dropout, self.dtype)
    self.blocks = [DecoderBlock(self.features, self.heads, *options) for _ in range(self.depth)]
    self.norm = nn.LayerNorm(dtype=self.dtype)

  def __call__(self, targets, memory, mask, train: bool = False):
    """Tokens int[B, L], memory f[B, M, D], mask bool[B, M] -> f[B, L, C]; state i has seen the tokens 0 to i."""
    x = self.embed(targets, train)
    for block in self.blocks:
      x = block(x, block.context(memory), mask, train)
    return self.norm(x)

  def start(self, memory, mask, width: int, length: int):
    """What decoding `length` tokens of `width` hypotheses needs: a context f[B, ...], a cache f[B, width, ...]."""
    context = [block.context(memory) for block in self.blocks]
    batch = memory.shape[0]
    empty = empty_cache(batch * width, length, self.features, self.heads, context[0][0].dtype)
    empty = jax.tree.map(lambda c: c.reshape(batch, width, *c.shape[1:]), empty)
    return (context, mask), [empty] * self.depth

  def step(self, tokens, index, context, cache):
    """Token number `index` of every hypothesis, int[B, K] -> states f[B, K, C] and the cache that has seen it."""
    context, mask = context
    x, new = self.embed(tokens.reshape(-1, 1), index=index).reshape(*tokens.shape, self.features), []
    for block, own, seen in zip(self.blocks, context, cache):
      x, seen = block.step(x, index, own, mask, seen)
      new.append(seen)
    return self.norm(x), new


class RecurrentDecoder(nn.Module):
  """h_i = cell([e_i, s_{i-1}], h_{i-1}); a = softmax(h_i W memory); s_i = tanh(V [a memory, h_i]).

  Attributes:
    vocabulary: number of tokens.
    features: C, width of embeddings, cell and states s.
    cell: 'gru' or 'lstm'.
    dropout: rate, on embeddings and states.
    dtype: of the computation (jnp.bfloat16); parameters are float32.

  References: Sutskever, Vinyals & Le, Sequence to Sequence Learning with Neural Networks (2014),
  https://arxiv.org/abs/1409.3215; Luong, Pham & Manning, Effective Approaches to Attention-based Neural Machine
  Translation (2015), https://arxiv.org/abs/1508.04025 ("general" attention to everything, input feeding). Departs from
  them: h_0 = tanh(U mean of the memory), so that any trunk can be read; one layer.
  """

  vocabulary: int
  features: int = 128
  cell: Literal['gru', 'lstm'] = 'gru'
  dropout: float = 0.0
  dtype: Any = None

  def setup(self):
    cells = {'gru': nn.GRUCell, 'lstm': nn.OptimizedLSTMCell}
    check_counts('RecurrentDecoder', vocabulary=self.vocabulary, features=self.features)
    check_choice('RecurrentDecoder', 'cell', self.cell, cells)
    self.embed = Tokens(self.vocabulary, self.features, dtype=self.dtype)
    self.first = nn.Dense(self.features, dtype=self.dtype)
    self.recurrence = cells[self.cell](self.features, dtype=self.dtype)
    self.score = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
    self.mix = nn.Dense(self.features, dtype=self.dtype)
    self.drop = dropout(self.dropout)

  def __call__(self, targets, memory, mask, train: bool = False):
    """Tokens int[B, L], memory f[B, M, D], mask bool[B, M] -> f[B, L, C]; state i has seen the tokens 0 to i."""
    context, cache = self.start(memory, mask, 1, targets.shape[1])
    embedded = self.drop(self.embed(targets), deterministic=not train)
    if self.is_initializing():  # parameters are made outside of the scan
      self._advance(cache, embedded[:, :1], context)
    advance = nn.scan(
      lambda self, cache, x: self._advance(cache, x[:, None], context)[::-1],
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=1,
      out_axes=1,
    )
    _, states = advance(self, cache, embedded)
    return self.drop(states[:, :, 0], deterministic=not train)

  def _advance(self, cache, embedded, context):
    memory, keys, mask = context
    carry, fed = cache
    carry, h = self.recurrence(carry, jnp.concatenate([embedded, fed], axis=-1))
    logits = jnp.einsum('bkc,bmc->bkm', h, keys, preferred_element_type=jnp.promote_types(h.dtype, jnp.float32))
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, jnp.finfo(logits.dtype).min)).astype(memory.dtype)
    attended = jnp.einsum('bkm,bmc->bkc', weights, memory)
    states = jnp.tanh(self.mix(jnp.concatenate([attended, h], axis=-1)))
    return states, (carry, states)

  def start(self, memory, mask, width: int, length: int):
    """As that of `TransformerDecoder`; there is nothing whose size is the length."""
    memory = memory if self.dtype is None else memory.astype(self.dtype)
    mean = memory.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(memory.dtype)
    h = jnp.tanh(self.first(mean))
    h = jnp.broadcast_to(h[:, None], (h.shape[0], width, self.features))
    zeros = jnp.zeros_like(h)
    return (memory, self.score(memory), mask), (h if self.cell == 'gru' else (zeros, h), zeros)

  def step(self, tokens, index, context, cache):
    """As that of `TransformerDecoder`."""
    return self._advance(cache, self.embed(tokens), context)
