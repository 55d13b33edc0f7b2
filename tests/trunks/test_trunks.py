"""MLP and LeNet: shapes, dtypes, options, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import heads, trunks
from mtljax.base import InputError

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (4, 10, 10))


def test_mlp_flattens_and_applies_the_activation_after_every_layer():
  mlp = trunks.MLP((16, 8))
  variables = random_variables(mlp, IMAGES)
  assert variables['params']['Dense_0']['kernel'].shape == (100, 16)
  y = mlp.apply(variables, IMAGES)
  assert y.shape == (4, 8) and y.min() == 0
  np.testing.assert_array_equal(y, mlp.apply(variables, IMAGES.reshape(4, 5, 20)))


def test_lenet_takes_images_with_and_without_channels():
  lenet = trunks.LeNet((4, 6), hidden=12)
  variables = random_variables(lenet, IMAGES)
  assert variables['params']['Dense_0']['kernel'].shape == (2 * 2 * 6, 12)
  y = lenet.apply(variables, IMAGES)
  assert y.shape == (4, 12)
  np.testing.assert_array_equal(y, lenet.apply(variables, IMAGES[..., None]))


def test_lenet_is_the_same_network_whatever_computes_its_convolutions():
  variables = random_variables(trunks.LeNet((4, 6)), IMAGES)
  outputs = [trunks.LeNet((4, 6), impl=impl).apply(variables, IMAGES) for impl in ('lax', 'im2col')]
  np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('trunk', [trunks.MLP, trunks.LeNet])
def test_options_act(trunk):
  plain, noisy, normal, half = (
    trunk((4,), **options) for options in ({}, {'dropout': 0.5}, {'batch_norm': True}, {'dtype': jnp.bfloat16})
  )
  variables = random_variables(plain, IMAGES)
  y = plain.apply(variables, IMAGES, train=True)
  np.testing.assert_array_equal(y, noisy.apply(variables, IMAGES))
  dropped = noisy.apply(variables, IMAGES, train=True, rngs={'dropout': KEY})
  kept = np.asarray(dropped != 0)
  np.testing.assert_allclose(dropped[kept], 2 * y[kept], rtol=1e-6)
  assert 0 < kept.sum() < np.sum(y != 0)
  low = half.apply(variables, IMAGES)
  assert low.dtype == jnp.bfloat16 and y.dtype == jnp.float32
  np.testing.assert_allclose(low.astype(jnp.float32), y, rtol=0.02, atol=0.05)
  stats = random_variables(normal, IMAGES)
  assert set(stats) == {'params', 'batch_stats'}
  first = 'Dense_0' if trunk is trunks.MLP else 'Conv_0'
  assert set(stats['params'][first]) == {'kernel'}  # BatchNorm has the bias


@pytest.mark.parametrize(
  'trunk, x, message',
  [
    (trunks.MLP(64), IMAGES, r'^MLP: features is 64, expected a sequence of positive whole numbers'),
    (trunks.MLP((8, 0)), IMAGES, r'^MLP: features is \(8, 0\)'),
    (trunks.LeNet(16), IMAGES, r'^LeNet: features is 16'),
    (trunks.LeNet(hidden=0), IMAGES, r'^LeNet: \(hidden,\) is \(0,\), expected a sequence of positive'),
    (trunks.LeNet(), IMAGES[0], r'^LeNet: inputs are float32\[10, 10\], expected floats \[B, H, W\]'),
    (trunks.LeNet(), IMAGES.astype(jnp.uint8), r'^LeNet: inputs are uint8\[4, 10, 10\]'),
    (trunks.LeNet((4, 4, 4)), IMAGES[:, :7], r'^LeNet: images are 7x10, expected at least 8x8'),
  ],
)
def test_bad_arguments_are_named(trunk, x, message):
  with pytest.raises(InputError, match=message):
    trunk.init(KEY, x)


TOKENS, WAVES = jnp.ones((2, 6), jnp.int32), jnp.ones((2, 40, 8))
DROPPING = {
  'MLP': (lambda rate: trunks.MLP((4,), dropout=rate), IMAGES),
  'LeNet': (lambda rate: trunks.LeNet((4,), dropout=rate), IMAGES),
  'Recurrent': (lambda rate: trunks.Recurrent((4,), dropout=rate), WAVES),
  'Conformer': (lambda rate: trunks.Conformer(4, depth=1, heads=2, dropout=rate), WAVES),
  'Transformer': (lambda rate: trunks.Transformer(4, depth=1, heads=2, vocabulary=9, dropout=rate), TOKENS),
  'EmbeddingBag': (lambda rate: trunks.EmbeddingBag(9, 4, hidden=(4,), dropout=rate), TOKENS),
  'Dense': (lambda rate: heads.classify(3, hidden=(4,), dropout=rate), IMAGES),
  'tagging': (lambda rate: heads.tagging(3, hidden=(4,), dropout=rate), {'x': WAVES, 'mask': jnp.ones((2, 40), bool)}),
}


@pytest.mark.parametrize('rate', [-0.5, 1.0, float('nan'), float('inf'), '0.1'], ids=str)
@pytest.mark.parametrize('name', DROPPING)
def test_a_dropout_rate_that_is_none_is_named(name, rate):
  make, x = DROPPING[name]
  jax.eval_shape(make(0.5).init, KEY, x)
  with pytest.raises(InputError, match=r'^dropout: found .*, expected a rate of at least 0 and below 1'):
    jax.eval_shape(make(rate).init, KEY, x)
