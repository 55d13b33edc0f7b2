"""LibriSpeech's layout: SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac, and what is said in SPEAKER-CHAPTER.trans.txt.

https://www.openslr.org/12 (CC BY 4.0; TFDS `librispeech`); LibriTTS, MLS and many others are laid out alike.

Reference: Panayotov, Chen, Povey & Khudanpur, LibriSpeech: an ASR Corpus Based on Public Domain Audio Books (2015),
https://doi.org/10.1109/ICASSP.2015.7178964.
"""

import os
import pathlib

import numpy as np

from mtljax.base import InputError
from mtljax.data import audio
from mtljax.data.clips import Clips
from mtljax.data.lines import read_lines
from mtljax.data.reading import OnBad, Reading

ENDS = ('.flac', '.wav')


def load(
  folder: str | os.PathLike, *, rate: int | None = None, max_seconds: float | None = None, on_bad: OnBad = 'error'
) -> Clips:
  """All recordings below a folder that has transcripts, in the order of their names.

  Args:
    folder: of a split, such as 'LibriSpeech/dev-clean'.
    rate: what all are resampled to; None expects them to have one rate.
    max_seconds: length of the longest recording; longer ones are bad. None takes all.
    on_bad: what is done about a line without a transcript, an utterance without its file, a file that is damaged or too
      long, or of another rate: 'error' or 'skip'.

  Returns:
    `Clips` of audio with columns id, text, speaker (str) and chapter (str).

  Raises:
    InputError: no folder, no transcript in it, what is bad, nothing left.

  All audio is held in memory: an hour at 16 kHz takes 230 MB.
  """
  folder = pathlib.Path(os.path.expanduser(folder))
  transcripts = sorted(folder.rglob('*.trans.txt'))
  if not transcripts:
    raise InputError(f'{folder}: found no *.trans.txt below it, expected SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt.')
  together = Reading(folder, on_bad)  # a chapter may lose all it has
  paths, columns = [], {'id': [], 'text': [], 'speaker': [], 'chapter': []}
  for transcript in transcripts:
    reading = Reading(transcript, on_bad)
    for number, line in read_lines(transcript, reading):
      if line is None or not line.strip():
        continue
      name, _, text = line.strip().partition(' ')
      path = next((p for end in ENDS if (p := transcript.with_name(name + end)).is_file()), None)
      if not text.strip():
        reading.bad(f'line {number}', f'found no transcript of {name!r}, expected one behind a blank')
      elif path is None:
        reading.bad(f'line {number}', f'found no file {name}.flac or {name}.wav beside it')
      else:
        paths.append(path)
        chapter = transcript.parent
        for column, value in zip(columns.values(), (name, text.strip(), chapter.parent.name, chapter.name)):
          column.append(value)
    together.count += reading.count
    together.skipped += [f'{transcript.relative_to(folder)}, {what}' for what in reading.skipped]
  together.close()
  found = audio.read_files(paths, columns, rate=rate, on_bad=on_bad)
  if max_seconds is None:
    return found
  reading, kept = Reading(folder, on_bad), []
  for i, row in enumerate(found.rows):
    reading.item()
    if len(row) > max_seconds * found.rate:
      reading.bad(found.names[i], f'found {len(row) / found.rate:.2f} seconds, expected at most {max_seconds}')
    else:
      kept.append(i)
  reading.close()
  return found.take(np.array(kept, int))
