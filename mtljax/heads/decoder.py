"""Heads that say tokens one after another: a decoder of the task's own, or the output layer of a shared one."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError
from mtljax.heads.beam import Search, beam_search
from mtljax.trunks.decoders import BoundDecoder, as_memory
from mtljax.trunks.seq2seq import target_tokens


def shifted(tokens: Array, pad: int = 0) -> tuple[Array, Array, Array]:
  """What a decoder reads, what it should say and where that counts, of whole sequences.

  Args:
    tokens: int[B, L + 1], begin, words, end, then padding; jax or numpy.
    pad: the token that fills up.

  Returns:
    targets int[B, L] for `inputs['targets']`, labels int[B, L], mask bool[B, L].

  >>> import numpy as np
  >>> for x in shifted(np.array([[1, 7, 2, 0]])): print(x.tolist())
  [[1, 7, 2]]
  [[7, 2, 0]]
  [[True, True, False]]
  """
  if tokens.ndim != 2 or tokens.shape[1] < 2:
    raise InputError(f'shifted: tokens have shape {tuple(tokens.shape)}, expected [B, L + 1] with L of at least 1.')
  return tokens[:, :-1], tokens[:, 1:], tokens[:, 1:] != pad


class Decoder(nn.Module):
  """A decoder of the task's own, which attends to the features: log p(y_i | y_<i, features), one token after another.

  The task's inputs are {'x': source, 'mask': bool[B, N] (optional), 'targets': int[B, L]}. The trunk or stem reads 'x'
  and 'mask' (`trunks.Source` for those that take no such dictionary), this head 'targets', as they are: begin, words,
  padding at the end; its output i, which has seen the targets 0 to i, is about the token after them. `shifted` makes
  targets, labels and mask of whole sequences; the mask is the batch's. Rows without labels need valid tokens too.

  With `inputs['decode']`, a `Search`, the targets are not read: the head looks for tokens itself, with a cache, and
  gives what `beam_search` does. So `Task(..., decode=heads.Search(max_length=20, width=4))` evaluates on predictions
  int[B, 20]. Begin and padding are never said.

  Attributes:
    decoder: `trunks.TransformerDecoder` or `trunks.RecurrentDecoder`.
    bos, eos, pad: tokens for begin, end and filling up.
    targets: the key under which the inputs hold this task's tokens, where one source has several decoders.

  >>> from mtljax import sharing, trunks
  >>> from mtljax.trunks.transformer import Transformer
  >>> encoder = Transformer(8, depth=1, heads=2, vocabulary=10)
  >>> head = Decoder(trunks.TransformerDecoder(vocabulary=12, features=8, depth=1, heads=2))
  >>> model = sharing.hard(trunks.Source(encoder), {'de': head})
  >>> inputs = {'x': jnp.ones((2, 5), int), 'targets': jnp.ones((2, 4), int)}
  >>> task = {'task': 'de', 'train': False, 'key': None}
  >>> def run(key):
  ...   params, state = model.init(key, {'de': inputs})
  ...   z, _ = model.trunk(params['shared'], {}, inputs, tasks=('de',), train=False, key=None)
  ...   head = lambda x: model.head(params['tasks']['de'], {}, z, inputs=x, **task)[0]
  ...   return head(inputs), Search(max_length=3)(head, inputs)
  >>> [x.shape for x in jax.eval_shape(run, jax.random.key(0))]
  [(2, 4, 12), (2, 3)]

  References: Vaswani et al., Attention Is All You Need (2017), https://arxiv.org/abs/1706.03762; Sutskever, Vinyals &
  Le, Sequence to Sequence Learning with Neural Networks (2014), https://arxiv.org/abs/1409.3215.
  """

  decoder: nn.Module
  bos: int = 1
  eos: int = 2
  pad: int = 0
  targets: str = 'targets'

  @nn.compact
  def __call__(self, features, inputs=None, train: bool = False):
    """f[B, M, C], {'x', 'mask'}, pooled f[B, C] or images f[B, H, W, C] -> f[B, L, vocabulary], or hypotheses."""
    memory, mask = as_memory(features)
    vocabulary = self.decoder.vocabulary
    ids = _checked('Decoder', self, vocabulary, vocabulary)
    if _decodes(inputs):
      bound = BoundDecoder.of(self.decoder, memory, mask)
      return search_tokens(bound, self.variables['params']['logits'], inputs['decode'], ids, vocabulary)
    states = self.decoder(target_tokens('Decoder', inputs, self.targets), memory, mask, train)
    return nn.Dense(vocabulary, name='logits')(_real(states))


class NextToken(nn.Module):
  """The output layer of a task over a decoder that tasks share, `trunks.Seq2Seq`: logits of every next token.

  Inputs, labels, mask and `inputs['decode']` are those of `Decoder`. (Cached decoding needs the trunk's 'decoder', so
  an architecture that hands on the features as they are: `sharing.hard`.)

  Attributes:
    vocabulary: number of tokens, at most that of the trunk.
    bos, eos, pad: tokens for begin (of this task: it can tell the decoder what to say), end and filling up.
  """

  vocabulary: int
  bos: int = 1
  eos: int = 2
  pad: int = 0

  @nn.compact
  def __call__(self, features, inputs=None, train: bool = False):
    """{'x': f[B, L, C], 'mask'?, 'decoder'?} or f[B, L, C] -> logits f[B, L, vocabulary], or hypotheses."""
    if _decodes(inputs):
      bound = features.get('decoder') if isinstance(features, Mapping) else None
      if not isinstance(bound, BoundDecoder):
        raise InputError('NextToken: the features hold no decoder, expected those of trunks.Seq2Seq with train=False.')
      if bound.module.vocabulary < self.vocabulary:
        most = bound.module.vocabulary
        raise InputError(f'NextToken: vocabulary is {self.vocabulary}, expected at most {most}, that of the decoder.')
      ids = _checked('NextToken', self, bound.module.vocabulary, self.vocabulary)
      return search_tokens(bound, self.variables['params']['logits'], inputs['decode'], ids, self.vocabulary)
    if isinstance(features, Mapping) and 'x' not in features:
      raise InputError("NextToken: the features hold no states, expected inputs with 'targets', or with 'decode'.")
    states = features['x'] if isinstance(features, Mapping) else features
    return nn.Dense(self.vocabulary, name='logits')(_real(states))


class _Ids(NamedTuple):
  bos: int
  eos: int
  pad: int


@functools.partial(jax.jit, static_argnames=('ids', 'vocabulary'))
def search_tokens(bound: BoundDecoder, output_layer, search: Search, ids: _Ids, vocabulary: int) -> dict[str, Array]:
  """`beam_search` with a decoder and the parameters of an output layer; compiled once for all batches of a shape."""
  context, cache = bound.start(search.width, search.max_length)
  silent = jnp.isin(jnp.arange(vocabulary), jnp.array([t for t in (ids.bos, ids.pad) if t != ids.eos]))[None, None]

  def step(tokens, index, cache):
    states, cache = bound.step(tokens, index, context, cache)
    log_probs = jax.nn.log_softmax(nn.Dense(vocabulary).apply({'params': output_layer}, _real(states)))
    return jnp.where(silent, -jnp.inf, log_probs), cache

  return beam_search(step, cache, bound.memory.shape[0], search, **ids._asdict())


def _decodes(inputs) -> bool:
  search = inputs.get('decode') if isinstance(inputs, Mapping) else None
  if search is not None and not isinstance(search, Search):
    raise InputError(f"inputs['decode']: found {search!r}, expected an mtljax.heads.Search.")
  return search is not None


def _checked(owner, head, read: int, said: int) -> _Ids:
  ids = _Ids(head.bos, head.eos, head.pad)
  if not (0 <= head.bos < read and 0 <= head.eos < said and 0 <= head.pad < said) or head.pad in (head.bos, head.eos):
    raise InputError(
      f'{owner}: bos, eos, pad are {tuple(ids)}, expected tokens of a vocabulary of {said}, pad unlike the others.'
    )
  return ids


def _real(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))  # float64 stays what it is
