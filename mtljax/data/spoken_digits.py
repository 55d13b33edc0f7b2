"""Free Spoken Digit Dataset: ten English digits, said 50 times each by six speakers, 8 kHz; single or in strings.

Tasks: 'digit' and 'speaker' of a recording, or recognition of strings of digits. Recordings 0 to 4 of every digit and
speaker are for testing, by the data set's own rule; here 5 to 9 are for validation.

Reference: Jackson et al., Free Spoken Digit Dataset (2018), https://github.com/Jakobovski/free-spoken-digit-dataset,
https://doi.org/10.5281/zenodo.1342401 (CC BY-SA 4.0; TFDS `spoken_digit`).
"""

import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from mtljax.arrays import check_seed
from mtljax.base import InputError
from mtljax.data import audio
from mtljax.data.clips import Clips, npz
from mtljax.data.reading import OnBad

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
TEST, VAL = range(5), range(5, 10)  # recordings of every digit and speaker
NAME = re.compile(r'(\d)_([A-Za-z]+)_(\d+)\.(wav|flac)')
URL = 'https://github.com/Jakobovski/free-spoken-digit-dataset'


def load(
  data_dir: str | os.PathLike,
  *,
  test: Iterable[int] = TEST,
  val: Iterable[int] = VAL,
  rate: int | None = None,
  on_bad: OnBad = 'error',
) -> dict[str, Clips]:
  """The three splits, from the files of the repository or from one npz file; any data set of either layout.

  Args:
    data_dir: folder of fsdd.npz (arrays audio, offset, digit, speaker, recording, sample_rate; see `clips.npz`), or of
      files '<digit>_<speaker>_<recording>.wav'; or the folder above it, called fsdd, recordings or
      free-spoken-digit-dataset.
    test, val: recordings of every digit and speaker that are for testing, and for validation.
    rate: what all are resampled to; None keeps theirs.
    on_bad: what is done about a bad recording: 'error' or 'skip'.

  Returns:
    {'train', 'val', 'test'} -> `Clips` of audio with columns digit int32[N], speaker int32[N] (in the alphabetical
    order of their names) and recording int32[N].

  Raises:
    InputError: no such data, a bad file, a digit that is none, a split without a recording.
  """
  found = _read(pathlib.Path(os.path.expanduser(data_dir)), rate, on_bad)
  for name in ('digit', 'speaker', 'recording'):
    if name not in found.columns:
      raise InputError(f'{found.source}: found the columns {sorted(found.columns)}, expected {name!r} among them.')
  columns = {name: np.asarray(found.columns[name]).astype(np.int32) for name in ('digit', 'speaker', 'recording')}
  wrong = np.flatnonzero((columns['digit'] < 0) | (columns['digit'] > 9))
  if len(wrong):
    digit = columns['digit'][wrong[0]]
    raise InputError(f"{found.source}, {found.names[wrong[0]]}, 'digit': found {digit}, expected 0 to 9.")
  found = Clips(found.rows, columns, found.rate, found.names, found.source)
  parts = {'test': np.isin(columns['recording'], list(test)), 'val': np.isin(columns['recording'], list(val))}
  parts['val'] &= ~parts['test']
  parts = {'train': ~(parts['test'] | parts['val']), **parts}
  for split, rows in parts.items():
    if not rows.any():
      raise InputError(f'{found.source}: found no recording for split {split!r}, expected at least one.')
  return {split: found.take(parts[split]) for split in ('train', 'val', 'test')}


def strings(clips: Clips, count: int, digits: tuple[int, int] = (2, 5), *, seed: int = 0, gap: float = 0.0) -> Clips:
  """Recordings of one speaker one after another: connected digits and what they say.

  Args:
    clips: of a split, so that no recording is in two.
    count: how many strings.
    digits: fewest and most of a string.
    seed: of the choice; a string's speaker, length and recordings are drawn uniformly.
    gap: seconds of silence between two.

  Returns:
    `Clips` with columns text ('two five'), speaker and count.

  Raises:
    InputError: counts that are not positive, a gap or a seed that is negative.
  """
  low, high = digits
  if count < 1 or not 1 <= low <= high or gap < 0:
    raise InputError(f'strings: count is {count}, digits {tuple(digits)}, gap {gap}, expected >= 1, a range, >= 0.')
  check_seed('strings seed', seed)
  draw = np.random.default_rng((5, seed))
  speakers = np.unique(clips.columns['speaker'])
  by_speaker = [np.flatnonzero(clips.columns['speaker'] == speaker) for speaker in speakers]
  silence = np.zeros(round(gap * (clips.rate or 0)), np.float32)
  rows, texts, who, lengths = [], [], [], []
  for _ in range(count):
    speaker = draw.integers(len(speakers))
    chosen = draw.choice(by_speaker[speaker], draw.integers(low, high + 1))
    parts = [part for i in chosen for part in (silence, clips.rows[i])][1:]
    rows.append(np.concatenate(parts))
    texts.append(' '.join(WORDS[digit] for digit in clips.columns['digit'][chosen]))
    who.append(speakers[speaker])
    lengths.append(len(chosen))
  columns = {'text': np.array(texts), 'speaker': np.array(who, np.int32), 'count': np.array(lengths, np.int32)}
  return Clips(rows, columns, clips.rate, source=f'strings of {clips.source}')


def _read(data_dir: pathlib.Path, rate, on_bad) -> Clips:
  repository = data_dir / 'free-spoken-digit-dataset'
  folders = [data_dir, data_dir / 'fsdd', data_dir / 'recordings', data_dir / 'fsdd' / 'recordings']
  folders += [repository, repository / 'recordings']
  for folder in folders:
    if (folder / 'fsdd.npz').is_file():
      return audio.at_rate(npz(folder / 'fsdd.npz', on_bad=on_bad), rate)
    files = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.glob('*_*_*.*'))]
    files = [(path, match) for path, match in files if match]
    if files:
      speakers = sorted({match[2] for _, match in files})
      columns = {
        'digit': [int(match[1]) for _, match in files],
        'speaker': [speakers.index(match[2]) for _, match in files],
        'recording': [int(match[3]) for _, match in files],
      }
      return audio.read_files([path for path, _ in files], columns, rate=rate, on_bad=on_bad)
  raise InputError(
    f'data_dir: {str(data_dir)!r} has no fsdd.npz and no files such as 7_jackson_32.wav, expected those of {URL}.'
  )
