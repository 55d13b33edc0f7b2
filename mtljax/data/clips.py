"""Recordings of different lengths and what is known of each: from an npz file, to padded arrays with CTC labels.

All loaders of speech return `Clips`. A front end makes features of them, a tokeniser labels:

>>> from mtljax.data.transforms import speech, text
>>> waves = [np.sin(np.arange(n) / 3, dtype=np.float32) for n in (1600, 2400)]
>>> spoken = Clips(waves, {'text': np.array(['yes', 'no yes'])}, rate=8000)
>>> frames = spoken.map(lambda wave: speech.log_mel(wave, spoken.rate, mels=20))
>>> examples = ctc_examples(frames, text.words(frames.columns['text']))
>>> examples['inputs']['x'].shape, examples['inputs']['mask'].sum(axis=1), examples['labels']
((2, 31, 20), array([21, 31]), array([[4, 0],
       [5, 4]], dtype=int32))
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtljax.base import InputError
from mtljax.data.reading import OnBad, Reading
from mtljax.data.sources import read_npz
from mtljax.data.transforms.text import UNK
from mtljax.data.transforms.text import pad as pad_ids


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
  """N recordings.

  Attributes:
    rows: f32[samples] each (audio in -1..1) or f32[frames, F] (features).
    columns: {name: array [N]}, what is known of each: 'text', 'speaker', ...
    rate: samples, or frames, per second; None where nobody said.
    names: where each comes from, for messages; None calls them 'row 0', 'row 1', ...
    source: where all come from, for messages.

  Raises:
    InputError: columns or names of another length than the rows; no row.
  """

  rows: Sequence[np.ndarray]
  columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  rate: float | None = None
  names: Sequence[str] | None = None
  source: str = 'clips'

  def __post_init__(self):
    if not len(self.rows):
      raise InputError(f'{self.source}: found no recording, expected at least one.')
    if self.names is None:
      object.__setattr__(self, 'names', [f'row {i}' for i in range(len(self.rows))])
    for name, column in {**self.columns, 'names': self.names}.items():
      if len(column) != len(self.rows):
        raise InputError(f'{self.source}, {name!r}: found {len(column)} entries, expected {len(self.rows)}, as rows.')

  def __len__(self) -> int:
    return len(self.rows)

  def take(self, which: np.ndarray) -> 'Clips':
    """Those at some places int[M], or where a mask bool[N] is True."""
    which = np.asarray(which)
    places = np.flatnonzero(which) if which.dtype == bool else which
    columns = {name: np.asarray(column)[places] for name, column in self.columns.items()}
    rows, names = [self.rows[i] for i in places], [self.names[i] for i in places]
    return dataclasses.replace(self, rows=rows, columns=columns, names=names)

  def map(self, function: Callable[[np.ndarray], np.ndarray], rate: float | None = None) -> 'Clips':
    """The same with `function` of every row (a front end such as `transforms.speech.log_mel`), of the new `rate`."""
    return dataclasses.replace(self, rows=[np.asarray(function(row)) for row in self.rows], rate=rate)


def npz(
  path: str | os.PathLike,
  *,
  features: str = 'audio',
  offsets: str = 'offset',
  ragged: Mapping[str, str] | None = None,
  rate: str | int | None = 'sample_rate',
  on_bad: OnBad = 'error',
) -> Clips:
  """Recordings, or features of them, end to end in one array of an npz file.

  Args:
    path: the file; nothing is unpickled.
    features: name of the array [total] (audio; integers are divided by their largest, so int16 by 2**15) or
      [total, F]; or, filled up to one length, [N, L] or [N, L, F].
    offsets: name of where each begins, int[N + 1] from 0 to the total, or of their lengths, int[N].
    ragged: {name: name of its offsets or lengths} of other arrays that are laid end to end: transcripts as symbols,
      which become a column of integer arrays.
    rate: name of the sample rate, or the rate; None, or a name that is not there: unknown.
    on_bad: what is done about a recording without a sample or with numbers that are not finite.

  Returns:
    `Clips` whose columns are all other arrays that lead with N.

  Raises:
    InputError: a missing or damaged file, an array that is not there, offsets or lengths that do not fit the total (the
      row is named), a bad recording.

  >>> import tempfile, os
  >>> path = os.path.join(tempfile.mkdtemp(), 'train.npz')
  >>> np.savez(path, feats=np.zeros((5, 40)), frames=[2, 3], text=['yes', 'no'])
  >>> found = npz(path, features='feats', offsets='frames')
  >>> [row.shape for row in found.rows], found.columns['text'].tolist()
  ([(2, 40), (3, 40)], ['yes', 'no'])
  """
  arrays = read_npz(path)
  ragged = dict(ragged or {})
  for argument, name in {'features': features, 'offsets': offsets, **ragged, **{v: v for v in ragged.values()}}.items():
    name = argument if argument in ragged else name
    if name not in arrays:
      raise InputError(f'{path}: {name!r} is no array there, found {sorted(arrays)}.')
  rows = _pieces(path, features, _floats(path, features, arrays[features]), offsets, arrays[offsets])
  columns = {name: _column(_pieces(path, name, arrays[name], key, arrays[key])) for name, key in ragged.items()}
  for name, column in columns.items():
    if len(column) != len(rows):
      raise InputError(f'{path}, {name!r}: found {len(column)} rows, expected {len(rows)}, as in {features!r}.')
  used = {features, offsets, *ragged, *ragged.values()} | ({rate} if isinstance(rate, str) else set())
  columns |= {k: a for k, a in arrays.items() if k not in used and a.ndim and len(a) == len(rows)}
  reading, kept = Reading(path, on_bad), []
  for i, row in enumerate(rows):
    reading.item()
    if not len(row):
      reading.bad(f'row {i} of {features!r}', 'found nothing, expected at least one sample')
    elif not np.isfinite(row).all():
      reading.bad(f'row {i} of {features!r}', 'found NaN or infinity, expected finite numbers')
    else:
      kept.append(i)
  reading.close()
  if isinstance(rate, str):
    rate = _rate(path, rate, arrays[rate]) if rate in arrays else None
  return Clips(rows, columns, rate, source=str(path)).take(np.array(kept, int))


def pad(
  rows: Sequence[np.ndarray], max_length: int | None = None, *, cut: bool = False, where: str = 'clip'
) -> dict[str, np.ndarray]:
  """Rows f[n] or f[n, ...] of different lengths as one array, zeros behind the short ones.

  >>> padded = pad([np.ones((2, 1)), np.ones((1, 1))])
  >>> padded['x'].tolist(), padded['mask'].tolist()
  ([[[1.0], [1.0]], [[1.0], [0.0]]], [[True, True], [True, False]])

  Args:
    rows: N of them, alike but for their lengths.
    max_length: L; None takes the longest.
    cut: whether longer ones lose what is beyond; else they are an error.
    where: what a row is called in messages, with its place behind it.

  Returns:
    {'x': f32[N, L, ...], 'mask': bool[N, L]}.

  Raises:
    InputError: no row, one that is longer, one of another shape.
  """
  rows = [np.asarray(row, np.float32) for row in rows]
  if not rows:
    raise InputError(f'pad: found no {where}, expected at least one.')
  length = max(1, *(len(row) for row in rows)) if max_length is None else max_length
  if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
    raise InputError(f'pad: max_length is {length!r}, expected a positive whole number.')
  x, mask = np.zeros((len(rows), length, *rows[0].shape[1:]), np.float32), np.zeros((len(rows), length), bool)
  for place, row in enumerate(rows):
    if row.shape[1:] != rows[0].shape[1:]:
      raise InputError(f'pad: {where} {place} has shape {row.shape}, expected [frames, *{rows[0].shape[1:]}].')
    if len(row) > length and not cut:
      raise InputError(f'pad: {where} {place} has {len(row)} frames, expected at most {length}; or cut=True.')
    row = row[:length]
    x[place, : len(row)], mask[place, : len(row)] = row, True
  return {'x': x, 'mask': mask}


def ctc_examples(
  clips: Clips,
  tokenizer: Any = None,
  *,
  text: str = 'text',
  max_frames: int | None = None,
  max_symbols: int | None = None,
  subsample: int = 1,
  on_bad: OnBad = 'error',
) -> dict[str, Any]:
  """What `losses.ctc` and its heads learn from: padded features, transcripts as symbols with 0 for the blank.

  Args:
    clips: of features f[frames, F].
    tokenizer: of `transforms.text`, made from the training transcripts; None where the column holds symbols, integer
      arrays from 1 on.
    text: column of the transcripts.
    max_frames, max_symbols: lengths of the arrays; None takes the longest. Give the largest of all splits where these
      are to have one shape.
    subsample: frames for one output of the network (4 for `trunks.Conformer`): a recording too short for its
      transcript, with a blank between equal neighbours, is bad.
    on_bad: what is done about an empty transcript, one with a symbol that the tokeniser does not know, one that is too
      long, or a recording that is: 'error' or 'skip'.

  Returns:
    {'inputs': {'x': f32[N, L, F], 'mask': bool[N, L]}, 'labels': int32[N, S]}.

  Raises:
    InputError: a column that is not there, a bad example, none left.
  """
  if text not in clips.columns:
    raise InputError(f'{clips.source}: found the columns {sorted(clips.columns)}, expected {text!r} among them.')
  reading, kept, labels = Reading(clips.source, on_bad), [], []
  for i, (row, said) in enumerate(zip(clips.rows, clips.columns[text])):
    reading.item()
    ids, wrong = _symbols(said, tokenizer)
    needed = subsample * (len(ids) + sum(a == b for a, b in zip(ids, ids[1:])))
    if wrong is None and max_symbols is not None and len(ids) > max_symbols:
      wrong = f'found {len(ids)} symbols, expected at most {max_symbols}'
    if wrong is None and max_frames is not None and len(row) > max_frames:
      wrong = f'found {len(row)} frames, expected at most {max_frames}'
    if wrong is None and len(row) < needed:
      wrong = f'found {len(row)} frames for {len(ids)} symbols, expected at least {needed}'
    if wrong is None:
      kept.append(i)
      labels.append(ids)
    else:
      reading.bad(f'{clips.names[i]}, {text!r}', wrong)
  reading.close()
  inputs = pad([clips.rows[i] for i in kept], max_frames)
  return {'inputs': inputs, 'labels': pad_ids(labels, max_symbols, where='transcript')['x']}


def _symbols(said, tokenizer) -> tuple[list[int], str | None]:
  """(symbols, what is wrong with them or None)."""
  if tokenizer is None:
    ids = [int(i) for i in np.asarray(said).ravel()]
    low = [i for i in ids if i < 1]
    return ids, 'found no symbol' if not ids else f'found symbol {low[0]}, expected 1 and up' if low else None
  sentence = str(said)
  if not sentence.strip():
    return [], 'found nothing, expected a transcript'
  ids = tokenizer.encode(sentence)
  if UNK in ids:
    part = next((word for word in sentence.split() if UNK in tokenizer.encode(word)), sentence)
    return ids, f'found {part!r}, expected symbols of the vocabulary'
  return ids, None


def _pieces(path, name: str, array: np.ndarray, key: str, bounds: np.ndarray) -> list[np.ndarray]:
  """The rows of an array that they are laid end to end in, or side by side."""
  total = len(array) if array.ndim else 0
  if bounds.ndim != 1 or not len(bounds) or not np.issubdtype(bounds.dtype, np.integer):
    found = f'{bounds.dtype}{list(bounds.shape)}'
    raise InputError(f'{path}, {key!r}: found {found}, expected offsets int[N + 1] or lengths int[N].')
  bounds = bounds.astype(np.int64)
  if bounds[0] == 0 and bounds[-1] == total and (np.diff(bounds) >= 0).all() and len(bounds) > 1:
    return np.split(array, bounds[1:-1])
  if (bounds >= 0).all() and bounds.sum() == total:
    return np.split(array, np.cumsum(bounds)[:-1])
  if len(bounds) == total and array.ndim > 1:  # filled up to one length
    wrong = np.flatnonzero((bounds < 0) | (bounds > array.shape[1]))
    if len(wrong):
      raise InputError(
        f'{path}, {key!r}: row {wrong[0]} of {name!r} has length {bounds[wrong[0]]}, expected 0 to {array.shape[1]}.'
      )
    return [row[:length] for row, length in zip(array, bounds)]
  if bounds[0] == 0 and len(bounds) > 1:  # offsets
    wrong = np.flatnonzero((np.diff(bounds) < 0) | (bounds[1:] > total))
    row, found = (wrong[0], bounds[wrong[0] + 1]) if len(wrong) else (len(bounds) - 2, bounds[-1])
    raise InputError(
      f'{path}, {key!r}: row {row} of {name!r} ends at {found}, expected offsets that rise from 0 to {total}.'
    )
  ends = np.cumsum(bounds)
  wrong = np.flatnonzero((bounds < 0) | (ends > total))
  row = wrong[0] if len(wrong) else len(bounds) - 1
  raise InputError(
    f'{path}, {key!r}: row {row} of {name!r} has length {bounds[row]} and ends at {ends[row]}, expected lengths '
    f'whose sum is {total}.'
  )


def _column(pieces: Iterable[np.ndarray]) -> np.ndarray:
  pieces = list(pieces)
  column = np.empty(len(pieces), object)
  column[:] = pieces
  return column


def _floats(path, name: str, array: np.ndarray) -> np.ndarray:
  if np.issubdtype(array.dtype, np.signedinteger):
    return array.astype(np.float32) / (np.iinfo(array.dtype).max + 1.0)
  if not np.issubdtype(array.dtype, np.floating) or not array.ndim:
    raise InputError(f'{path}, {name!r}: found {array.dtype}{list(array.shape)}, expected floats or signed integers.')
  return array.astype(np.float32)


def _rate(path, name: str, array: np.ndarray) -> int:
  """The one rate of an array of them."""
  rates = np.unique(array)
  if len(rates) != 1 or not rates[0] > 0:
    raise InputError(f'{path}, {name!r}: found {rates[:5].tolist()}, expected one positive sample rate.')
  return rates[0].item()
