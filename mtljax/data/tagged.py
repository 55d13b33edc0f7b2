"""Tagged sentences: a tag for every word, of one or several tasks; JSON lines, CoNLL-U, columns.

`read` takes any such file. CoNLL-U is the format of the Universal Dependencies treebanks (Nivre et al. 2020,
https://aclanthology.org/2020.lrec-1.497; https://universaldependencies.org/format.html), columns are that of the CoNLL
shared tasks. `wnut17` loads the entities of WNUT-17 (https://github.com/leondz/emerging_entities_17;
Derczynski et al. 2017, https://aclanthology.org/W17-4418).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.lines import locate, read_lines, read_objects
from mtljax.data.reading import OnBad, Reading
from mtljax.data.transforms import text

CONLLU = ('id', 'form', 'lemma', 'upos', 'xpos', 'feats', 'head', 'deprel', 'deps', 'misc')
WNUT17 = {'train': 'wnut17train.conll', 'dev': 'emerging.dev.conll', 'test': 'emerging.test.annotated'}


@dataclasses.dataclass(frozen=True)
class Tagged:
  """Sentences and their tags.

  Attributes:
    words: N sentences.
    labels: {task: N arrays int32[L]}, places in `tags`; 0 where there is none.
    mask: {task: N arrays bool[L]}, where there is a tag.
    tags: {task: names}.
  """

  words: Sequence[Sequence[str]]
  labels: Mapping[str, Sequence[np.ndarray]]
  mask: Mapping[str, Sequence[np.ndarray]]
  tags: Mapping[str, tuple[str, ...]]

  @property
  def sentences(self) -> list[str]:
    """The words between blanks, for tokenisers with the pattern `text.BLANKS`; a blank within a word becomes '_'.

    >>> Tagged([['10 000', 'dogs']], {}, {}, {}).sentences
    ['10_000 dogs']
    """
    return [' '.join('_'.join(word.split()) for word in words) for words in self.words]

  def examples(self, inputs: PyTree, max_length: int | None = None) -> PyTree:
    """{'inputs', 'labels': {task: int32[N, L]}, 'mask': {task: bool[N, L]}} for `data.Batches`.

    Of one task in a multi-input batch: `{task: {'inputs': ..., 'labels': labels[task], 'mask': mask[task]}}`.

    Args:
      inputs: what was made of the words; leaves lead with N.
      max_length: L, that of the inputs; None takes the longest sentence.

    Raises:
      InputError: a longer sentence.
    """
    labels = {task: text.pad(rows, max_length)['x'] for task, rows in self.labels.items()}
    mask = {task: text.pad(rows, max_length)['x'].astype(bool) for task, rows in self.mask.items()}
    return {'inputs': inputs, 'labels': labels, 'mask': mask}

  def take(self, rows: Sequence[int]) -> 'Tagged':
    """Some of the sentences, in the order of int[M] `rows`."""
    labels, mask = ({task: [x[i] for i in rows] for task, x in part.items()} for part in (self.labels, self.mask))
    return Tagged([self.words[i] for i in rows], labels, mask, self.tags)


def read(
  path: str | os.PathLike,
  labels: Mapping[str, str] | str,
  *,
  words: str = 'form',
  layout: Literal['jsonl', 'conllu', 'columns'] | None = None,
  columns: Sequence[str] | None = None,
  tags: Mapping[str, Sequence[str]] | None = None,
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> Tagged:
  """Sentences of a file, with the tags of some tasks.

  A tag that is not there (null, or '_' in CoNLL-U) is masked, and so are all of a sentence without the task's key: a
  file can hold tags of several tasks that are each known for some of its sentences.

  Args:
    path: the file, plain or .gz, UTF-8.
    labels: {task: key or column of its tags}; a single name is a task of that name. In CoNLL-U a column may be followed
      by the name of one of its attributes: 'feats:Number', 'misc:NER'.
    words: key or column of the words.
    layout: 'jsonl', an object of lists a line; 'conllu', a word a line, ten columns (`CONLLU`), of which lines of
      multiword tokens (1-2) and empty nodes (1.1) are no words; 'columns', a word a line, cells between tabs or blanks,
      an empty line behind a sentence. None goes by the name of the file.
    columns: names of the columns of the layout 'columns'.
    tags: {task: all its tags}, such as those of the training file; a task without an entry takes what it finds, sorted,
      'O' first.
    max_length: most words of a sentence.
    on_bad: what is done about a bad sentence: 'error', or 'skip'.

  Returns:
    A `Tagged`.

  Raises:
    InputError: a missing or damaged file, another layout, no such column; a sentence without words or with too many,
      with another number of tags than of words, with a tag that is none of the task's; a task without any tag.
  """
  tasks = {labels: labels} if isinstance(labels, str) else dict(labels)
  unknown = sorted(set(tags or {}) - set(tasks))
  if unknown or not tasks:
    raise InputError(f'tags: found {unknown}, expected tasks among {list(tasks)}.')
  known = {task: {name: i for i, name in enumerate(names)} for task, names in (tags or {}).items()}
  layout = _layout(path) if layout is None else layout
  reading = Reading(path, on_bad)
  if layout == 'jsonl':
    found = _objects(path, words, tasks, reading)
  elif layout in ('conllu', 'columns'):
    columns = CONLLU if layout == 'conllu' else tuple(columns or ())
    for key in (words, *tasks.values()):
      if key.partition(':')[0] not in columns:
        raise InputError(f'{path}: found no column {key!r}, expected one of columns={columns}.')
    found = _blocks(path, words, tasks, layout, columns, reading)
  else:
    raise InputError(f"layout: found {layout!r}, expected 'jsonl', 'conllu' or 'columns'.")
  sentences, names = [], {task: [] for task in tasks}
  for number, sentence, by_task in found:
    wrong = _wrong(sentence, by_task, known, max_length)
    if wrong:
      reading.bad(f'line {number}', wrong)
      continue
    sentences.append(sentence)
    for task in tasks:
      names[task].append(by_task[task])
  reading.close()
  if not sentences:
    raise InputError(f'{path}: found no sentence, expected at least one.')
  for task, key in tasks.items():
    seen = {name for row in names[task] for name in row if name is not None}
    if not seen:
      raise InputError(f'{path}: task {task!r} has no tag {key!r} in any of {len(sentences)} sentences, expected some.')
    if task not in known:
      known[task] = {name: i for i, name in enumerate(sorted(seen, key=lambda name: (name != 'O', name)))}
  ids = {t: [np.array([known[t].get(name, 0) for name in row], np.int32) for row in rows] for t, rows in names.items()}
  mask = {t: [np.array([name is not None for name in row]) for row in rows] for t, rows in names.items()}
  return Tagged(sentences, ids, mask, {task: tuple(known[task]) for task in tasks})


def wnut17(
  data_dir: str | os.PathLike, task: str = 'entities', *, max_length: int | None = None, on_bad: OnBad = 'error'
) -> dict[str, Tagged]:
  """WNUT-17, {'train', 'val', 'test'}: the files of its repository, or `train.jsonl`, ... of {'form', 'ner'}.

  Args:
    data_dir: folder of the files, or the folder above it, called wnut17_ner.
    task: name of the task.
    max_length, on_bad: as in `read`.

  Raises:
    InputError: as `read`; a file that is not there.
  """
  splits, tags = {}, None
  for split, name in WNUT17.items():
    try:
      path = locate(data_dir, f'{split}.jsonl', 'wnut17_ner')
    except InputError:
      path = locate(data_dir, name, 'wnut17_ner')
    layout = 'jsonl' if 'jsonl' in path.name else 'columns'
    options = dict(layout=layout, columns=('form', 'ner'), tags=tags, max_length=max_length, on_bad=on_bad)
    splits['val' if split == 'dev' else split] = read(path, {task: 'ner'}, **options)
    tags = splits['train'].tags
  return splits


def _layout(path) -> str:
  name = os.fspath(path).removesuffix('.gz')
  end = pathlib.Path(name).suffix.lower()
  layouts = {'.jsonl': 'jsonl', '.json': 'jsonl', '.conllu': 'conllu'}
  if end not in layouts:
    raise InputError(f"layout: {path} does not tell, expected 'jsonl', 'conllu' or 'columns'.")
  return layouts[end]


def _objects(path, words, tasks, reading) -> Iterator[tuple[int, list | str, dict]]:
  """(line, words or what is wrong, {task: tags}) of JSON lines."""
  for number, row in read_objects(path, reading):
    sentence = row.get(words)
    if not isinstance(sentence, list) or not all(isinstance(word, str) for word in sentence):
      found = f'{str(sentence)[:40]!r} as {words!r}' if words in row else f'no {words!r} but {sorted(row)}'
      yield number, f'found {found}, expected a list of words', {}
      continue
    by_task, wrong = {}, ''
    for task, key in tasks.items():
      found = row.get(key)
      if found is not None and not isinstance(found, list):
        wrong = f'task {task!r}: found {str(found)[:40]!r} as {key!r}, expected a list of tags'
      by_task[task] = [None] * len(sentence) if found is None else found
    yield number, wrong or sentence, by_task


def _blocks(path, words, tasks, layout, columns, reading: Reading) -> Iterator[tuple[int, list | str, dict]]:
  """(first line, words or what is wrong, {task: tags}) of the blocks between empty lines; `reading` counts blocks."""
  rows, first, wrong = [], 0, ''

  def block():
    reading.item()
    sentence = [_cell(row, words, columns) or '_' for row in rows]
    by_task = {task: [_tag(row, key, columns, layout) for row in rows] for task, key in tasks.items()}
    return first, wrong or sentence, by_task

  for number, line in read_lines(path, Reading(path, reading.on_bad)):
    if line is not None and not line.strip():
      if first:
        yield block()
      rows, first, wrong = [], 0, ''
      continue
    if layout == 'conllu' and line is not None and line.startswith('#'):
      continue
    first = first or number
    cells = [] if line is None else line.split('\t') if layout == 'conllu' or '\t' in line else line.split()
    if len(cells) != len(columns):
      wrong = wrong or f'in line {number} found {len(cells)} cells, expected {len(columns)}: {list(columns)}'
    elif layout == 'conllu' and re.fullmatch(r'\d+[-.]\d+', cells[0]):
      continue
    elif layout == 'conllu' and cells[0] != str(len(rows) + 1):
      wrong = wrong or f'in line {number} found the id {cells[0]!r}, expected {str(len(rows) + 1)!r}'
    else:
      rows.append(cells)
  if first:
    yield block()


def _cell(row: Sequence[str], key: str, columns: Sequence[str]) -> str:
  column, _, attribute = key.partition(':')
  cell = row[columns.index(column)]
  if not attribute:
    return cell
  return dict(part.partition('=')[::2] for part in cell.split('|')).get(attribute, '')


def _tag(row, key, columns, layout) -> str | None:
  cell = _cell(row, key, columns).strip()
  return None if not cell or (layout == 'conllu' and cell == '_') else cell


def _wrong(sentence, by_task, known, max_length) -> str | None:
  """What is wrong with a sentence."""
  if isinstance(sentence, str):
    return sentence
  if not sentence:
    return 'found no word, expected a sentence'
  if any(not word.strip() for word in sentence):
    return f'word {[bool(word.strip()) for word in sentence].index(False) + 1} is empty, expected a word'
  if max_length is not None and len(sentence) > max_length:
    return f'found {len(sentence)} words, expected at most {max_length}'
  for task, names in by_task.items():
    if len(names) != len(sentence):
      return f'task {task!r}: found {len(names)} tags, expected {len(sentence)}, one for each word'
    for place, name in enumerate(names, 1):
      if name is not None and (not isinstance(name, str) or (task in known and name not in known[task])):
        expected = f'one of {list(known[task])}' if task in known else 'a tag (str)'
        return f'task {task!r}: found {name!r} at word {place}, expected {expected}'
  return None
