"""Colour spaces against scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color

from mtljax.base import InputError
from mtljax.data.transforms import colour

IMAGES = np.random.default_rng(0).random((2, 5, 6, 3)).astype(np.float32)
CORNERS = np.stack(np.meshgrid(*[[0.0, 0.03, 0.5, 1.0]] * 3), axis=-1).reshape(1, 8, 8, 3).astype(np.float32)

ORACLES = {
  'rgb_to_gray': lambda x: color.rgb2gray(x)[..., None],
  'rgb_to_hsv': color.rgb2hsv,
  'rgb_to_yuv': color.rgb2yuv,
  'rgb_to_ycbcr': lambda x: color.rgb2ycbcr(x) / 255,
  'rgb_to_lab': color.rgb2lab,
}
INVERSES = {
  'hsv_to_rgb': color.hsv2rgb,
  'yuv_to_rgb': color.yuv2rgb,
  'ycbcr_to_rgb': lambda x: color.ycbcr2rgb(255 * x),
}


@pytest.mark.parametrize('images', [IMAGES, CORNERS], ids=['random', 'corners'])
@pytest.mark.parametrize('name', ORACLES)
def test_as_scikit_image(name, images):
  """Grey, black, white and pixels with two largest channels are among the corners."""
  function = getattr(colour, name)
  expected = ORACLES[name](images.astype(np.float64))
  scale = 100 if name == 'rgb_to_lab' else 1
  for found in (jax.jit(function)(images), function(jnp.asarray(images))):
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * scale)


@pytest.mark.parametrize('name', INVERSES)
def test_inverses_as_scikit_image_and_as_inverses(name):
  space = name.removesuffix('_to_rgb')
  images = np.concatenate([IMAGES.reshape(-1, 3), CORNERS.reshape(-1, 3)])
  there = getattr(colour, f'rgb_to_{space}')(images)
  back = jax.jit(getattr(colour, name))(there)
  np.testing.assert_allclose(back, images, atol=3e-6)
  np.testing.assert_allclose(back, INVERSES[name](np.asarray(there, np.float64)), atol=3e-6)


def test_a_hue_is_a_turn():
  hsv = np.array([0.25, 0.8, 0.6], np.float32)
  expected = colour.hsv_to_rgb(hsv)
  for turns in (-2, -1, 1, 3):
    np.testing.assert_allclose(colour.hsv_to_rgb(hsv + [turns, 0, 0]), expected, atol=1e-5)


def test_luma_of_torchvision():
  np.testing.assert_allclose(
    colour.rgb_to_gray(IMAGES, colour.BT601)[..., 0], IMAGES @ np.array([0.299, 0.587, 0.114]), atol=1e-6
  )


def test_gradients_are_finite_everywhere():
  for name in (*ORACLES, *INVERSES):
    function = getattr(colour, name)
    gradient = jax.grad(lambda x, f=function: f(x).sum())(jnp.asarray(CORNERS))
    assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize(
  'images', [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 1), np.float32), np.float32(1)]
)
def test_what_is_no_colour_is_named(images):
  for name in (*ORACLES, *INVERSES):
    with pytest.raises(InputError, match=rf'{name}: images are \w+\[.*\], expected floats \[\.\.\., 3\] in 0\.\.1'):
      getattr(colour, name)(images)
