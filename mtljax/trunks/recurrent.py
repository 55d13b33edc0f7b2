"""Recurrent trunks: stacked GRUs and LSTMs, one way or both ways."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import Array
from mtljax.trunks._sequence import Chain, Tokens, check_choice, check_counts, repack, unpack
from mtljax.trunks.dropout import dropped
from mtljax.trunks.mlp import check_widths

CELLS = {'gru': nn.GRUCell, 'lstm': nn.OptimizedLSTMCell}


class Layer(nn.Module):
  """One recurrent layer; where the mask is False the state stays as it is.

  Attributes:
    features: width of the state.
    cell: 'gru' or 'lstm'.
    bidirectional: a second cell reads from the end, and the outputs lie side by side: 2 features.
    dropout: rate, of the outputs.
    dtype: of the matrix products and the outputs (jnp.bfloat16); the state and the parameters are float32.
  """

  features: int
  cell: Literal['gru', 'lstm'] = 'gru'
  bidirectional: bool = False
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train: bool = False):
    """f[B, N, D], or {'x', 'mask'} -> f[B, N, features (times 2)], or {'x', 'mask'}."""
    x, mask = unpack('Recurrent', inputs)
    y = self._run('forward', x, mask)
    if self.bidirectional:
      y = jnp.concatenate([y, self._run('backward', x, mask)], axis=-1)
    return repack(dropped(self.dropout, y.astype(self.dtype or y.dtype), train), mask)

  @nn.nowrap
  def _run(self, name: str, x: Array, mask: Array | None) -> Array:
    cell = CELLS[self.cell](self.features, dtype=self.dtype, name=name)
    # The state is float32 in bfloat16, a long sum; float64 stays what it is.
    carry = cell.initialize_carry(jax.random.key(0), (x.shape[0], x.shape[-1]))
    carry = jax.tree.map(lambda c: c.astype(jnp.promote_types(x.dtype, c.dtype)), carry)

    def step(cell, carry, xs):
      x, counts = xs
      new, y = cell(carry, x)
      if counts is not None:
        new = jax.tree.map(lambda n, o: jnp.where(counts[:, None], n, o), new, carry)
      return new, y

    scan = nn.scan(
      step,
      variable_broadcast='params',
      split_rngs={'params': False},
      in_axes=1,
      out_axes=1,
      reverse=name == 'backward',
    )
    return scan(cell, carry, (x, mask))[1]


class Recurrent(Chain):
  """Stacked GRUs or LSTMs: f[B, N, D] or int[B, N] tokens -> f[B, N, hidden[-1]], twice that if bidirectional.

  Inputs may be {'x': ..., 'mask': bool[B, N]}, and so are the features then: padding, wherever it stands, has no
  influence in either direction, and is zero in what comes out.

  Attributes:
    hidden: width of every layer's state.
    cell: 'gru' or 'lstm'.
    bidirectional: every layer reads both ways.
    vocabulary: number of tokens; None takes floats.
    embedding: width of the tokens' embedding.
    table: its initialiser (`trunks.pretrained`), or None.
    dropout: rate, of every layer's outputs.
    dtype: of the matrix products and the outputs (jnp.bfloat16); states and parameters are float32.
    stages: {'embed' (tokens only), 'layer_0', ...}, modules which one after another are the trunk.

  >>> list(Recurrent((8, 8), vocabulary=100).stages)
  ['embed', 'layer_0', 'layer_1']

  References: Hochreiter & Schmidhuber, Long Short-Term Memory (1997), https://doi.org/10.1162/neco.1997.9.8.1735; Cho
  et al., Learning Phrase Representations using RNN Encoder-Decoder (2014), https://arxiv.org/abs/1406.1078; Schuster &
  Paliwal, Bidirectional Recurrent Neural Networks (1997), https://doi.org/10.1109/78.650093. The cells are those of
  flax.
  """

  hidden: Sequence[int] = (128,)
  cell: Literal['gru', 'lstm'] = 'gru'
  bidirectional: bool = False
  vocabulary: int | None = None
  embedding: int = 128
  table: Callable | None = None
  dropout: float = 0.0
  dtype: Any = None

  @property
  def stages(self) -> dict[str, nn.Module]:
    check_widths('Recurrent: hidden', self.hidden)
    check_choice('Recurrent', 'cell', self.cell, CELLS)
    stages = {}
    if self.vocabulary is not None:
      check_counts('Recurrent', vocabulary=self.vocabulary, embedding=self.embedding)
      stages['embed'] = Tokens(self.vocabulary, self.embedding, self.table, self.dtype, parent=None)
    for index, width in enumerate(self.hidden):
      layer = Layer(width, self.cell, self.bidirectional, self.dropout, self.dtype, parent=None)
      stages[f'layer_{index}'] = layer
    return stages
