"""Labelled texts: files of one text a row with the labels of one or several tasks, and the sets of `text_cls`.

`read` takes any such file. The known sets (`SETS`) are MR and Subj (Pang & Lee 2005, https://aclanthology.org/P05-1015,
and 2004, https://aclanthology.org/P04-1035), TREC (Li & Roth 2002, https://aclanthology.org/C02-1150), SST-2 (Socher et
al. 2013, https://aclanthology.org/D13-1170), CR (Hu & Liu 2004, https://doi.org/10.1145/1014052.1014073) and AG news
(Zhang et al. 2015, https://arxiv.org/abs/1509.01626). TFDS has `glue/sst2`, `ag_news_subset` and `trec`, for
`data.from_tfds`.
"""

import csv
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.lines import locate, read_lines, read_objects
from mtljax.data.reading import OnBad, Reading

SETS = {
  'mr_sentiment': ('0', '1'),
  'subj_subjectivity': ('0', '1'),
  'trec_question': ('0', '1', '2', '3', '4', '5'),
  'sst2_sentiment': ('0', '1'),
  'cr_product_sentiment': ('0', '1'),
  'ag_news_topic': ('0', '1', '2', '3'),
}
APART = ('mr_sentiment', 'sst2_sentiment')  # SST-2 is made of MR: tests of one are in the training file of the other


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Texts and their labels.

  Attributes:
    texts: N of them.
    labels: {task: int32[N]}, places in `classes`; 0 where there is none.
    mask: {task: bool[N]}, where there is a label.
    classes: {task: names}.
  """

  texts: Sequence[str]
  labels: Mapping[str, np.ndarray]
  mask: Mapping[str, np.ndarray]
  classes: Mapping[str, tuple[str, ...]]

  def examples(self, inputs: PyTree) -> PyTree:
    """{'inputs', 'labels', 'mask'} for `data.Batches`, of what a tokeniser made of the texts; no mask where all count.

    Of one task in a multi-input batch: `{task: {'inputs': ..., 'labels': labels[task], 'mask': mask[task]}}`.
    """
    found = {'inputs': inputs, 'labels': dict(self.labels)}
    mask = {task: m for task, m in self.mask.items() if not m.all()}
    return {**found, 'mask': mask} if mask else found

  def take(self, rows: np.ndarray) -> 'Labelled':
    """Some of the texts, in the order of int[M] `rows`."""
    labels, mask = ({task: x[rows] for task, x in part.items()} for part in (self.labels, self.mask))
    return Labelled([self.texts[i] for i in rows], labels, mask, self.classes)

  def split(self, fractions: Mapping[str, float]) -> dict[str, 'Labelled']:
    """Disjoint parts by a hash of the lower-cased text, so that a text is in one part only, in whatever sets it stands.

    >>> sentences = [f'sentence {i}' for i in range(1000)]
    >>> labels, mask = {'a': np.zeros(1000, np.int32)}, {'a': np.ones(1000, bool)}
    >>> parts = Labelled(sentences, labels, mask, {'a': ('no', 'yes')}).split({'train': 0.9, 'val': 0.1})
    >>> {name: len(part.texts) for name, part in parts.items()}
    {'train': 893, 'val': 107}

    Raises:
      InputError: fractions that are not positive or do not sum to 1, a part without a label of a task.
    """
    shares = list(fractions.values())
    if not shares or not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
      raise InputError(f'split fractions: found {dict(fractions)}, expected positive numbers that sum to 1.')
    part = np.searchsorted(np.cumsum(shares)[:-1], [_place(text) for text in self.texts], side='right')
    parts = {name: self.take(np.flatnonzero(part == i)) for i, name in enumerate(fractions)}
    for name, found in parts.items():
      empty = [task for task, mask in found.mask.items() if not mask.any()]
      if empty:
        raise InputError(f'split fractions: {name!r} gets no label of task {empty[0]!r}, expected at least one.')
    return parts


def read(
  path: str | os.PathLike,
  labels: Mapping[str, str] | str = 'label',
  *,
  text: str = 'text',
  layout: Literal['jsonl', 'tsv', 'csv'] | None = None,
  columns: Sequence[str] | None = None,
  classes: Mapping[str, Sequence[str]] | None = None,
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> Labelled:
  """Texts and labels of a file with one text a row.

  A label that is not there (no such key, null, an empty cell) is masked, so that a file can hold labels of several
  tasks that are each known for some of its texts.

  Args:
    path: the file, plain or .gz, UTF-8.
    labels: {task: key or column of its labels}; a single name is a task of that name.
    text: key or column of the text.
    layout: 'jsonl', an object a line; 'tsv', cells between tabs, nothing is quoted; 'csv', cells between commas, quoted
      where they hold commas or line ends. None goes by the name of the file.
    columns: names of the columns of a table whose first line is no header.
    classes: {task: all its labels, as strings}, such as those of the training file; a task without an entry takes what
      it finds, sorted (numbers by value).
    max_length: most words (between blanks) of a text.
    on_bad: what is done about a bad row: 'error', or 'skip'.

  Returns:
    A `Labelled`.

  Raises:
    InputError: a missing or damaged file, no such key or column; a row with an empty or too long text, a label that is
      none of the classes, another number of cells; a task without any label.
  """
  tasks = {labels: labels} if isinstance(labels, str) else dict(labels)
  layout = _layout(path) if layout is None else layout
  if layout not in ('jsonl', 'tsv', 'csv'):
    raise InputError(f"layout: found {layout!r}, expected 'jsonl', 'tsv' or 'csv'.")
  unknown = sorted(set(classes or {}) - set(tasks))
  if unknown or not tasks:
    raise InputError(f'classes: found {unknown}, expected tasks among {list(tasks)}.')
  known = {task: {str(name): i for i, name in enumerate(names)} for task, names in (classes or {}).items()}
  reading = Reading(path, on_bad)
  texts, found = [], {task: [] for task in tasks}
  rows = (
    read_objects(path, reading)
    if layout == 'jsonl'
    else _table(path, layout, columns, (text, *tasks.values()), reading)
  )
  for number, row in rows:
    names = {task: _name(row.get(key)) for task, key in tasks.items()}
    wrong = _wrong(row.get(text), text, names, known, max_length)
    if wrong:
      reading.bad(f'line {number}', wrong)
      continue
    texts.append(row[text].strip())
    for task, name in names.items():
      found[task].append(name)
  reading.close()
  if not texts:
    raise InputError(f'{path}: found no text, expected at least one.')
  for task, key in tasks.items():
    if not any(name is not None for name in found[task]):
      raise InputError(f'{path}: task {task!r} has no label {key!r} in any of {len(texts)} rows, expected some.')
    if task not in known:
      known[task] = {name: i for i, name in enumerate(sorted({n for n in found[task] if n is not None}, key=_order))}
  mask = {task: np.array([name is not None for name in names]) for task, names in found.items()}
  ids = {task: np.array([known[task].get(name, 0) for name in names], np.int32) for task, names in found.items()}
  return Labelled(texts, ids, mask, {task: tuple(known[task]) for task in tasks})


def text_cls(
  data_dir: str | os.PathLike,
  sets: Mapping[str, str],
  *,
  val: float = 0.1,
  max_length: int | None = None,
  on_bad: OnBad = 'error',
) -> dict[str, dict[str, Labelled]]:
  """Known sets, each with a split for training, validation and testing: {task: {'train', 'val', 'test'}}.

  The files are `<set>.train.jsonl`, `<set>.test.jsonl` and, of SST-2, `<set>.dev.jsonl`, plain or .gz, of rows {'text',
  'label'}. Where there is none for validation, it is drawn from the training file by a hash of the text, so that a
  sentence of MR that is one of Subj too is in the same part of both.

  Args:
    data_dir: folder of the files, or the folder above it, called text_cls.
    sets: {task: set}, such as {'sentiment': 'mr_sentiment'}; see `SETS`.
    val: the share of the training file that is for validation.
    max_length, on_bad: as in `read`.

  Raises:
    InputError: as `read`; an unknown set, MR and SST-2 together.
  """
  unknown = sorted(set(sets.values()) - set(SETS))
  if unknown or not sets:
    raise InputError(f'sets: found {unknown or dict(sets)}, expected {{task: one of {tuple(SETS)}}}.')
  if set(APART) <= set(sets.values()):
    raise InputError(f'sets: found {APART} together, expected one of them: sentences for testing are in both.')
  loaded = {}
  for task, name in sets.items():

    def part(split, task=task, name=name):
      path = locate(data_dir, f'{name}.{split}.jsonl', 'text_cls')
      return read(path, {task: 'label'}, classes={task: SETS[name]}, max_length=max_length, on_bad=on_bad)

    loaded[task] = {'train': part('train'), 'test': part('test')}
    if name == 'sst2_sentiment':
      loaded[task]['val'] = part('dev')
    else:
      loaded[task] |= loaded[task]['train'].split({'train': 1 - val, 'val': val})
  return loaded


def _place(text: str) -> float:
  """A number in [0, 1) for a text, whatever its case."""
  return int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:8], 'big') / 2**64


def _layout(path) -> str:
  name = os.fspath(path).removesuffix('.gz')
  end = name.rpartition('.')[2].lower()
  if end not in ('jsonl', 'json', 'tsv', 'csv'):
    raise InputError(f"layout: {path} does not tell, expected 'jsonl', 'tsv' or 'csv'.")
  return 'jsonl' if end == 'json' else end


def _table(path, layout, columns, expected, reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
  """(number, {column: cell}) of the rows of a table."""
  numbers = []

  def text():
    for number, line in read_lines(path, reading):
      numbers[:] = [number]
      if line is not None and line.strip():
        yield line + '\n'

  dialect = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if layout == 'tsv' else {'strict': True}
  cells = csv.reader(text(), **dialect)
  while True:
    try:
      row = next(cells, None)
    except csv.Error as error:
      reading.bad(f'line {numbers[0]}', f'cannot be taken apart, expected cells ({error})')
      continue
    if row is None:
      return
    if columns is None:
      columns = [name.strip() for name in row]
      missing = [name for name in expected if name not in columns]
      if missing:
        raise InputError(f'{path}, line {numbers[0]}: found no column {missing[0]!r}, expected it among {columns}.')
    elif len(row) != len(columns):
      reading.bad(f'line {numbers[0]}', f'found {len(row)} cells, expected {len(columns)}: {list(columns)}')
    else:
      yield numbers[0], dict(zip(columns, row))


def _name(value: Any) -> str | None:
  """A label as a string; None where there is none."""
  name = '' if value is None else str(value).strip()
  return name or None


def _order(name: str):
  return (0, float(name), name) if name.lstrip('-').isdecimal() else (1, 0.0, name)


def _wrong(text, key, names, known, max_length) -> str | None:
  if not isinstance(text, str):
    return f'found {text!r} as {key!r}, expected a text'
  if not text.strip():
    return f'found nothing as {key!r}, expected a text'
  if max_length is not None and len(text.split()) > max_length:
    return f'found {len(text.split())} words, expected at most {max_length}'
  for task, name in names.items():
    if name is not None and task in known and name not in known[task]:
      return f'task {task!r}: found the label {name!r}, expected one of {list(known[task])}'
  return None
