"""A csv file as named columns: numbers, or text."""

import csv
import dataclasses
import gzip
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtljax.base import InputError
from mtljax.data import sources

MISSING = ('', 'NA', 'N/A', 'nan', 'NaN')


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Named columns of one length, and where each row stands in its file.

  >>> table = Table({'age': np.array([30.0, np.nan]), 'work': np.array(['a', 'b'], object)}, source='x.csv')
  >>> len(table), table.is_number('age'), table['work'].tolist()
  (2, True, ['a', 'b'])
  >>> table.rows([1])['work'].tolist()
  ['b']

  Attributes:
    columns: {name: float64[N], NaN where a value is missing, or object[N] of text, '' where it is}.
    source: the file, for messages.
    lines: int[N], the line of the file that a row ends on; None counts the rows from 1.

  Raises:
    InputError: no column, no row, columns of different length.
  """

  columns: Mapping[str, np.ndarray]
  source: str = 'table'
  lines: np.ndarray | None = None

  def __post_init__(self):
    if not self.columns:
      raise InputError(f'{self.source}: found no column, expected at least one.')
    lengths = {name: len(column) for name, column in self.columns.items()}
    if len(set(lengths.values())) > 1:
      raise InputError(f'{self.source}: found columns of lengths {lengths}, expected one length.')
    count = next(iter(lengths.values()))
    if not count:
      raise InputError(f'{self.source}: found no row, expected at least one.')
    if self.lines is None:
      object.__setattr__(self, 'lines', np.arange(1, count + 1))

  def __len__(self):
    return len(self.lines)

  def __getitem__(self, name: str) -> np.ndarray:
    """A column; raises an InputError with the names there are."""
    if name not in self.columns:
      raise InputError(f'{self.source}: found no column {name!r}, expected one of {list(self.columns)}.')
    return self.columns[name]

  def is_number(self, name: str) -> bool:
    """Whether a column holds numbers, and not text."""
    return self[name].dtype != object

  def missing(self, name: str) -> np.ndarray:
    """bool[N], where a column has no value."""
    return np.isnan(self[name]) if self.is_number(name) else self[name] == ''

  def where(self, row: int) -> str:
    """'file, line 7', for messages."""
    return f'{self.source}, line {self.lines[row]}'

  def rows(self, chosen: Any) -> 'Table':
    """Some rows: a mask bool[N] or indices."""
    columns = {name: column[chosen] for name, column in self.columns.items()}
    return Table(columns, self.source, self.lines[chosen])

  def without(self, *names: str) -> 'Table':
    """All columns but some."""
    for name in names:
      self[name]
    columns = {name: column for name, column in self.columns.items() if name not in names}
    return Table(columns, self.source, self.lines)

  def split_by(self, column: str, parts: Mapping[str, Any]) -> dict[str, 'Table']:
    """Parts by the value of a column, which they no longer have.

    >>> table = Table({'x': np.arange(3.0), 'is_test': np.array([0.0, 1.0, 0.0])})
    >>> {name: part['x'].tolist() for name, part in table.split_by('is_test', {'train': 0, 'test': 1}).items()}
    {'train': [0.0, 2.0], 'test': [1.0]}

    Args:
      column: numbers or text.
      parts: {name of the part: value}.

    Raises:
      InputError: no such column, a row with another value, a part without a row.
    """
    values = self[column]
    known = np.isin(values, list(parts.values())) if self.is_number(column) else [v in parts.values() for v in values]
    if not np.all(known):
      row = int(np.argmin(known))
      expected = list(parts.values())
      raise InputError(f'{self.where(row)}: column {column!r} is {_shown(values[row])}, expected one of {expected}.')
    for name, value in parts.items():
      if not (values == value).any():
        raise InputError(f'{self.source}: found no row with {column!r} = {value!r}, expected some for {name!r}.')
    rest = self.without(column)
    return {name: rest.rows(values == value) for name, value in parts.items()}

  def split(self, fractions: Mapping[str, float], seed: int = 0, within: str | None = None) -> dict[str, 'Table']:
    """Disjoint random parts that together are all rows.

    Args:
      fractions: {name of the part: share}, which sum to 1.
      seed: of the draw.
      within: a column; its rows of one value (a group, a class) are split alike.

    Raises:
      InputError: as `data.split`; of the group, where there is one.
    """

    def drawn(rows):
      parts = sources.split({'inputs': rows, 'labels': {'row': rows}}, fractions, seed)
      return {name: part['inputs'] for name, part in parts.items()}

    everything = np.arange(len(self))
    groups = [everything] if within is None else [everything[self[within] == value] for value in self.values(within)]
    chosen = {name: [] for name in fractions}
    for rows in groups:
      try:
        for name, part in drawn(rows).items():
          chosen[name].append(part)
      except InputError as error:
        of = '' if within is None else f', {within!r} = {_shown(self[within][rows[0]])}'
        raise InputError(f'{self.source}{of}: {error}') from None
    return {name: self.rows(np.sort(np.concatenate(parts))) for name, parts in chosen.items()}

  def values(self, name: str) -> list:
    """The different values of a column in order; raises an InputError where one is missing."""
    missing = self.missing(name)
    if missing.any():
      row = int(np.argmax(missing))
      raise InputError(f'{self.where(row)}: column {name!r} has no value, expected one.')
    return sorted(set(self[name].tolist()))


def read_csv(
  path: str | os.PathLike,
  *,
  text: Sequence[str] = (),
  names: Sequence[str] | None = None,
  delimiter: str = ',',
  missing: Sequence[str] = MISSING,
) -> Table:
  """A csv file, or a gzipped one (.gz), as a `Table`.

  A column whose values are all numbers becomes float64, one without any number text. A column with both is an error
  that names the first value which is no number: it is a slip of the pen, a sign for missing values, or text.

  Args:
    path: the file, utf-8; blanks around a value do not count.
    text: columns to be read as text whatever they look like (codes of areas, names of groups).
    names: of the columns, for a file whose first line is not their names.
    delimiter: between values.
    missing: what stands for a missing value.

  Raises:
    InputError: no such file, a damaged one, a column of `text` that is missing, a name that is empty or there twice, a
      row with another number of values, a column with numbers and other values, no row.
  """
  path = pathlib.Path(os.path.expanduser(path))
  header, rows, lines = _rows(path, names, delimiter)
  for name in text:
    if name not in header:
      raise InputError(f'{path}: found no column {name!r} (of `text`), expected one of {header}.')
  missing, columns = set(missing), {}
  for place, name in enumerate(header):
    values = ['' if (value := row[place].strip()) in missing else value for row in rows]
    columns[name] = _text(values) if name in text else _numbers(path, name, values, lines)
  return Table(columns, str(path), np.array(lines))


def _rows(path, names, delimiter):
  """Names, rows and the line of each."""
  header, rows, lines = None if names is None else list(names), [], []
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rt', encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file, delimiter=delimiter, strict=True)
      for row in reader:
        if not row:
          continue
        if header is None:
          header = [name.strip() for name in row]
          continue
        if len(row) != len(header):
          expected = f'{len(header)}, one for each column {header}'
          raise InputError(f'{path}, line {reader.line_num}: found {len(row)} values, expected {expected}.')
        rows.append(row)
        lines.append(reader.line_num)
  except FileNotFoundError:
    raise InputError(f'{path}: found no such file, expected a csv file.') from None
  except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path}: cannot be read, expected a csv file in utf-8: {error}.') from error
  if not rows:
    raise InputError(f'{path}: found no row, expected the names of the columns and at least one row.')
  twice = sorted({name for name in header if header.count(name) > 1})
  if twice or '' in header:
    raise InputError(f'{path}: found columns {header}, expected different names that are not empty.')
  return header, rows, lines


def _numbers(path, name, values, lines):
  """float64[N] where all are numbers, object[N] where none is."""
  numbers = [math.nan if value == '' else _number(value) for value in values]
  wrong = [row for row, number in enumerate(numbers) if number is None]
  given = len(values) - values.count('')
  if len(wrong) == given and given:
    return _text(values)
  if wrong:
    raise InputError(
      f'{path}, line {lines[wrong[0]]}: column {name!r} is {values[wrong[0]]!r}, expected a number, as in '
      f'{given - len(wrong)} of {given} rows; a value of `missing`, or a column of `text`, if it is none.'
    )
  return np.array(numbers, float)


def _number(value: str) -> float | None:
  try:
    number = float(value)
  except ValueError:
    return None
  return number if math.isfinite(number) and '_' not in value else None  # Python reads 1_000


def _text(values):
  column = np.empty(len(values), object)
  column[:] = values
  return column


def _shown(value) -> str:
  """A value for messages; whole numbers without a point."""
  return f'{value:g}' if isinstance(value, float) else repr(value)
