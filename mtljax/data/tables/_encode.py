"""From columns to arrays: what is fitted on the training part and then applied to every part."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from mtljax.base import InputError
from mtljax.data.tables._csv import Table, _shown


@dataclasses.dataclass(frozen=True)
class Scaler:
  """z = (x - mean) / std, and back; for numpy and JAX arrays alike.

  >>> scaler = Scaler.fit(np.array([1.0, 3.0, np.nan]))
  >>> scaler
  Scaler(mean=2.0, std=1.0)
  >>> scaler(np.array([4.0])), scaler.inverse(np.array([2.0]))
  (array([2.]), array([4.]))
  """

  mean: float = 0.0
  std: float = 1.0

  @classmethod
  def fit(cls, values: np.ndarray) -> 'Scaler':
    """Mean and standard deviation of what is not NaN; a constant keeps its scale."""
    values = values[~np.isnan(values)]
    std = float(values.std())
    return cls(float(values.mean()), std if std > 1e-12 * max(1.0, float(np.abs(values).max())) else 1.0)

  def __call__(self, x):
    return (x - self.mean) / self.std

  def inverse(self, z):
    """x = z * std + mean."""
    return z * self.std + self.mean


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
  """Inputs: numbers standardised, text one-hot, by what the training part has.

  A missing number is the training mean, and a column in which the training part misses some gets a second feature, 1
  where the value is missing. A missing text is a category like any other.

  >>> train = Table({'age': np.array([1.0, 3.0]), 'work': np.array(['b', 'a'], object)})
  >>> inputs = Columns.fit(train, ('age', 'work'))
  >>> inputs.names
  ('age', 'work=a', 'work=b')
  >>> inputs(train)
  array([[-1.,  0.,  1.],
         [ 1.,  1.,  0.]], dtype=float32)

  Attributes:
    columns: in the order of the features.
    scalers: {column of numbers: `Scaler`}.
    categories: {column of text: its values in training}.
    flagged: columns of numbers with a feature for missing values.
    unseen: what a category that training did not have is: an 'error', or 'zeros' in all its features.
  """

  columns: tuple[str, ...]
  scalers: dict[str, Scaler]
  categories: dict[str, tuple[str, ...]]
  flagged: tuple[str, ...]
  unseen: Literal['error', 'zeros'] = 'error'

  @classmethod
  def fit(cls, train: Table, columns: Sequence[str], unseen: Literal['error', 'zeros'] = 'error') -> 'Columns':
    """What the training part says.

    Raises:
      InputError: no column, one that is missing or has no value in training, another `unseen`.
    """
    if isinstance(columns, str) or not columns:
      raise InputError(f'inputs: found {columns!r}, expected one or more columns of {list(train.columns)}.')
    if unseen not in ('error', 'zeros'):
      raise InputError(f"unseen: found {unseen!r}, expected 'error' or 'zeros'.")
    for name in columns:
      if train.missing(name).all():
        raise InputError(f'{train.source}: column {name!r} has no value in the training part, expected some.')
    numbers = [name for name in columns if train.is_number(name)]
    return cls(
      columns=tuple(columns),
      scalers={name: Scaler.fit(train[name]) for name in numbers},
      categories={name: tuple(sorted(set(train[name]))) for name in columns if name not in numbers},
      flagged=tuple(name for name in numbers if train.missing(name).any()),
      unseen=unseen,
    )

  @property
  def names(self) -> tuple[str, ...]:
    """Of the D features."""
    names = []
    for name in self.columns:
      names += [f'{name}={value}' for value in self.categories[name]] if name in self.categories else [name]
      names += [f'{name} missing'] * (name in self.flagged)
    return tuple(names)

  def __call__(self, table: Table) -> np.ndarray:
    """f32[N, D]; raises an InputError with file, line and column for a category that training did not have."""
    features = []
    for name in self.columns:
      if name in self.categories:
        known = self.categories[name]
        _check_kind(table, name, number=False)
        codes = find(table, name, known, 'error' if self.unseen == 'error' else 'none', 'in the training part')
        features += [(codes == place).astype(np.float32) for place in range(len(known))]
        continue
      _check_kind(table, name, number=True)
      missing = table.missing(name)
      features.append(np.where(missing, 0, self.scalers[name](table[name])).astype(np.float32))
      features += [missing.astype(np.float32)] * (name in self.flagged)
    return np.stack(features, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """A fitted label: a function of a table, and what it was fitted to.

  Attributes:
    encode: table -> f32[N] with NaN, or int32[N] with -1, where the label is missing.
    scaler: of numbers: `scaler.inverse` gives the original unit, `metrics.rescaled(metric, scaler.inverse)` a metric
      in it. None for classes.
    classes: of classes: the values, in the order of their integers; of a yes or no (no, yes). () for numbers.
  """

  encode: Callable[[Table], np.ndarray]
  scaler: Scaler | None = None
  classes: tuple = ()


@dataclasses.dataclass(frozen=True)
class Label:
  """A label to be fitted on the training part; made by `number`, `classes` and `yes_no`."""

  column: str
  fit: Callable[[Table], Target]


def number(column: str, *, standardise: bool = True) -> Label:
  """A regression: f32[N], by default standardised with mean and deviation of the training part.

  Tasks of very different scale then have losses of one scale; metrics in the original unit are
  `metrics.rescaled(metric, scaler.inverse)`.

  Args:
    column: of numbers.
    standardise: False keeps the values.
  """

  def fit(train):
    _check_any(train, column)
    _check_kind(train, column, number=True)
    scaler = Scaler.fit(train[column]) if standardise else Scaler()

    def encode(table):
      _check_kind(table, column, number=True)
      return scaler(table[column]).astype(np.float32)

    return Target(encode, scaler=scaler)

  return Label(column, fit)


def classes(column: str) -> Label:
  """A class: int32[N], the place among the sorted values of the training part.

  Args:
    column: text or numbers.
  """

  def fit(train):
    _check_any(train, column)
    values = tuple(sorted(set(train[column][~train.missing(column)].tolist())))
    if len(values) < 2:
      raise InputError(
        f'{train.source}: column {column!r} is always {_shown(values[0])} in training, expected classes.'
      )
    return Target(lambda table: find(table, column, values, 'missing', 'in the training part'), classes=values)

  return Label(column, fit)


def yes_no(column: str, yes: Any = 1) -> Label:
  """A yes or no: f32[N], 1 where the column is `yes`, else 0.

  Args:
    column: text or numbers.
    yes: the value that counts as 1.
  """

  def fit(train):
    _check_any(train, column)
    if not (train[column] == yes).any() or (train[column][~train.missing(column)] == yes).all():
      found = [_shown(value) for value in sorted(set(train[column][~train.missing(column)].tolist()))[:5]]
      raise InputError(f'{train.source}: column {column!r} is {found}, expected {yes!r} and other values in training.')
    encode = lambda table: np.where(table.missing(column), np.nan, table[column] == yes).astype(np.float32)
    return Target(encode, classes=(f'not {yes}', yes))

  return Label(column, fit)


def find(table: Table, column: str, values: Sequence, unknown: str, where: str) -> np.ndarray:
  """int32[N], places among `values`; -1 for a missing value ('missing'), for any other one too ('none')."""
  places = {value: place for place, value in enumerate(values)}
  codes = np.array([places.get(value, -1) for value in table[column].tolist()], np.int32)
  wrong = codes < 0
  if unknown == 'missing':
    wrong &= ~table.missing(column)
  if unknown != 'none' and wrong.any():
    row = int(np.argmax(wrong))
    some = ', '.join(map(_shown, values[:5])) + (', ...' if len(values) > 5 else '')
    found = _shown(table[column][row])
    raise InputError(f'{table.where(row)}: column {column!r} is {found}, expected one of those {where}: {some}.')
  return codes


def _check_kind(table: Table, name: str, number: bool) -> None:
  """Raises unless a column holds numbers, or text; one without any value holds neither."""
  if table.is_number(name) != number and not table.missing(name).all():
    row = int(np.argmin(table.missing(name)))
    expected = 'a number' if number else 'text, as in the training part'
    raise InputError(f'{table.where(row)}: column {name!r} is {_shown(table[name][row])}, expected {expected}.')


def _check_any(train: Table, column: str) -> None:
  if train.missing(column).all():
    raise InputError(f'{train.source}: column {column!r} has no value in the training part, expected some.')
