"""Audio files: wav, flac, ogg and what else libsndfile reads, mono, at one sample rate."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mtljax.base import InputError
from mtljax.data.clips import Clips
from mtljax.data.reading import OnBad, Reading


def read(path: str | os.PathLike, rate: int | None = None) -> tuple[np.ndarray, int]:
  """(f32[samples] in -1..1, samples per second) of a file; channels are averaged.

  Args:
    path: the file.
    rate: what it is resampled to; None keeps its own.

  Raises:
    InputError: no such file, one that is damaged or no audio file, one without a sample or with numbers that are not
      finite, a rate that is not positive.
  """
  import soundfile

  if not os.path.isfile(path):
    raise InputError(f'{path}: found no such file, expected an audio file.')
  try:
    with soundfile.SoundFile(path) as file:
      expected, own = file.frames, file.samplerate
      samples = file.read(dtype='float32', always_2d=True)
  except soundfile.SoundFileError as error:
    raise InputError(f'{path}: cannot be read, expected an audio file: {error}') from error
  if len(samples) != expected or not len(samples):
    raise InputError(f'{path}: found {len(samples)} samples, expected {expected or "at least one"}.')
  if not np.isfinite(samples).all():
    raise InputError(f'{path}: found NaN or infinity, expected finite samples.')
  mono = samples.mean(axis=1)
  return (mono, own) if rate is None else (resample(mono, own, rate), rate)


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
  """f32[samples] at `target` per second instead of `rate`, by soxr (high quality).

  >>> resample(np.ones(800, np.float32), 8000, 16000).shape
  (1600,)

  Raises:
    InputError: a rate that is not positive, samples that are not one floating axis.
  """
  import soxr

  for name, value in (('rate', rate), ('target', target)):
    if isinstance(value, bool) or not value > 0:
      raise InputError(f'resample: {name} is {value!r}, expected a positive number of samples per second.')
  samples = np.asarray(samples)
  if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
    raise InputError(f'resample: samples are {samples.dtype}{list(samples.shape)}, expected floats [samples].')
  samples = samples.astype(np.float32)
  return samples if rate == target else soxr.resample(samples, rate, target)


def at_rate(clips: Clips, rate: int | None) -> Clips:
  """Recordings resampled to `rate`, where that is given and is not theirs.

  Raises:
    InputError: recordings of an unknown rate.
  """
  own = clips.rate
  if rate is None or rate == own:
    return clips
  if own is None:
    raise InputError(f'{clips.source}: found no sample rate, expected one to resample to {rate}.')
  return clips.map(lambda samples: resample(samples, own, rate), rate)


def read_files(
  paths: Sequence[str | os.PathLike],
  columns: Mapping[str, Sequence] | None = None,
  *,
  rate: int | None = None,
  on_bad: OnBad = 'error',
) -> Clips:
  """Many files as `Clips` of one sample rate.

  Args:
    paths: the files.
    columns: {name: an entry for each file}, such as {'text': transcripts}.
    rate: what all are resampled to; None expects them to have one rate.
    on_bad: what is done about a file that cannot be read, or has another rate than the first: 'error' or 'skip'.

  Raises:
    InputError: no file, columns of another length, a bad file, nothing left.
  """
  paths = [pathlib.Path(path) for path in paths]
  if not paths:
    raise InputError('read_files: found no path, expected audio files.')
  columns = {name: np.asarray(column) for name, column in (columns or {}).items()}
  for name, column in columns.items():
    if len(column) != len(paths):
      raise InputError(f'read_files columns[{name!r}]: found {len(column)} entries, expected {len(paths)}, as paths.')
  folder = os.path.commonpath([path.parent for path in paths])
  reading, rows, kept, first = Reading(folder, on_bad), [], [], None
  for i, path in enumerate(paths):
    reading.item()
    try:
      samples, own = read(path, rate)
    except InputError as error:
      if on_bad == 'error':
        raise
      reading.bad(path.name, str(error).removeprefix(f'{path}: ').removesuffix('.'))
      continue
    first = (own, path) if first is None else first
    if own != first[0]:
      found = f'found {own} samples per second, expected {first[0]}, as in {first[1].name}; or give a rate'
      reading.bad(str(path.relative_to(folder)), found)
      continue
    rows.append(samples)
    kept.append(i)
  reading.close()
  names = [str(paths[i].relative_to(folder)) for i in kept]
  return Clips(rows, {name: column[kept] for name, column in columns.items()}, first[0], names, folder)
