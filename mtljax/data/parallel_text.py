"""Parallel text: the same sentences in several languages, line by line in files of their own.

`read` takes any such files. Known layouts: Multi30k (https://github.com/multi30k/dataset, captions in en, de, fr, cs;
Elliott et al. 2016, https://aclanthology.org/W16-3210) and IWSLT (https://wit3.fbk.eu, TED talks; Cettolo et al. 2012,
https://aclanthology.org/2012.eamt-1.60), whose training files have lines of tags and whose other files are XML. TFDS
has other pairs (`wmt14_translate`, `ted_hrlr_translate`), for `data.from_tfds`.
"""

import html
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from mtljax.base import InputError
from mtljax.data.lines import locate, read_lines
from mtljax.data.reading import OnBad, Reading

TAG = re.compile(r'\s*</?(url|keywords|speaker|talkid|title|description|reviewer|translator|doc)\b', re.IGNORECASE)
SEGMENT = re.compile(r'\s*<seg\s+id\s*=\s*["\']?(\w+)["\']?\s*>(.*)</seg>\s*', re.IGNORECASE)

Sentences = dict[str, list[str]]


def read(
  paths: Mapping[str, str | os.PathLike],
  *,
  layout: Literal['lines', 'tags', 'seg'] = 'lines',
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> Sentences:
  """Aligned sentences of files that say the same in several languages.

  Args:
    paths: {language: file}, plain or .gz, UTF-8.
    layout: 'lines', a sentence on every line; 'tags', the same between lines of tags (<url>, <title>, ...), which are
      dropped; 'seg', sentences in <seg id="1"> ... </seg>, all other lines are dropped.
    max_length: most words (between blanks) of a sentence, in any language.
    on_bad: what is done about an empty, undecodable or too long sentence: 'error', or 'skip' (in all languages).

  Returns:
    {language: sentences}, as many in each, without blanks at their ends.

  Raises:
    InputError: another layout, a missing or damaged file, a bad sentence, files with different numbers of sentences
      (whatever `on_bad` says: which belong together is then unknown), nothing left.
  """
  if layout not in ('lines', 'tags', 'seg'):
    raise InputError(f"layout: found {layout!r}, expected 'lines', 'tags' or 'seg'.")
  if not isinstance(paths, Mapping) or not paths:
    raise InputError(f'paths: found {paths!r}, expected {{language: file}}.')
  readings = {language: Reading(path, on_bad) for language, path in paths.items()}
  parts = {language: list(_sentences(paths[language], layout, readings[language])) for language in paths}
  first = next(iter(paths))
  for language in paths:
    if len(parts[language]) != len(parts[first]):
      found, expected = len(parts[language]), len(parts[first])
      raise InputError(f'{paths[language]}: found {found} sentences, expected {expected}, as in {paths[first]}.')
  together = Reading(' and '.join(str(path) for path in paths.values()), on_bad)
  kept = {language: [] for language in paths}
  for row in zip(*parts.values()):
    together.item()
    wrong = _wrong(dict(zip(paths, row)), max_length)
    if wrong is None:
      for language, (_, _, text) in zip(paths, row):
        kept[language].append(text)
      continue
    language, number, message = wrong
    if on_bad == 'error':
      readings[language].bad(f'line {number}', message)  # names the file in full
    together.bad(f'{pathlib.Path(paths[language]).name}, line {number}', message)
  together.close()
  if not kept[first]:
    raise InputError(f'{paths[first]}: found no sentence, expected at least one.')
  return kept


def multi30k(
  data_dir: str | os.PathLike,
  split: str,
  languages: Sequence[str] = ('en', 'de'),
  *,
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> Sentences:
  """Multi30k, or files named alike: `<split>.<language>` or `<split>.<language>.gz`.

  Args:
    data_dir: folder of the files, or the folder above it, called multi30k.
    split: 'train' (29000), 'val' (1014), 'test_2016_flickr' (1000), ...
    languages: of 'en', 'de', 'fr', 'cs'.
    max_length, on_bad: as in `read`.

  Raises:
    InputError: as `read`; a file that is not there.
  """
  paths = {language: locate(data_dir, f'{split}.{language}', 'multi30k') for language in languages}
  return read(paths, max_length=max_length, on_bad=on_bad)


def iwslt(
  data_dir: str | os.PathLike,
  split: str,
  languages: Sequence[str] = ('de', 'en'),
  *,
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> Sentences:
  """IWSLT's TED talks, one pair of languages: `train.tags.de-en.de`, `IWSLT17.TED.tst2010.de-en.de.xml`, ...

  Args:
    data_dir: folder of the pair's files, or the folder above it, called iwslt.
    split: 'train', or what the name of an XML file says: 'dev2010', 'tst2010', ...
    languages: the pair, in any order.
    max_length, on_bad: as in `read`.

  Raises:
    InputError: as `read`; no file, or several, of that split.
  """
  if len(languages) != 2:
    raise InputError(f'languages: found {list(languages)}, expected two of them.')
  a, b = languages
  pairs = (f'{a}-{b}', f'{b}-{a}')
  if split == 'train':
    paths = {language: _one(data_dir, [f'train.tags.{pair}.{language}*' for pair in pairs]) for language in languages}
    return read(paths, layout='tags', max_length=max_length, on_bad=on_bad)
  paths = {language: _one(data_dir, [f'*{split}.{pair}.{language}.xml*' for pair in pairs]) for language in languages}
  return read(paths, layout='seg', max_length=max_length, on_bad=on_bad)


def _one(data_dir, patterns) -> pathlib.Path:
  data_dir = pathlib.Path(os.path.expanduser(data_dir))
  folders = (data_dir, data_dir / 'iwslt')
  found = [path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))]
  if len(found) != 1:
    names = [path.name for path in found]
    raise InputError(f'data_dir: {str(data_dir)!r} has the files {names}, expected one called {" or ".join(patterns)}.')
  return found[0]


def _sentences(path, layout, reading):
  """(number of the line, id of the segment or None, text or None)."""
  for number, line in read_lines(path, reading):
    if layout == 'seg':
      segment = line and SEGMENT.fullmatch(line)
      if segment:
        yield number, segment[1], html.unescape(segment[2]).strip()
    elif line is None or layout == 'lines' or not TAG.match(line):
      yield number, None, line if line is None else line.strip()


def _wrong(row, max_length):
  """(language, line, what is wrong) of the first sentence that is bad, or None."""
  segments = {segment for _, segment, _ in row.values()}
  for language, (number, segment, text) in row.items():
    if text is None:
      return language, number, 'found bytes that are no UTF-8 text'
    if not text:
      return language, number, 'found nothing, expected a sentence'
    if len(segments) > 1:
      return language, number, f'found segment {segment!r}, expected one of {sorted(segments - {segment})}'
    if max_length is not None and len(text.split()) > max_length:
      return language, number, f'found {len(text.split())} words, expected at most {max_length}'
  return None
