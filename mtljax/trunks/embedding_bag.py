"""The mean, sum or maximum of a text's word embeddings."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mtljax.trunks._sequence import Chain, Tokens, check_choice, check_counts, unpack
from mtljax.trunks.mlp import MLP, check_widths

MODES = ('mean', 'sum', 'max')


class Bag(nn.Module):
  """The tokens' rows of a table, put together: int[B, N] -> f[B, features]; a text without tokens gives zeros.

  Attributes:
    vocabulary: number of tokens, with that of the padding.
    features: width of a row.
    mode: 'mean', 'sum' or 'max'.
    padding: the token that does not count, None if all do.
    table: initialiser of the table (`trunks.pretrained`), or None.
    dtype: of the rows (jnp.bfloat16), which are added up in float32; the table is float32.
  """

  vocabulary: int
  features: int
  mode: Literal['mean', 'sum', 'max'] = 'mean'
  padding: int | None = 0
  table: Callable | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """int[B, N], or {'x', 'mask'} -> f[B, features]; with a mask the mask decides, without one `padding`."""
    x, mask = unpack('EmbeddingBag', inputs, tokens=True)
    if mask is None:
      mask = jnp.ones(x.shape, bool) if self.padding is None else x != self.padding
    rows = Tokens(self.vocabulary, self.features, self.table, self.dtype, name='tokens')(jnp.where(mask, x, 0))
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    if self.mode == 'max':
      largest = jnp.where(mask[..., None], wide, -jnp.inf).max(axis=1)
      y = jnp.where(mask.any(axis=1)[:, None], largest, 0)
    else:
      y = jnp.where(mask[..., None], wide, 0).sum(axis=1)
      y = y / jnp.maximum(mask.sum(axis=1), 1)[:, None].astype(y.dtype) if self.mode == 'mean' else y
    return y.astype(rows.dtype)


class EmbeddingBag(Chain):
  """Bag of words, then an optional `MLP`: int[B, N] tokens -> f[B, features] or f[B, hidden[-1]].

  Attributes:
    vocabulary: number of tokens, with that of the padding.
    features: width of the embeddings.
    mode: 'mean', 'sum' or 'max' over the tokens that count.
    padding: the token that does not count, None if all do; inputs {'x': int[B, N], 'mask': bool[B, N]} say it
      themselves.
    hidden: widths of dense layers after the bag.
    activation: after every dense layer.
    table: initialiser of the embeddings, `trunks.pretrained(array)`; None draws them from N(0, 1).
    dropout: rate, after every dense layer.
    dtype: of the computation (jnp.bfloat16); parameters are float32.
    stages: {'bag', 'layer_0', ...}, modules which one after another are the trunk.

  >>> list(EmbeddingBag(100, 8, hidden=(16,)).stages)
  ['bag', 'layer_0']

  Reference: Iyyer et al., Deep Unordered Composition Rivals Syntactic Methods for Text Classification (2015),
  https://doi.org/10.3115/v1/P15-1162.
  """

  vocabulary: int
  features: int
  mode: Literal['mean', 'sum', 'max'] = 'mean'
  padding: int | None = 0
  hidden: Sequence[int] = ()
  activation: Callable = nn.relu
  table: Callable | None = None
  dropout: float = 0.0
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    check_counts('EmbeddingBag', vocabulary=self.vocabulary, features=self.features)
    check_choice('EmbeddingBag', 'mode', self.mode, MODES)
    check_widths('EmbeddingBag: hidden', self.hidden)
    bag = Bag(self.vocabulary, self.features, self.mode, self.padding, self.table, self.dtype, parent=None)
    layers = {
      f'layer_{i}': MLP((width,), self.activation, dropout=self.dropout, dtype=self.dtype, parent=None)
      for i, width in enumerate(self.hidden)
    }
    return {'bag': bag, **layers}
