"""Attention against flax, decoding with a cache, positions by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks
from mtljax.trunks import decoders, transformer

KEY = jax.random.key(0)
DRAW = np.random.default_rng(1)
X = DRAW.normal(size=(2, 5, 4)).astype(np.float32)
MEMORY = DRAW.normal(size=(2, 3, 6)).astype(np.float32)


@pytest.mark.parametrize('kind', ['self', 'memory'])
def test_attention_is_that_of_flax(kind):
  memory = {'self': X, 'memory': MEMORY}[kind]
  mask = DRAW.random(memory.shape[:2]) < 0.6
  mask[:, 0] = True
  theirs = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=4)
  params = random_variables(theirs, X, memory)['params']
  size = params['key']['kernel'].shape[1:]
  params['key'] = {'kernel': params['key']['kernel']}
  ours = transformer.Attention(2) if kind == 'self' else decoders.MemoryAttention(2, 4)

  def attended(params, seen):
    if kind == 'self':
      return ours.apply({'params': params}, X, seen)
    keys_values = ours.apply({'params': params}, memory, method='keys_values')
    return ours.apply({'params': params}, X, *keys_values, seen)

  their_params = {**params, 'key': {**params['key'], 'bias': 0.7 * jnp.ones(size)}}  # changes nothing

  @jax.jit
  def run(params, their_params):
    expected = theirs.apply({'params': their_params}, X, memory, mask=mask[:, None, None])
    by_row = jnp.broadcast_to(mask[:, None], (2, 5, mask.shape[1]))
    return expected, [attended(params, seen) for seen in ((mask, by_row) if kind == 'self' else (mask,))]

  expected, found = run(params, their_params)
  for y in found:
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_causal_block_sees_what_came_before():
  block = transformer.Block(2, causal=True)
  variables = random_variables(block, X)
  changed = X.copy()
  changed[:, 3] = changed[:, 0]
  run = jax.jit(block.apply)
  before, after = run(variables, X), run(variables, changed)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert (np.abs(before - after)[:, 3:].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize('rotary', [False, True])
def test_decoding_place_by_place_is_the_whole(rotary):
  attention = transformer.Attention(2, causal=True, rotary=rotary)
  variables = random_variables(attention, X)
  cache = transformer.empty_cache(2, 7, 4, 2)
  assert cache['key'].shape == (2, 7, 2, 2)
  step = jax.jit(lambda x, cache, index: attention.apply(variables, x, cache=cache, index=index))
  y, cache = step(X[:, :2], cache, 0)  # two places at once, then one by one
  found = [y]
  for index in range(2, 5):
    y, cache = step(X[:, index : index + 1], cache, index)
    found.append(y)
  expected = jax.jit(lambda: attention.apply(variables, X))()
  np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-4, atol=1e-5)


def test_scores_of_bfloat16_are_float32():
  """Two keys whose scores, 257 and 256, are one number in bfloat16."""
  q = jnp.full((1, 1, 1, 2), 16, jnp.bfloat16)
  k = jnp.array([[[16, 1 / 16], [16, 0]]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.array([1.0, 0.0], jnp.bfloat16).reshape(1, 2, 1, 1)
  y = transformer.attend(q, k, v, None)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(np.float32).squeeze(), 1 / (1 + np.exp(-1 / np.sqrt(2))), rtol=1e-2)


def test_rotary_attention_sees_distances_only():
  attention = transformer.Attention(2, rotary=True)
  variables = random_variables(attention, X)
  run = jax.jit(lambda index: attention.apply(variables, X, index=index))
  np.testing.assert_allclose(run(0), run(11), rtol=1e-3, atol=1e-4)
  plain = transformer.Attention(2).apply(variables, X)
  assert np.abs(run(0) - plain).max() > 1e-3


def test_rotations_by_hand():
  """A vector of four turns in two planes, by the position and by a hundredth of it."""
  y = transformer.rotate(jnp.ones((1, 1, 1, 4)), jnp.array([3]))
  turn = lambda angle: (np.cos(angle) - np.sin(angle), np.sin(angle) + np.cos(angle))
  (a, c), (b, d) = turn(3.0), turn(0.03)
  np.testing.assert_allclose(y.squeeze(), [a, b, c, d], rtol=1e-5)


def test_sinusoids_by_hand():
  expected = [[0, 0, 1, 1], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]]
  np.testing.assert_allclose(transformer.sinusoids(jnp.array([0, 2]), 4), expected, rtol=1e-5)
  assert transformer.sinusoids(jnp.arange(3), 5).shape == (3, 5)


@pytest.mark.parametrize('positions', ['none', 'sinusoidal', 'learned', 'rotary'])
def test_only_without_positions_is_the_order_of_no_concern(positions):
  trunk = trunks.Transformer(4, depth=1, heads=2, hidden=4, positions=positions)
  variables = random_variables(trunk, X)
  order = np.array([3, 0, 4, 1, 2])
  run = jax.jit(trunk.apply)
  same = np.allclose(run(variables, X[:, order]), run(variables, X)[:, order], rtol=1e-4, atol=1e-4)
  assert same == (positions == 'none')


def test_learned_positions_may_start_anywhere():
  embed = transformer.Embed(4, vocabulary=3, positions='learned', max_length=6)
  tokens = np.array([[0, 2], [1, 1]])
  variables = random_variables(embed, tokens)
  params = variables['params']
  rows = params['tokens']['table']['embedding'][tokens]
  np.testing.assert_allclose(embed.apply(variables, tokens, index=3), rows + params['positions'][None, 3:5], rtol=1e-6)
