"""Heads for sequences: places, means over the places that count, dtypes, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import heads, trunks
from mtljax.base import InputError

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
MASK = np.arange(5)[None] < np.array([3, 5])[:, None]
SEQUENCE = {'x': X, 'mask': MASK}


def test_tagging_is_one_layer_at_every_place():
  head = heads.tagging(3)
  variables = random_variables(head, X)
  layer = jax.tree.map(np.asarray, variables['params']['Dense_0'])
  expected = X @ layer['kernel'] + layer['bias']
  np.testing.assert_allclose(head.apply(variables, X), expected, rtol=1e-5, atol=1e-6)
  found = head.apply(variables, SEQUENCE)
  np.testing.assert_allclose(found[MASK], expected[MASK], rtol=1e-5, atol=1e-6)


def test_features_of_seq2seq_are_read_in_evaluation_too():
  trunk = trunks.Seq2Seq(trunks.MLP((4,)), trunks.RecurrentDecoder(5, 4))
  inputs = {'x': X[:, 0], 'targets': np.array([[1, 3, 0], [1, 2, 4]])}
  variables = random_variables(trunk, inputs)
  features = jax.jit(trunk.apply)(variables, inputs)
  assert set(features) == {'x', 'mask', 'decoder'}
  only = {name: features[name] for name in ('x', 'mask')}
  for head in (heads.tagging(3), heads.pooled(heads.regress())):
    own = random_variables(head, only)
    np.testing.assert_array_equal(head.apply(own, features), head.apply(own, only))
  with pytest.raises(InputError, match=r"^Tagging: inputs have the keys \['decoder'\], expected"):
    heads.tagging(3).init(KEY, {'decoder': features['decoder']})


def test_tagging_options_act():
  head = heads.tagging(3, hidden=(32,), dropout=0.5, dtype=jnp.bfloat16)
  variables = random_variables(head, X)
  assert variables['params']['Dense_1']['kernel'].shape == (32, 3)
  still = head.apply(variables, X)
  assert still.dtype == jnp.float32
  np.testing.assert_allclose(still, heads.tagging(3, hidden=(32,)).apply(variables, X), atol=0.05)
  assert np.any(still != head.apply(variables, X, train=True, rngs={'dropout': KEY}))


@pytest.mark.parametrize('garbage', [100.0, np.nan])
def test_pooled_is_the_mean_over_the_places_that_count(garbage):
  head = heads.pooled(heads.classify(3))
  variables = random_variables(head, X)
  assert set(variables['params']) == {'head'}
  layer = jax.tree.map(np.asarray, variables['params']['head']['Dense_0'])
  found = head.apply(variables, {'x': np.where(MASK[..., None], X, np.float32(garbage)), 'mask': MASK})
  mean = np.stack([X[0, :3].mean(axis=0), X[1].mean(axis=0)])
  np.testing.assert_allclose(found, mean @ layer['kernel'] + layer['bias'], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1], head.apply(variables, X)[1], rtol=1e-4, atol=1e-5)
  nothing = head.apply(variables, {'x': X, 'mask': np.zeros_like(MASK)})
  np.testing.assert_allclose(nothing, np.broadcast_to(layer['bias'], (2, 3)))


def test_pooled_passes_the_mode_on():
  head = heads.pooled(heads.classify(3, hidden=(32,), dropout=0.5))
  variables = random_variables(head, X)
  still = head.apply(variables, SEQUENCE)
  assert np.any(still != head.apply(variables, SEQUENCE, train=True, rngs={'dropout': KEY}))


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^heads.tagging: num_tags is 1, expected a whole number of at least 2'):
    heads.tagging(1)
  with pytest.raises(InputError, match=r'^Tagging: hidden is 32, expected a sequence'):
    heads.tagging(3, hidden=32).init(KEY, X)
  with pytest.raises(InputError, match=r'^Tagging: inputs are float32\[2, 4\], expected \[B, N, D\] floats'):
    heads.tagging(3).init(KEY, X[:, 0])
  with pytest.raises(InputError, match=r'^Pooled: inputs are float32\[2, 4\]'):
    heads.pooled(heads.regress()).init(KEY, X[:, 0])
