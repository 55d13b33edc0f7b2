"""Recordings of single words as images of one size, for what is to be told from the whole: the word, the speaker."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError
from mtljax.data.clips import Clips
from mtljax.data.transforms import speech


def examples(
  splits: Mapping[str, Clips],
  labels: Iterable[str],
  *,
  frames: int = 32,
  mels: int = 32,
  window: float = 0.032,
  hop: float = 0.010,
  floor: float = 1e-6,
  below: float | None = 20.0,
) -> dict[str, dict[str, Any]]:
  """Log-mel spectrograms, every word from its first to its last loud moment stretched to the same number of frames.

  >>> waves = [np.sin(np.arange(n) / 3, dtype=np.float32) for n in (1600, 2400)]
  >>> clips = Clips(waves, {'digit': np.array([3, 4]), 'speaker': np.array(['ann', 'bob'])}, rate=8000)
  >>> found = examples({'train': clips}, ('digit', 'speaker'))['train']
  >>> found['inputs'].shape, found['labels']['digit'].tolist(), found['labels']['speaker'].tolist()
  ((2, 32, 32, 1), [3, 4], [0, 1])

  Args:
    splits: {'train': recordings, ...} of one rate.
    labels: columns that are the tasks' labels: whole numbers, or strings, which become their places among the sorted
      ones of 'train'.
    frames, mels: size of an image.
    window, hop, floor: of `transforms.speech.log_mel`.
    below: of `transforms.speech.trim_silence`; None trims nothing.

  Returns:
    {split: {'inputs': f32[N, frames, mels, 1], 'labels': {column: int32[N]}}}, every band of mean 0 and
    deviation 1 over 'train'.

  Raises:
    InputError: no split 'train', a column that is not there or holds neither numbers nor strings, a string that 'train'
      does not have, recordings without a rate or of different ones.
  """
  labels = tuple(labels)
  if 'train' not in splits:
    raise InputError(f"splits: found {sorted(splits)}, expected 'train' among them.")
  rate = splits['train'].rate
  for split, clips in splits.items():
    check_names(f'labels, of columns in split {split!r}', labels, clips.columns, all_of=False)
    if clips.rate is None or clips.rate != rate:
      found = f'{clips.rate} samples per second, expected {rate}, as in train' if rate else 'no sample rate'
      raise InputError(f'{clips.source}, split {split!r}: found {found}.')

  def image(samples):
    samples = samples if below is None else speech.trim_silence(samples, rate, below=below)
    bands = speech.log_mel(samples, rate, mels=mels, window=window, hop=hop, floor=floor)
    return speech.stretch(bands, frames)

  images = {split: np.stack([image(row) for row in clips.rows]) for split, clips in splits.items()}
  mean, deviation = images['train'].mean(axis=(0, 1)), images['train'].std(axis=(0, 1))
  images = {split: ((x - mean) / (deviation + 1e-3))[..., None].astype(np.float32) for split, x in images.items()}
  return {
    split: {'inputs': images[split], 'labels': {name: _classes(splits, split, name) for name in labels}}
    for split in splits
  }


def _classes(splits, split: str, name: str) -> np.ndarray:
  column, known = np.asarray(splits[split].columns[name]), np.asarray(splits['train'].columns[name])
  if np.issubdtype(column.dtype, np.integer):
    return column.astype(np.int32)
  if column.dtype.kind != 'U' or known.dtype.kind != 'U':
    found = f'{column.dtype}{list(column.shape)}'
    raise InputError(f'{splits[split].source}, {name!r}: found {found}, expected whole numbers or strings.')
  names = np.unique(known)
  new = np.flatnonzero(~np.isin(column, names))
  if len(new):
    where = f'{splits[split].source}, {splits[split].names[new[0]]}, {name!r}'
    raise InputError(f'{where}: found {str(column[new[0]])!r}, expected one of those of train, {names[:10].tolist()}.')
  return np.searchsorted(names, column).astype(np.int32)
