import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import spectrograms
from mtljax.data.clips import Clips


def clips(count=6, rate=8000, **columns):
  draw = np.random.default_rng(count)
  rows = [np.float32(0.1) * draw.normal(size=800 + 100 * i).astype(np.float32) for i in range(count)]
  given = {'digit': np.arange(count, dtype=np.uint8), 'speaker': np.array(['bob', 'ann'] * (count // 2))}
  return Clips(rows, {**given, **columns}, rate, source='x.npz')


def test_images_and_labels():
  found = spectrograms.examples({'train': clips(), 'test': clips(4)}, ('digit', 'speaker'), frames=10, mels=12)
  x = found['train']['inputs']
  assert x.shape == (6, 10, 12, 1) and found['test']['inputs'].shape == (4, 10, 12, 1) and x.dtype == np.float32
  np.testing.assert_allclose(x.mean(axis=(0, 1, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(x.std(axis=(0, 1, 3)), 1, atol=1e-2)
  labels = found['test']['labels']
  assert labels['digit'].tolist() == [0, 1, 2, 3] and labels['digit'].dtype == np.int32
  assert labels['speaker'].tolist() == [1, 0, 1, 0]


def test_silence_at_the_ends_is_left_out():
  spoken = clips()
  silent = Clips([np.pad(row, (800, 1600)) for row in spoken.rows], spoken.columns, 8000)
  trimmed, whole = (
    spectrograms.examples({'train': silent}, ('digit',), below=below)['train']['inputs'] for below in (20.0, None)
  )
  silence = lambda x: (x < x.min(axis=1, keepdims=True) + 1e-4).all(axis=2).mean()
  assert silence(trimmed) < 0.3 and silence(whole) > 0.6


BAD = {
  'train': (lambda: spectrograms.examples({'test': clips()}, ('digit',)), "found .'test'., expected 'train' among"),
  'column': (lambda: spectrograms.examples({'train': clips()}, ('word',)), "'word'"),
  'kind': (
    lambda: spectrograms.examples({'train': clips(digit=np.ones(6))}, ('digit',)),
    r"x.npz, 'digit': found float64\[6\], expected whole numbers or strings",
  ),
  'unseen': (
    lambda: spectrograms.examples({'train': clips(), 'test': clips(2, speaker=['bob', 'eve'])}, ('speaker',)),
    r"x.npz, row 1, 'speaker': found 'eve', expected one of those of train, \['ann', 'bob'\]",
  ),
  'no rate': (lambda: spectrograms.examples({'train': clips(rate=None)}, ('digit',)), 'found no sample rate'),
  'rates': (
    lambda: spectrograms.examples({'train': clips(), 'test': clips(rate=16000)}, ('digit',)),
    "x.npz, split 'test': found 16000 samples per second, expected 8000, as in train",
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_named(case):
  call, message = BAD[case]
  with pytest.raises(InputError, match=message):
    call()


@pytest.mark.data
def test_real_digits_are_told_apart(data_dir):
  """By the nearest mean of the training images: far above chance, so that images show the words and the speakers."""
  from mtljax.data import spoken_digits

  found = spectrograms.examples(spoken_digits.load(data_dir), ('digit', 'speaker'))
  x, y = (found[split]['inputs'].reshape(len(found[split]['inputs']), -1) for split in ('train', 'test'))
  for task, least in (('digit', 0.5), ('speaker', 0.75)):
    labels = found['train']['labels'][task]
    means = np.stack([x[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    nearest = ((y[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == found['test']['labels'][task]).mean() > least
