"""Colour spaces of images f[..., 3] in 0..1, for jax and numpy arrays; conventions and numbers of scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import Array, InputError

# As tuples: nothing creates an array at import.
REC709 = (0.2125, 0.7154, 0.0721)  # luma of scikit-image's rgb2gray
BT601 = (0.299, 0.587, 0.114)  # luma of torchvision, and the Y of YUV and YCbCr
YUV = (BT601, (-0.14714119, -0.28886916, 0.43601035), (0.61497538, -0.51496512, -0.10001026))
YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
YCBCR_OFFSET = (16.0, 128.0, 128.0)
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees


def rgb_to_gray(images: Array, weights: tuple[float, float, float] = REC709) -> Array:
  """Luma, the weighted sum of red, green and blue: f[..., 3] -> f[..., 1].

  >>> print(rgb_to_gray(jnp.array([[1.0, 0.0, 0.0]])))
  [[0.2125]]

  Args:
    images: f[..., 3].
    weights: `REC709` as scikit-image, or `BT601` as torchvision.

  Raises:
    InputError: images that are no floats or have another number of channels; so for all functions here.
  """
  return _matrix('rgb_to_gray', images, np.array([weights]))


def rgb_to_hsv(images: Array) -> Array:
  """Hue, saturation, value, all in 0..1 (a hue of 1 is a turn); a grey pixel has hue and saturation 0.

  >>> print(rgb_to_hsv(jnp.array([0.0, 0.5, 0.0])).round(4))
  [0.3333 1.     0.5   ]
  """
  images = _images('rgb_to_hsv', images)
  red, green, blue = images[..., 0], images[..., 1], images[..., 2]
  value, span = images.max(-1), images.max(-1) - images.min(-1)
  safe = jnp.where(span == 0, 1, span)
  # The last of the channels that hold the maximum decides, as in scikit-image.
  turn = jnp.where(red == value, (green - blue) / safe, 0)
  turn = jnp.where(green == value, 2 + (blue - red) / safe, turn)
  turn = jnp.where(blue == value, 4 + (red - green) / safe, turn)
  hue = jnp.where(span == 0, 0, (turn / 6) % 1)
  return jnp.stack([hue, span / jnp.where(value == 0, 1, value), value], axis=-1)


def hsv_to_rgb(images: Array) -> Array:
  """The inverse of `rgb_to_hsv`; hues outside 0..1 are taken modulo 1.

  >>> print(hsv_to_rgb(jnp.array([1 / 3, 1.0, 0.5])).round(4))
  [0.  0.5 0. ]
  """
  images = _images('hsv_to_rgb', images)
  hue, saturation, value = (images[..., None, i] for i in range(3))
  place = (jnp.array([5, 3, 1], images.dtype).reshape((1,) * (hue.ndim - 1) + (3,)) + hue * 6) % 6
  return value - value * saturation * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def rgb_to_yuv(images: Array) -> Array:
  """Analogue PAL: Y in 0..1, U in -0.436..0.436, V in -0.615..0.615 (BT.601)."""
  return _matrix('rgb_to_yuv', images, np.array(YUV))


def yuv_to_rgb(images: Array) -> Array:
  """The inverse of `rgb_to_yuv`."""
  return _matrix('yuv_to_rgb', images, np.linalg.inv(np.array(YUV)))


def rgb_to_ycbcr(images: Array) -> Array:
  """Digital video: scikit-image's Y in 16..235, Cb and Cr in 16..240 (BT.601), divided by 255, so in 0..1.

  >>> print((255 * rgb_to_ycbcr(jnp.array([1.0, 1.0, 1.0]))).round(2))
  [235. 128. 128.]
  """
  return _matrix('rgb_to_ycbcr', images, np.array(YCBCR) / 255, np.array(YCBCR_OFFSET) / 255)


def ycbcr_to_rgb(images: Array) -> Array:
  """The inverse of `rgb_to_ycbcr`."""
  inverse = np.linalg.inv(np.array(YCBCR) / 255)
  return _matrix('ycbcr_to_rgb', images, inverse, -inverse @ (np.array(YCBCR_OFFSET) / 255))


def rgb_to_lab(images: Array) -> Array:
  """CIE L*a*b* of sRGB with white D65 (2 degrees): L in 0..100, a and b in about -100..100.

  >>> print(rgb_to_lab(jnp.array([1.0, 1.0, 1.0])).round(1)[0])
  100.0
  """
  images = _images('rgb_to_lab', images)
  linear = jnp.where(images > 0.04045, ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
  t = _matrix('rgb_to_lab', linear, np.array(XYZ) / np.array(WHITE)[:, None])
  x, y, z = jnp.moveaxis(jnp.where(t > 0.008856, jnp.cbrt(jnp.maximum(t, 0.008856)), 7.787 * t + 16 / 116), -1, 0)
  return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _images(name: str, images: Array) -> Array:
  images = jnp.asarray(images)
  if not jnp.issubdtype(images.dtype, jnp.floating) or images.ndim < 1 or images.shape[-1] != 3:
    raise InputError(f'{name}: images are {images.dtype}{list(images.shape)}, expected floats [..., 3] in 0..1.')
  return images


def _matrix(name: str, images: Array, matrix: np.ndarray, offset: np.ndarray | None = None) -> Array:
  images = _images(name, images)
  out = jnp.matmul(images, jnp.asarray(matrix.T, images.dtype), precision=jax.lax.Precision.HIGHEST)
  return out if offset is None else out + jnp.asarray(offset, images.dtype).reshape((1,) * (out.ndim - 1) + (-1,))
