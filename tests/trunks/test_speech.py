"""The conformer's parts: lengths, depthwise convolution against flax, a block by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks
from mtljax.trunks import speech

KEY = jax.random.key(0)
DRAW = np.random.default_rng(3)


@pytest.mark.parametrize('frames', [1, 3, 4, 5, 8, 9])
def test_every_fourth_frame_counts(frames):
  trunk = trunks.Conformer(8, depth=1)
  mask = jax.ShapeDtypeStruct((2, frames), bool)
  x = jax.ShapeDtypeStruct((2, frames, 7), np.float32)
  y = jax.eval_shape(lambda inputs: trunk.init_with_output(KEY, inputs)[0], {'x': x, 'mask': mask})
  assert y['x'].shape == (2, -(-frames // 4), 8) and y['mask'].shape == y['x'].shape[:2]


def test_frame_i_is_centred_at_frame_4i():
  """What frame i sees reaches three frames to either side of 4i."""
  stage = speech.Subsample(2, channels=2)
  x = DRAW.normal(size=(1, 13, 3)).astype(np.float32)
  variables = random_variables(stage, x)
  # Positive weights, biases and inputs: no ReLU hides an influence.
  variables, x = jax.tree.map(jnp.abs, (variables, x))
  seen = jax.jit(jax.jacobian(lambda x: stage.apply(variables, x)[0, :, 0]))(x)[:, 0].any(axis=-1)
  expected = np.abs(np.arange(13)[None] - 4 * np.arange(4)[:, None]) <= 3
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize('size', [1, 5, 15])
def test_depthwise_convolution_is_that_of_flax(size):
  x = DRAW.normal(size=(2, 6, 4)).astype(np.float32)
  ours, theirs = speech.DepthwiseConv(size), nn.Conv(4, (size,), feature_group_count=4)
  variables = random_variables(theirs, x)
  assert jax.tree.map(jnp.shape, jax.eval_shape(ours.init, KEY, x)) == jax.tree.map(jnp.shape, variables)
  found, expected = jax.jit(lambda v, x: (ours.apply(v, x), theirs.apply(v, x)))(variables, x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_block_by_hand():
  """With last layers that give their biases b only, x + b1 / 2 + b2 + b3 + b4 / 2, normalised."""
  block = speech.ConformerBlock(2, kernel_size=3)
  x = DRAW.normal(size=(2, 5, 4)).astype(np.float32)
  params = random_variables(block, x)['params']
  params['norm'] = {'scale': jnp.ones(4), 'bias': jnp.zeros(4)}
  biases = DRAW.normal(size=(4, 4)).astype(np.float32)
  for name, bias in zip(('feed_forward_0', 'attention', 'conv', 'feed_forward_1'), biases):
    out = params[name]['out']
    out['kernel'], out['bias'] = jnp.zeros_like(out['kernel']), jnp.asarray(bias)
  y = jax.jit(block.apply)({'params': params}, x)
  moved = x + biases[0] / 2 + biases[1] + biases[2] + biases[3] / 2
  expected = (moved - moved.mean(-1, keepdims=True)) / np.sqrt(moved.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
