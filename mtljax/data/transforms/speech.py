"""Speech: front ends, cleaning of recordings, and SpecAugment.

Front ends (`log_mel`, `mfcc`, `standardise`) take numpy arrays and give numpy arrays, or take and give jax arrays and
can be jitted; recordings of many lengths are best done once, with numpy. Conventions and numbers are librosa's.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import Array, Batch, InputError
from mtljax.data.transforms.spectra import frames, hann, mel_filters

Step = Callable[[Array, Array, Array], tuple[Array, Array]]  # (key, x f[B, L, F], mask bool[B, L]) -> x, mask


def log_mel(
  audio: Array,
  rate: float,
  *,
  mels: int = 40,
  window: float = 0.025,
  hop: float = 0.010,
  low: float = 0.0,
  high: float | None = None,
  htk: bool = False,
  floor: float = 1e-10,
) -> Array:
  """Natural logarithm of the power in mel bands: f[..., samples] -> f[..., frames, mels].

  Frame i is centred at sample i * step, step = round(hop * rate), zeros beyond the ends: 1 + samples // step frames.

  >>> log_mel(np.zeros(800, np.float32), 8000, mels=24).shape
  (11, 24)

  Args:
    audio: f[..., samples].
    rate: samples per second.
    mels: number of bands.
    window, hop: in seconds; the window is Hann's, the transform has the next power of two of samples.
    low, high: in Hz, where the bands begin and end; None is half the rate.
    htk: the mel scale 2595 log10(1 + Hz / 700) and triangles of height 1, instead of Slaney's scale and area.
    floor: the least power.

  Raises:
    InputError: audio that is no floats, sizes that are not positive, more bands than the transform tells apart.

  Reference: Davis & Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition in
  Continuously Spoken Sentences (1980), https://doi.org/10.1109/TASSP.1980.1163420.
  """
  xp = _namespace('log_mel', audio)
  size, step = _frame('log_mel', rate, window, hop)
  bins = 2 ** math.ceil(math.log2(size))
  bank = mel_filters(rate, bins, mels, low, rate / 2 if high is None else high, htk)
  taper = hann(size, bins).astype(audio.dtype).reshape((1,) * audio.ndim + (-1,))
  power = xp.abs(xp.fft.rfft(frames(audio, bins, step) * taper)) ** 2
  with jax.default_matmul_precision('highest'):
    return xp.log(xp.maximum(power @ bank.astype(audio.dtype), floor)).astype(audio.dtype)


def mfcc(audio: Array, rate: float, *, coefficients: int = 13, mels: int = 40, **options: Any) -> Array:
  """Mel-frequency cepstral coefficients, the orthonormal DCT of `log_mel` in decibels: f[..., frames, coefficients].

  >>> mfcc(np.zeros(800, np.float32), 8000).shape
  (11, 13)

  Args:
    audio, rate, mels, options: as for `log_mel`.
    coefficients: how many, the first being the loudness.

  Raises:
    InputError: more coefficients than bands; as `log_mel`.
  """
  if not 1 <= coefficients <= mels:
    raise InputError(f'mfcc: coefficients is {coefficients!r}, expected 1 to mels={mels}.')
  decibels = log_mel(audio, rate, mels=mels, **options) * (10 / math.log(10))
  order, places = np.arange(coefficients), np.arange(mels)[:, None] + 0.5
  dct = np.cos(np.pi * places * order / mels) * np.where(order, math.sqrt(2 / mels), math.sqrt(1 / mels))
  with jax.default_matmul_precision('highest'):
    return decibels @ dct.astype(decibels.dtype)


def standardise(x: Array, *, epsilon: float = 1e-3) -> Array:
  """Mean 0 and deviation 1 of every column over the frames of a recording, f[..., frames, F] (no padding among them).

  >>> standardise(np.array([[1.0], [3.0]]), epsilon=0.0).tolist()
  [[-1.0], [1.0]]
  """
  return (x - x.mean(axis=-2, keepdims=True)) / (x.std(axis=-2, keepdims=True) + epsilon)


def stretch(x: Array, frames: int) -> Array:
  """Features of any length as `frames` of them, interpolated linearly: f[..., L, F] -> f[..., frames, F].

  >>> stretch(np.array([[0.0], [1.0], [2.0]]), 5).ravel().tolist()
  [0.0, 0.5, 1.0, 1.5, 2.0]
  """
  _count('stretch', frames=frames)
  places = np.linspace(0, x.shape[-2] - 1, frames)
  left = np.minimum(places.astype(int), max(0, x.shape[-2] - 2))
  share = (places - left).astype(x.dtype).reshape((1,) * (x.ndim - 2) + (-1, 1))
  return (1 - share) * x[..., left, :] + share * x[..., np.minimum(left + 1, x.shape[-2] - 1), :]


def augment(*steps: Step, tasks: Iterable[str] | None = None) -> Callable[[Array, Batch], Batch]:
  """The steps one after another, as a function `(key, batch) -> batch` for `data.Batches(transform=...)`.

  Args:
    steps: `(key, x f[B, L, F], mask bool[B, L]) -> (x, mask)`; `mask_time`, `mask_frequency`, `shift_time`, your own.
    tasks: of multi-input batches, those whose inputs are speech; one that a batch does not have is passed over. None
      for single-input batches.

  Returns:
    A pure function of batches with inputs f[B, L, F], f[B, L, F, 1] or {'x': one of them, 'mask': bool[B, L]}, features
    of mean 0 (`standardise`): what is masked becomes 0.

  Raises:
    InputError: a step that cannot be called; while tracing, inputs that are no such features, and a multi-input batch
      without `tasks`.
  """
  for step in steps:
    if not callable(step):
      raise InputError(f'augment steps: found {step!r}, expected a function (key, x, mask) -> (x, mask).')
  tasks = None if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)

  def changed(key, inputs, where):
    x, mask = (inputs.get('x'), inputs.get('mask')) if isinstance(inputs, Mapping) else (inputs, None)
    shape = getattr(x, 'shape', ())
    if len(shape) not in (3, 4) or shape[3:] not in ((), (1,)) or not jnp.issubdtype(x.dtype, jnp.floating):
      found = f'{x.dtype}{list(shape)}' if hasattr(x, 'dtype') else type(x).__name__
      raise InputError(f'augment: inputs{where} are {found}, expected features f[B, L, F] or f[B, L, F, 1].')
    x = x.reshape(shape[:3])
    counts = jnp.ones(shape[:2], bool) if mask is None else mask
    for place, step in enumerate(steps):
      x, counts = step(jax.random.fold_in(key, place), x, counts)
    x = x.reshape(shape)
    if not isinstance(inputs, Mapping):
      return x
    return {**inputs, 'x': x} | ({} if mask is None else {'mask': counts})

  def transform(key, batch):
    if 'inputs' in batch:
      return {**batch, 'inputs': changed(key, batch['inputs'], '')}
    if tasks is None:
      raise InputError(f'augment tasks: found None for a multi-input batch, expected some of {sorted(batch)}.')
    out = dict(batch)
    for place, task in enumerate(tasks):
      if task in batch:
        inputs = changed(jax.random.fold_in(key, place), batch[task]['inputs'], f' of task {task!r}')
        out[task] = {**batch[task], 'inputs': inputs}
    return out

  return transform


def spec_augment(
  *,
  frequency_width: int,
  time_width: int,
  frequency_masks: int = 2,
  time_masks: int = 2,
  time_share: float = 1.0,
  tasks: Iterable[str] | None = None,
) -> Callable[[Array, Batch], Batch]:
  """Masks bands and frames of every example: `augment(mask_frequency(...), mask_time(...))`.

  The paper's policy for LibriSpeech (LD) is `frequency_width=27, time_width=100` for 80 bands.

  >>> batch = {'inputs': jnp.ones((4, 50, 20)), 'labels': {'digit': jnp.zeros(4, int)}}
  >>> out = jax.jit(spec_augment(frequency_width=5, time_width=10))(jax.random.key(0), batch)
  >>> out['inputs'].shape, bool((out['inputs'] == 0).any())
  ((4, 50, 20), True)

  Args:
    frequency_width, time_width, frequency_masks, time_masks, time_share: see `mask_frequency` and `mask_time`.
    tasks: see `augment`.

  Reference: Park et al., SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition (2019),
  https://arxiv.org/abs/1904.08779. Departs from it: no time warping, which the paper found to matter least.
  """
  bands = mask_frequency(frequency_width, frequency_masks)
  return augment(bands, mask_time(time_width, time_masks, share=time_share), tasks=tasks)


def mask_frequency(width: int, count: int = 2) -> Step:
  """Sets `count` runs of bands to 0, each of a width drawn from 0..width, at a place of its own for every example."""
  _count('mask_frequency', width=width, count=count)

  def step(key, x, mask):
    bands = x.shape[2]
    if width > bands:
      raise InputError(f'mask_frequency: width is {width}, expected at most {bands}, the number of bands.')
    kept = ~_runs(key, count, jnp.full(len(x), width), jnp.full(len(x), bands), bands)
    return jnp.where(kept[:, None, :], x, 0), mask

  return step


def mask_time(width: int, count: int = 2, *, share: float = 1.0) -> Step:
  """Sets `count` runs of frames to 0, each as wide as drawn from 0..width, at most `share` of the example."""
  _count('mask_time', width=width, count=count)
  if not 0 < share <= 1:
    raise InputError(f'mask_time: share is {share!r}, expected more than 0, at most 1.')

  def step(key, x, mask):
    length = mask.sum(axis=1)
    widest = jnp.minimum(width, (share * length).astype(jnp.int32))
    return jnp.where(_runs(key, count, widest, length, x.shape[1])[:, :, None], 0, x), mask

  return step


def shift_time(most: int) -> Step:
  """Moves every example by a number of frames drawn from -most..most; what leaves is lost, zeros come in."""
  _count('shift_time', most=most)

  def step(key, x, mask):
    by = jax.random.randint(key, (len(x), 1), -most, most + 1)
    source = jnp.arange(x.shape[1])[None] - by
    inside = (source >= 0) & (source < x.shape[1])
    source = jnp.clip(source, 0, x.shape[1] - 1)
    x = jnp.where(inside[:, :, None], jnp.take_along_axis(x, source[:, :, None], axis=1), 0)
    moved = jnp.take_along_axis(mask, source, axis=1) & inside
    # Where nothing was padded nothing is now: the zeros that came in count, as silence does.
    return x, moved | mask.all(axis=1, keepdims=True)

  return step


def trim_silence(
  audio: np.ndarray, rate: float, *, below: float = 40.0, window: float = 0.05, hop: float = 0.0125
) -> np.ndarray:
  """Leaves out what is before the first and behind the last window that is not `below` dB under the loudest.

  >>> wave = np.concatenate([np.zeros(800), np.sin(np.arange(1600.0)), np.zeros(4000)]).astype(np.float32)
  >>> len(wave), len(trim_silence(wave, 8000))
  (6400, 1900)

  Args:
    audio: f[samples], numpy.
    rate: samples per second.
    below: decibels.
    window, hop: in seconds, of the windows whose loudness (root mean square) is taken.

  Returns:
    f[samples], a part of `audio`; all of it where it is all zeros.

  Raises:
    InputError: audio that is no f[samples], sizes that are not positive.
  """
  _wave('trim_silence', audio)
  size, step = _frame('trim_silence', rate, window, hop)
  power = (frames(audio, size, step).astype(np.float64) ** 2).mean(axis=-1)
  loud = np.flatnonzero(power > power.max() * 10 ** (-below / 10)) if power.any() else np.array([0, len(audio)])
  return audio[loud[0] * step : (loud[-1] + 1) * step]


def spectral_subtraction(
  audio: np.ndarray,
  rate: float,
  *,
  noise: np.ndarray | None = None,
  quiet: float = 0.1,
  over: float = 2.0,
  floor: float = 0.02,
  window: float = 0.032,
) -> np.ndarray:
  """Takes a steady noise out: power max(|Y|^2 - over |N|^2, floor |N|^2) with the phase of Y, in windows that overlap.

  Args:
    audio: f[samples], numpy.
    rate: samples per second.
    noise: f[samples] of the noise alone, |N|^2 being its mean power; None takes the quietest windows of `audio`.
    quiet: their share.
    over: how many times the noise is subtracted; more leaves less noise and less of the speech.
    floor: the share of the noise that stays, which hides what sounds like music.
    window: in seconds.

  Returns:
    f[samples].

  Raises:
    InputError: audio or noise that is no f[samples], sizes that are not positive, a share outside 0..1.

  References: Boll, Suppression of Acoustic Noise in Speech Using Spectral Subtraction (1979),
  https://doi.org/10.1109/TASSP.1979.1163209; Berouti, Schwartz & Makhoul, Enhancement of Speech Corrupted by Acoustic
  Noise (1979), https://doi.org/10.1109/ICASSP.1979.1170788.
  """
  _wave('spectral_subtraction', audio)
  if not 0 < quiet <= 1 or over < 0 or not 0 <= floor <= 1:
    raise InputError(f'spectral_subtraction: quiet, over, floor are {quiet}, {over}, {floor}, expected shares of 0..1.')
  size, step = _frame('spectral_subtraction', rate, window, window / 4)
  taper = hann(size, size)
  spectrum = np.fft.rfft(frames(audio.astype(np.float64), size, step) * taper)
  power = np.abs(spectrum) ** 2
  if noise is None:
    steady = power[np.argsort(power.sum(axis=1), kind='stable')[: max(1, round(quiet * len(power)))]].mean(axis=0)
  else:
    _wave('spectral_subtraction: noise', noise)
    steady = (np.abs(np.fft.rfft(frames(noise.astype(np.float64), size, step) * taper)) ** 2).mean(axis=0)
  clean = np.maximum(power - over * steady, floor * np.minimum(steady, power))
  windows = np.fft.irfft(spectrum * np.sqrt(clean / np.maximum(power, 1e-30)), size) * taper
  places = np.arange(len(windows))[:, None] * step + np.arange(size)
  total, weight = np.zeros((2, places[-1, -1] + 1 + step))
  np.add.at(total, places, windows)
  np.add.at(weight, places, np.broadcast_to(taper**2, places.shape))
  middle = slice(size // 2, size // 2 + len(audio))
  return (total[middle] / np.maximum(weight[middle], 1e-8)).astype(audio.dtype)


def _runs(key: Array, count: int, widest: Array, length: Array, size: int) -> Array:
  """bool[B, size]: `count` runs of at most `widest` int[B] places within the first `length` int[B]."""
  of_width, of_start = jax.random.split(key)
  shape = (count, len(widest), 1)
  width = jax.random.randint(of_width, shape, 0, widest[None, :, None] + 1)
  start = jax.random.randint(of_start, shape, 0, length[None, :, None] - width + 1)
  places = jnp.arange(size)[None, None]
  return ((places >= start) & (places < start + width)).any(axis=0)


def _namespace(name: str, audio):
  if not hasattr(audio, 'dtype') or not jnp.issubdtype(audio.dtype, jnp.floating) or not audio.ndim:
    found = f'{audio.dtype}{list(audio.shape)}' if hasattr(audio, 'dtype') else type(audio).__name__
    raise InputError(f'{name}: audio is {found}, expected floats [..., samples].')
  return audio.__array_namespace__()


def _wave(name: str, audio) -> None:
  if not isinstance(audio, np.ndarray) or not np.issubdtype(audio.dtype, np.floating) or audio.ndim != 1:
    found = f'{audio.dtype}{list(audio.shape)}' if hasattr(audio, 'dtype') else type(audio).__name__
    raise InputError(f'{name}: audio is {found}, expected floats [samples].')


def _frame(name: str, rate: float, window: float, hop: float) -> tuple[int, int]:
  size, step = round(window * rate), round(hop * rate)
  if size < 2 or step < 1:
    raise InputError(f'{name}: rate, window and hop are {rate}, {window} and {hop}: no sample is that short.')
  return size, step


def _count(name: str, **values) -> None:
  for argument, value in values.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
      raise InputError(f'{name}: {argument} is {value!r}, expected a positive whole number.')
