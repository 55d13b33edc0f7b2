"""Windows of audio and mel filters, as librosa has them; for numpy and jax arrays."""

import functools
import numbers

import numpy as np

from mtljax.base import Array, InputError


def frames(audio: Array, size: int, step: int) -> Array:
  """Windows f[..., frames, size], the i-th centred at sample i * step, zeros beyond the ends."""
  padded = audio.__array_namespace__().pad(audio, [(0, 0)] * (audio.ndim - 1) + [(size // 2, size // 2)])
  count = 1 + (padded.shape[-1] - size) // step
  return padded[..., np.arange(count)[:, None] * step + np.arange(size)]


def hann(size: int, bins: int) -> np.ndarray:
  """Hann's window (periodic), f64[bins], zeros around it."""
  before = (bins - size) // 2
  return np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size), (before, bins - size - before))


@functools.lru_cache(maxsize=16)
def mel_filters(rate: float, bins: int, mels: int, low: float, high: float, htk: bool) -> np.ndarray:
  """f64[bins / 2 + 1, mels], triangles."""
  if isinstance(mels, bool) or not isinstance(mels, numbers.Integral) or mels < 1:
    raise InputError(f'mels: found {mels!r}, expected a positive whole number.')
  if not 0 <= low < high <= rate / 2:
    raise InputError(f'low and high: found {low} and {high} Hz, expected 0 <= low < high <= {rate / 2}.')
  to_mel, to_hertz = (_htk_mel, _htk_hertz) if htk else (_slaney_mel, _slaney_hertz)
  edges = to_hertz(np.linspace(to_mel(low), to_mel(high), mels + 2))
  left, middle, right = edges[:-2], edges[1:-1], edges[2:]
  hertz = np.linspace(0, rate / 2, bins // 2 + 1)[:, None]
  bank = np.maximum(0, np.minimum((hertz - left) / (middle - left), (right - hertz) / (right - middle)))
  if not bank.any(axis=0).all():
    raise InputError(
      f'mels: found {mels}, expected fewer: band {int((~bank.any(axis=0)).argmax())} falls between two of the '
      f'{bins // 2 + 1} frequencies; a longer window has more.'
    )
  return bank if htk else bank * 2 / (right - left)


def _htk_mel(hertz):
  return 2595 * np.log10(1 + hertz / 700)


def _htk_hertz(mel):
  return 700 * (10 ** (mel / 2595) - 1)


def _slaney_mel(hertz):
  return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4))


def _slaney_hertz(mel):
  return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
