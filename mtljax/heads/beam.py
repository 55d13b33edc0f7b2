"""Greedy and beam search over tokens, in one compiled loop."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax.base import Array, InputError, PyTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Search:
  """How tokens are looked for, and a `Task.decode` for `heads.Decoder` and `heads.NextToken`.

  As a function of a head and inputs it gives `head({**inputs, 'decode': self})['tokens'][:, 0]`: asked in this way, a
  head runs the search itself, with its cache, and gives all hypotheses, best first.

  Attributes:
    max_length: most tokens of a hypothesis, the end counted, the begin not.
    width: hypotheses kept per example; 1 is greedy search.
    alpha: of the length penalty ((5 + length) / 6)^alpha, which the log probability is divided by; 0 compares sums,
      which favours short ones.

  Raises:
    InputError: a length or width that is no positive whole number, a negative alpha.

  >>> Search(max_length=20, width=4)
  Search(max_length=20, width=4, alpha=0.6)

  Reference: Wu et al., Google's Neural Machine Translation System (2016), https://arxiv.org/abs/1609.08144, section 7.
  """

  max_length: int
  width: int = 1
  alpha: float = 0.6

  def __post_init__(self):
    for name in ('max_length', 'width'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f'Search: {name} is {value!r}, expected a positive whole number.')
    if isinstance(self.alpha, bool) or not isinstance(self.alpha, numbers.Real) or not 0 <= self.alpha < float('inf'):
      raise InputError(f'Search: alpha is {self.alpha!r}, expected a number >= 0.')

  def __call__(self, head: Callable[[PyTree], PyTree], inputs: PyTree) -> Array:
    """The best hypotheses, int[B, max_length]: no begin, an end where it was found, then padding."""
    inputs = inputs if isinstance(inputs, Mapping) else {'x': inputs}
    return head({**inputs, 'decode': self})['tokens'][:, 0]


class Hypotheses(NamedTuple):
  """What `beam_search` keeps."""

  index: Array
  last: Array
  tokens: Array
  log_probs: Array
  scores: Array
  lengths: Array
  done: Array
  cache: PyTree


def beam_search(
  step: Callable[[Array, Array, PyTree], tuple[Array, PyTree]],
  cache: PyTree,
  batch: int,
  search: Search,
  *,
  bos: int,
  eos: int,
  pad: int,
) -> dict[str, Array]:
  """The hypotheses y of largest log p(y) / ((5 + |y|) / 6)^alpha that a beam of some width finds.

  At every step all continuations of an example's K hypotheses are compared and the best K kept, by the score that is
  returned in the end. A hypothesis with an end has one continuation, itself, so it stays as long as no K others are
  better. The search stops where all have an end, or at the largest length, where some have none.

  Args:
    step: `(tokens int[B, K], index int32[], cache) -> (log probabilities f[B, K, V] of the next token, cache)`; the
      tokens have the position `index`, the first are `bos`.
    cache: leaves f[B, K, ...], follow their hypotheses.
    batch: B.
    search: length, width K and alpha.
    bos, eos, pad: tokens for begin, end and filling up.

  Returns:
    {'tokens': int32[B, K, max_length], 'scores': f[B, K], 'log_probs': f[B, K]}, best first. Where there are fewer than
    K hypotheses the rest have a score of -inf and are empty.

  References: Sutskever, Vinyals & Le, Sequence to Sequence Learning with Neural Networks (2014),
  https://arxiv.org/abs/1409.3215; Wu et al., Google's Neural Machine Translation System (2016),
  https://arxiv.org/abs/1609.08144. Departs from the latter: no coverage penalty; hypotheses with and without an end
  compete for the same K places, so that a width of 1 is greedy search.
  """
  width, shape = search.width, (batch, search.width)
  only_first = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)[None], shape)  # they are all alike

  def going(h):
    return (h.index < search.max_length) & ~(h.done | jnp.isneginf(h.scores)).all()

  def advance(h):
    log_probs, cache = step(h.last, h.index, h.cache)
    vocabulary = log_probs.shape[-1]
    itself = jnp.where(jnp.arange(vocabulary) == pad, 0.0, -jnp.inf)[None, None]
    totals = h.log_probs[..., None] + jnp.where(h.done[..., None], itself, log_probs)
    lengths = h.lengths + ~h.done
    scores = totals / (((5 + lengths) / 6) ** search.alpha)[..., None]
    scores, best = jax.lax.top_k(scores.reshape(batch, -1), width)
    parent, last = best // vocabulary, (best % vocabulary).astype(jnp.int32)
    # One hypothesis is its own parent: nothing to move.
    follow = lambda x: x if width == 1 else jax.vmap(lambda x, parent: x[parent])(x, parent)
    return Hypotheses(
      index=h.index + 1,
      last=last,
      tokens=follow(h.tokens).at[:, :, h.index].set(last),
      log_probs=jnp.take_along_axis(totals.reshape(batch, -1), best, axis=1),
      scores=scores,
      lengths=follow(lengths),
      done=follow(h.done) | (last == eos),
      cache=jax.tree.map(follow, cache),
    )

  first = Hypotheses(
    index=jnp.zeros((), jnp.int32),
    last=jnp.full(shape, bos, jnp.int32),
    tokens=jnp.full((*shape, search.max_length), pad, jnp.int32),
    log_probs=only_first,
    scores=only_first,
    lengths=jnp.zeros(shape, jnp.int32),
    done=jnp.zeros(shape, bool),
    cache=cache,
  )
  found = jax.lax.while_loop(going, advance, first)
  tokens = jnp.where(jnp.isneginf(found.scores)[..., None], pad, found.tokens)
  return {'tokens': tokens, 'scores': found.scores, 'log_probs': found.log_probs}
