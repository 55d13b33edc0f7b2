"""Recurrent layers against flax, padding anywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks

X = np.random.default_rng(2).normal(size=(2, 6, 3)).astype(np.float32)
CELLS = {'gru': nn.GRUCell, 'lstm': nn.LSTMCell}


@pytest.mark.parametrize('cell', CELLS)
def test_layers_are_those_of_flax(cell):
  trunk = trunks.Recurrent((4,), cell, bidirectional=True)
  params = random_variables(trunk, X)['params']
  lengths = np.array([4, 6])
  mask = np.arange(6)[None] < lengths[:, None]

  class Both(nn.Module):
    @nn.compact
    def __call__(self, x):
      one, other = (nn.RNN(CELLS[cell](4, name=name)) for name in ('forward', 'backward'))
      return nn.Bidirectional(one, other)(x, seq_lengths=lengths)

  found = jax.jit(lambda p: trunk.apply({'params': p}, {'x': X, 'mask': mask})['x'])(params)
  expected = jax.jit(lambda p: Both().apply({'params': p}, X))(params['layer_0'])
  assert found.shape == (2, 6, 8)
  np.testing.assert_allclose(found, np.where(mask[..., None], expected, 0), rtol=1e-4, atol=1e-5)


def test_padding_may_stand_anywhere():
  trunk = trunks.Recurrent((4, 3), 'lstm', bidirectional=True)
  variables = random_variables(trunk, X)
  kept = np.array([1, 2, 4])
  mask = np.isin(np.arange(6), kept)[None].repeat(2, axis=0)
  run = jax.jit(trunk.apply)
  found = run(variables, {'x': X, 'mask': mask})['x'][:, kept]
  np.testing.assert_allclose(found, run(variables, X[:, kept]), rtol=1e-4, atol=1e-5)


def test_the_state_is_float32_in_bfloat16():
  """h <- h + (1 - h) / 128 a thousand times is 1; a bfloat16 state stands still at 0.75, half a unit a step."""
  trunk = trunks.Recurrent((1,), 'gru', dtype=jnp.bfloat16)
  x = jnp.ones((1, 1000, 1))
  params = jax.tree.map(jnp.zeros_like, random_variables(trunk, x)['params'])
  cell = params['layer_0']['forward']
  cell['iz']['bias'] += 5.0  # the update gate, 1 - 1 / 128 in bfloat16
  cell['in']['bias'] += 20.0
  last = jax.jit(lambda p: trunk.apply({'params': p}, x)[0, -1, 0])(params)
  assert last.dtype == jnp.bfloat16 and last > 0.98


def test_one_way_is_half_of_both_ways():
  both, one = (trunks.Recurrent((4,), bidirectional=both) for both in (True, False))
  params = random_variables(both, X)['params']
  half = {'layer_0': {'forward': params['layer_0']['forward']}}
  y = jax.jit(lambda p: one.apply({'params': p}, X))(half)
  np.testing.assert_allclose(y, jax.jit(lambda p: both.apply({'params': p}, X))(params)[..., :4], rtol=1e-5, atol=1e-6)
