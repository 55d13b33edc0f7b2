"""The yesno recordings of Kaldi: eight words 'ken' or 'lo' (Hebrew yes, no) by one speaker, 8 kHz.

60 recordings, https://www.openslr.org/1; those whose name begins with 1 are for testing, as in Kaldi's recipe.
"""

import os
import pathlib
import re

import numpy as np

from mtljax.base import InputError
from mtljax.data import audio
from mtljax.data.clips import Clips, npz
from mtljax.data.reading import OnBad

NAME = re.compile(r'([01](?:_[01])*)\.(wav|flac)')


def load(
  data_dir: str | os.PathLike, *, val_every: int = 5, rate: int | None = None, on_bad: OnBad = 'error'
) -> dict[str, Clips]:
  """The three splits, from the files of the archive or from one npz file.

  Args:
    data_dir: folder of files such as 0_0_1_0_1_1_1_1.wav, which say what is said (1 for YES), or of yesno_8k.npz
      (arrays audio, offset, text, is_test, sample_rate; see `clips.npz`); or the folder above it, called yesno or
      waves_yesno.
    val_every: every so many-th of the recordings that are not for testing is for validation.
    rate, on_bad: as for `spoken_digits.load`.

  Returns:
    {'train', 'val', 'test'} -> `Clips` of audio with a column text ('YES NO ...').

  Raises:
    InputError: no such data, a bad file, a split without a recording.
  """
  found, test = _read(pathlib.Path(os.path.expanduser(data_dir)), rate, on_bad)
  rest = np.flatnonzero(~test)
  places = {'train': np.setdiff1d(rest, rest[::val_every]), 'val': rest[::val_every], 'test': np.flatnonzero(test)}
  for split, rows in places.items():
    if not len(rows):
      raise InputError(f'{found.source}: found no recording for split {split!r}, expected at least one.')
  return {split: found.take(rows) for split, rows in places.items()}


def _read(data_dir: pathlib.Path, rate, on_bad) -> tuple[Clips, np.ndarray]:
  """All recordings, and which are for testing."""
  for folder in (data_dir, data_dir / 'yesno', data_dir / 'waves_yesno', data_dir / 'yesno' / 'waves_yesno'):
    if (folder / 'yesno_8k.npz').is_file():
      found = npz(folder / 'yesno_8k.npz', on_bad=on_bad)
      for name in ('text', 'is_test'):
        if name not in found.columns:
          raise InputError(f'{found.source}: found the columns {sorted(found.columns)}, expected {name!r} among them.')
      found = audio.at_rate(found, rate)
      columns = {'text': found.columns['text']}
      return Clips(found.rows, columns, found.rate, found.names, found.source), found.columns['is_test'].astype(bool)
    files = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.glob('[01]*'))]
    files = [(path, match[1].split('_')) for path, match in files if match]
    if files:
      texts = [' '.join('YES' if word == '1' else 'NO' for word in said) for _, said in files]
      found = audio.read_files([path for path, _ in files], {'text': texts}, rate=rate, on_bad=on_bad)
      return found, np.array([pathlib.Path(name).name.startswith('1') for name in found.names])
  raise InputError(
    f'data_dir: {str(data_dir)!r} has no files such as 0_0_1_0_1_1_1_1.wav and no yesno_8k.npz, expected those of '
    'https://www.openslr.org/1.'
  )
