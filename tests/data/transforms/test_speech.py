import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data.transforms import spectra, speech

RATE = 16000


@pytest.fixture(scope='module')
def librosa():
  """The oracle."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return pytest.importorskip('librosa')


def wave(seconds=0.7, rate=RATE, seed=0, dtype=np.float64):
  """Harmonics that rise, bursts of them, and noise."""
  time = np.arange(round(seconds * rate)) / rate
  tone = sum(np.sin(2 * np.pi * k * (150 * time + 60 * time**2)) / k for k in range(1, 8))
  loud = (np.sin(2 * np.pi * 3 * time) > 0) * 0.2
  return (tone * loud + 0.01 * np.random.default_rng(seed).normal(size=len(time))).astype(dtype)


@pytest.mark.parametrize('htk', [False, True])
@pytest.mark.parametrize('rate, mels, low, high', [(16000, 40, 0.0, None), (8000, 24, 60.0, 3800.0)])
def test_log_mel_is_librosas(librosa, rate, mels, low, high, htk):
  audio = wave(rate=rate)
  found = speech.log_mel(audio, rate, mels=mels, low=low, high=high, htk=htk, floor=1e-12)
  options = dict(n_mels=mels, fmin=low, fmax=high, htk=htk, norm=None if htk else 'slaney', dtype=np.float64)
  sizes = dict(n_fft=512 if rate == 16000 else 256, win_length=rate // 40, hop_length=rate // 100)
  expected = librosa.feature.melspectrogram(y=audio, sr=rate, **sizes, **options).T
  assert found.shape == (1 + len(audio) // (rate // 100), mels) and found.dtype == np.float64
  np.testing.assert_allclose(np.exp(found), expected, rtol=1e-9, atol=1e-12)


def test_mfcc_is_librosas(librosa):
  audio = wave()
  found = speech.mfcc(audio, RATE, coefficients=20, mels=64)
  sizes = dict(n_fft=512, win_length=400, hop_length=160)
  power = librosa.feature.melspectrogram(y=audio, sr=RATE, n_mels=64, dtype=np.float64, **sizes)
  expected = librosa.feature.mfcc(S=librosa.power_to_db(power, amin=1e-10, top_db=None), n_mfcc=20).T
  np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_jax_arrays_of_many_recordings_are_jitted():
  audio = np.stack([wave(seed=seed, dtype=np.float32) for seed in range(3)])
  for front in (speech.log_mel, speech.mfcc):
    found = jax.jit(lambda x, front=front: front(x, RATE))(jnp.asarray(audio))
    assert isinstance(found, jax.Array) and found.dtype == jnp.float32
    for row, x in zip(found, audio):
      expected = front(x, RATE)
      assert isinstance(expected, np.ndarray) and expected.dtype == np.float32
      np.testing.assert_allclose(row, expected, atol=2e-2)
      np.testing.assert_allclose(expected, front(x.astype(np.float64), RATE), atol=2e-2)


def test_a_floor_for_silence():
  assert np.all(speech.log_mel(np.zeros(RATE, np.float32), RATE, floor=1e-4) == np.log(np.float32(1e-4)))


def test_standardise():
  x = np.random.default_rng(0).normal(3, [1, 5], (2, 50, 2))
  found = speech.standardise(x, epsilon=0.0)
  np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-12)
  np.testing.assert_allclose(found.std(axis=1), 1)
  assert not speech.standardise(np.ones((3, 1))).any()


def test_stretch():
  x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
  for frames in (1, 4, 7, 20):
    found = speech.stretch(x, frames)
    assert found.dtype == np.float32
    for column, values in zip(found.T, x.T):
      np.testing.assert_allclose(column, np.interp(np.linspace(0, 6, frames), np.arange(7), values), atol=1e-6)
  np.testing.assert_allclose(
    jax.jit(lambda x: speech.stretch(x, 4))(jnp.stack([x, x]))[1], speech.stretch(x, 4), atol=1e-6
  )
  assert np.array_equal(speech.stretch(x[:1], 3), x[[0, 0, 0]])


@pytest.mark.parametrize('below', [20.0, 40.0])
def test_trim_silence_is_librosas(librosa, below):
  draw = np.random.default_rng(1)
  quiet = lambda n: 1e-3 * draw.normal(size=n)
  audio = np.concatenate([quiet(3000), wave(0.3), np.zeros(100), wave(0.2), quiet(7000)]).astype(np.float32)
  found = speech.trim_silence(audio, RATE, below=below, window=0.032, hop=0.008)
  expected, _ = librosa.effects.trim(audio, top_db=below, frame_length=512, hop_length=128)
  assert 7000 < len(found) < len(audio) - 8000
  np.testing.assert_array_equal(found, expected)
  zeros = np.zeros(500, np.float32)
  assert len(speech.trim_silence(zeros, RATE)) == 500


def snr(found, clean):
  return 10 * np.log10((clean**2).sum() / ((found - clean) ** 2).sum())


@pytest.mark.parametrize('level', [0.02, 0.05, 0.1])
@pytest.mark.parametrize('known', [False, True])
def test_spectral_subtraction_takes_noise_out(level, known):
  clean = wave(2.0)
  draw = np.random.default_rng(2)
  noisy = clean + level * draw.normal(size=len(clean))
  noise = level * draw.normal(size=RATE) if known else None
  found = speech.spectral_subtraction(noisy, RATE, noise=noise)
  assert found.shape == clean.shape and snr(found, clean) > snr(noisy, clean) + 4


def test_spectral_subtraction_of_nothing_is_the_recording():
  for audio in (wave(0.5), wave(0.01), wave(0.5, dtype=np.float32)):
    found = speech.spectral_subtraction(audio, RATE, over=0.0)
    assert found.dtype == audio.dtype
    np.testing.assert_allclose(found, audio, atol=1e-6)


def features(batch=6, frames=40, bands=20):
  return jnp.ones((batch, frames, bands))


def test_bands_and_frames_are_masked():
  x = features(64)
  mask = jnp.ones(x.shape[:2], bool)
  found, _ = jax.jit(speech.mask_frequency(5, 1))(jax.random.key(0), x, mask)
  gone = np.asarray(found == 0)
  assert np.all(gone == gone[:, :1]), 'whole bands'
  widths = gone[:, 0].sum(axis=1)
  assert (
    set(widths) == set(range(6)) and np.diff(np.pad(gone[:, 0].astype(int), ((0, 0), (1, 1)))).max(axis=1).min() == 0
  )
  edges = np.abs(np.diff(np.pad(gone[:, 0].astype(int), ((0, 0), (1, 1))))).sum(axis=1)
  assert np.all(edges[widths > 0] == 2), 'one run'
  mask = jnp.arange(40)[None] < jnp.where(jnp.arange(64) < 32, 10, 40)[:, None]
  found, kept = jax.jit(speech.mask_time(20, 1, share=0.5))(jax.random.key(1), x, mask)
  gone = np.asarray(found == 0)[:, :, 0]
  widths = gone.sum(axis=1)
  assert widths[:32].max() == 5 and widths[32:].max() > 15 and not gone[:32, 10:].any()
  assert gone[:32].any() and np.array_equal(kept, mask) and gone[32:, 20:].any()


def test_shifts_move_what_counts():
  x = jnp.arange(1.0, 7)[None, :, None] * jnp.ones((50, 1, 1))
  mask = jnp.arange(6)[None] < jnp.full((50, 1), 4)
  found, kept = jax.jit(speech.shift_time(2))(jax.random.key(0), x, mask)
  shifts = set()
  for row, counts in zip(np.asarray(found[..., 0]), np.asarray(kept)):
    by = next(by for by in range(-2, 3) if row.tolist() == [i + 1 - by if 0 <= i - by < 6 else 0 for i in range(6)])
    assert counts.tolist() == [0 <= i - by < 4 for i in range(6)]
    shifts.add(by)
  assert shifts == {-2, -1, 0, 1, 2}
  _, kept = speech.shift_time(2)(jax.random.key(0), x, jnp.ones(mask.shape, bool))
  assert kept.all()


@pytest.mark.parametrize('form', ['array', 'image', 'sequence'])
def test_spec_augment_of_all_forms_of_inputs(form):
  x = features()
  mask = jnp.arange(40)[None] < jnp.full((6, 1), 30)
  inputs = {'array': x, 'image': x[..., None], 'sequence': {'x': x, 'mask': mask, 'targets': 3}}[form]
  transform = jax.jit(speech.spec_augment(frequency_width=5, time_width=10), static_argnums=())
  batch = {'inputs': inputs, 'labels': {'digit': jnp.arange(6)}}
  out = transform(jax.random.key(0), batch)
  found = out['inputs']['x'] if form == 'sequence' else out['inputs']
  assert found.shape == (inputs['x'] if form == 'sequence' else inputs).shape and 0 < (found == 0).mean() < 0.8
  assert jax.tree.structure(out) == jax.tree.structure(batch)
  np.testing.assert_array_equal(out['labels']['digit'], np.arange(6))
  other = transform(jax.random.key(1), batch)['inputs']
  assert jax.tree.leaves(other)[-1].shape and not all(
    np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(out['inputs']))
  )


def test_multi_input_batches():
  transform = speech.augment(speech.mask_time(10), tasks=('digit', 'speaker'))
  part = {'inputs': features(), 'labels': jnp.arange(6)}
  batch = {'image': {'inputs': jnp.ones((6, 8, 8, 1)), 'labels': jnp.arange(6)}, 'digit': part, 'speaker': part}
  out = transform(jax.random.key(0), batch)
  assert out['image'] is batch['image'] and set(out) == set(batch)
  assert (out['digit']['inputs'] == 0).any() and not np.array_equal(out['digit']['inputs'], out['speaker']['inputs'])
  assert set(transform(jax.random.key(0), {'image': batch['image']})) == {'image'}
  with pytest.raises(
    InputError, match=r"augment tasks: found None for a multi-input batch, expected some of \['digit'"
  ):
    speech.augment(speech.mask_time(10))(jax.random.key(0), batch)


X = np.zeros(800, np.float32)
BAD = {
  'integers': (
    lambda: speech.log_mel(np.zeros(800, np.int16), RATE),
    r'log_mel: audio is int16\[800\], expected floats',
  ),
  'list': (lambda: speech.log_mel([0.0], RATE), 'log_mel: audio is list'),
  'window': (lambda: speech.log_mel(X, RATE, window=0.0), 'log_mel: rate, window and hop are 16000, 0.0 and 0.01'),
  'mels': (lambda: speech.log_mel(X, 8000, mels=200), 'mels: found 200, expected fewer: band 0 falls between'),
  'low': (lambda: speech.log_mel(X, 8000, high=5000.0), 'low and high: found 0.0 and 5000.0 Hz'),
  'coefficients': (lambda: speech.mfcc(X, 8000, coefficients=41), 'mfcc: coefficients is 41, expected 1 to mels=40'),
  'two axes': (lambda: speech.trim_silence(X.reshape(2, -1), RATE), r'trim_silence: audio is float32\[2, 400\]'),
  'noise': (lambda: speech.spectral_subtraction(X, RATE, noise=3), 'spectral_subtraction: noise: audio is int'),
  'quiet': (lambda: speech.spectral_subtraction(X, RATE, quiet=0.0), 'quiet, over, floor are 0.0, 2.0, 0.02'),
  'step': (lambda: speech.augment(3), 'augment steps: found 3'),
  'width': (lambda: speech.mask_time(0), 'mask_time: width is 0'),
  'share': (lambda: speech.mask_time(3, share=2.0), 'mask_time: share is 2.0'),
  'bands': (
    lambda: speech.spec_augment(frequency_width=21, time_width=3)(jax.random.key(0), {'inputs': features()}),
    'mask_frequency: width is 21, expected at most 20',
  ),
  'inputs': (
    lambda: speech.augment()(jax.random.key(0), {'inputs': jnp.ones((3, 4))}),
    r'augment: inputs are float32\[3, 4\], expected features',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_named(case):
  call, message = BAD[case]
  with pytest.raises(InputError, match=message):
    call()


def test_windows():
  found = spectra.frames(np.arange(1.0, 6), 4, 2)
  assert found.tolist() == [[0, 0, 1, 2], [1, 2, 3, 4], [3, 4, 5, 0]]
  np.testing.assert_allclose(spectra.hann(4, 6), [0, 0, 0.5, 1, 0.5, 0], atol=1e-12)
