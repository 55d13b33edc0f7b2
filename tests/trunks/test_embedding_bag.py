"""Bags of words by hand, padding, pretrained tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks
from mtljax.base import InputError
from mtljax.sharing.stages import chained

KEY = jax.random.key(0)
TABLE = np.array([[9.0, 9.0], [1.0, -2.0], [3.0, -6.0], [-5.0, -1.0]], np.float32)
TEXTS = np.array([[1, 2, 0, 0], [3, 3, 2, 1], [0, 0, 0, 0]])
EXPECTED = {
  'mean': [[2, -4], [-1.5, -2.5], [0, 0]],
  'sum': [[4, -8], [-6, -10], [0, 0]],
  'max': [[3, -2], [3, -1], [0, 0]],
}


def bag(mode='mean', **options):
  trunk = trunks.EmbeddingBag(4, 2, mode, table=trunks.pretrained(TABLE), **options)
  return trunk, trunk.init(KEY, TEXTS)


@pytest.mark.parametrize('mode', EXPECTED)
def test_by_hand_with_gradients(mode):
  trunk, variables = bag(mode)
  np.testing.assert_allclose(trunk.apply(variables, TEXTS), EXPECTED[mode], rtol=1e-6)
  ones = {'x': TEXTS + 1, 'mask': np.zeros((3, 4), bool)}  # a mask overrules the padding token
  ones['mask'][:, 0] = True
  np.testing.assert_array_equal(trunk.apply(variables, {**ones, 'x': TEXTS}), TABLE[TEXTS[:, 0]])
  gradient = jax.jit(jax.grad(lambda v: trunk.apply(v, TEXTS).sum()))(variables)
  gradient = gradient['params']['bag']['tokens']['table']['embedding']
  assert np.isfinite(gradient).all() and not gradient[0].any() and gradient[1:].any(axis=1).all()


def test_the_padding_token_may_be_another_or_none():
  trunk, variables = bag('sum', padding=3)
  np.testing.assert_allclose(trunk.apply(variables, TEXTS)[1], TABLE[[2, 1]].sum(axis=0))
  trunk, variables = bag('sum', padding=None)
  np.testing.assert_allclose(trunk.apply(variables, TEXTS)[2], 4 * TABLE[0])


def test_what_stands_in_the_padding_has_no_influence():
  trunk, variables = bag('max')
  mask = np.array([[True, True, False, False]] * 3)
  run = jax.jit(lambda x: trunk.apply(variables, {'x': x, 'mask': mask}))
  np.testing.assert_array_equal(run(TEXTS), run(np.where(mask, TEXTS, 100)))
  np.testing.assert_array_equal(run(TEXTS), run(np.where(mask, TEXTS, -1)))


def test_dense_layers_come_after_and_stages_are_the_trunk():
  trunk = trunks.EmbeddingBag(4, 3, hidden=(6, 5), dropout=0.5)
  assert list(trunk.stages) == ['bag', 'layer_0', 'layer_1']
  params = random_variables(trunk, TEXTS)['params']
  assert params['layer_1']['Dense_0']['kernel'].shape == (6, 5)

  @jax.jit
  def run(params):
    apply = lambda trunk, **mode: trunk.apply({'params': params}, TEXTS, **mode)
    stages = chained(trunk).apply(params, dict.fromkeys(trunk.stages, {}), TEXTS, train=False, key=None)[0]
    noisy = apply(trunk, train=True, rngs={'dropout': KEY})
    half = apply(trunk.clone(dtype=jnp.bfloat16))
    return apply(trunk), stages, noisy, half, jax.grad(lambda p: trunk.apply({'params': p}, TEXTS).sum())(params)

  y, stages, noisy, half, gradients = run(params)
  assert y.shape == (3, 5)
  np.testing.assert_allclose(stages, y, rtol=1e-6)
  assert np.abs(noisy - y).max() > 0.01
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(np.float32), y, rtol=0.05, atol=0.05)
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  'options, x, message',
  [
    ({'mode': 'median'}, TEXTS, r"^EmbeddingBag: mode is 'median', expected one of \('mean', 'sum', 'max'\)"),
    ({'vocabulary': 0}, TEXTS, r'^EmbeddingBag: vocabulary is 0, expected a positive whole number'),
    ({'hidden': 4}, TEXTS, r'^EmbeddingBag: hidden is 4, expected a sequence'),
    ({}, TABLE, r'^EmbeddingBag: inputs are float32\[4, 2\], expected \[B, N\] integers'),
    ({'table': trunks.pretrained(TABLE)}, TEXTS, r'^table: found shape \(4, 2\), expected \(5, 3\)'),
  ],
)
def test_bad_arguments_are_named(options, x, message):
  with pytest.raises(InputError, match=message):
    trunks.EmbeddingBag(**{'vocabulary': 5, 'features': 3, **options}).init(KEY, x)
