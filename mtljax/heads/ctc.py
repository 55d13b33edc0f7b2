"""Connectionist temporal classification: symbols without their times (speech, handwriting)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mtljax.base import Array, PyTree
from mtljax.heads.dense import _count
from mtljax.trunks._sequence import unpack


class CTC(nn.Module):
  """A linear layer at every frame, to the blank (0) and the symbols (1 to num_symbols); the logits are float32.

  Attributes:
    num_symbols: without the blank.
  """

  num_symbols: int

  @nn.compact
  def __call__(self, features, train: bool = False):
    """f[B, N, C], or {'x', 'mask'} -> {'logits': f[B, N, num_symbols + 1], 'mask': bool[B, N]}."""
    x, mask = unpack('CTC', features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # float64 stays what it is
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
    return {'logits': nn.Dense(self.num_symbols + 1)(x), 'mask': mask}


def ctc(num_symbols: int) -> CTC:
  """Outputs {'logits', 'mask'} for `losses.ctc`, `ctc_greedy` and, as a task's `decode`, `ctc_decode`.

  >>> ctc(26).num_symbols
  26
  """
  return CTC(_count('ctc', 'num_symbols', num_symbols))


def ctc_greedy(outputs: PyTree) -> dict[str, Array]:
  """The symbols of the most probable path: the best of every frame, repeats once, blanks dropped.

  >>> import jax
  >>> frames = jnp.array([[1, 1, 0, 1, 2, 2]])
  >>> found = ctc_greedy({'logits': jax.nn.one_hot(frames, 3), 'mask': jnp.ones((1, 6), bool)})
  >>> found['symbols'].tolist(), found['lengths'].tolist()
  ([[1, 1, 2, 0, 0, 0]], [3])

  Args:
    outputs: {'logits': f[B, N, V + 1], 'mask': bool[B, N]}, as `heads.ctc` gives; frames that do not count are skipped.

  Returns:
    {'symbols': int32[B, N] with zeros at the end, 'lengths': int32[B]}.

  Reference: Graves et al., Connectionist Temporal Classification (ICML 2006), https://doi.org/10.1145/1143844.1143891.
  """
  best, mask = outputs['logits'].argmax(axis=-1).astype(jnp.int32), outputs['mask']
  best = _first(best, mask)
  before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
  kept = (best != 0) & (best != before)
  return {'symbols': _first(best, kept), 'lengths': kept.sum(axis=1, dtype=jnp.int32)}


def ctc_decode(head: Callable, inputs: PyTree) -> dict[str, Array]:
  """`ctc_greedy` as a task's `decode`: (head as a function of the inputs, inputs) -> {'symbols', 'lengths'}."""
  return ctc_greedy(head(inputs))


def _first(x: Array, kept: Array) -> Array:
  """Those of x int[B, N] that are kept, in order, then zeros."""
  order = jnp.argsort(~kept, axis=1, stable=True)
  return jnp.where(jnp.take_along_axis(kept, order, axis=1), jnp.take_along_axis(x, order, axis=1), 0)
