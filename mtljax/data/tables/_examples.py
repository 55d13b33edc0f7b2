"""Examples from encoded columns, from a matrix of labels with gaps, and from a column that says which task a row is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.batching import count_examples
from mtljax.data.tables import _encode
from mtljax.data.tables._csv import Table


class Encoded(NamedTuple):
  """What `encode` and `by_group` return.

  Attributes:
    splits: {part: examples} for `data.Batches` and `data.eval_batches`.
    inputs: `Columns`, fitted: names of the features, and a function of further tables.
    targets: {task: `Target`}, fitted: scalers and classes; without the tasks whose label is a function.
  """

  splits: dict[str, PyTree]
  inputs: _encode.Columns
  targets: dict[str, _encode.Target]


Spec = str | _encode.Label | Callable[[Table], np.ndarray]


def encode(
  parts: Mapping[str, Table],
  labels: Mapping[str, Spec],
  inputs: Sequence[str] | None = None,
  *,
  unseen: Literal['error', 'zeros'] = 'error',
) -> Encoded:
  """Examples of every part, whatever is fitted being fitted on `parts['train']`.

  >>> columns = {'x': np.array([1.0, 2.0, 3.0]), 'y': np.array([10.0, np.nan, 30.0]), 'kind': np.array([0.0, 1, 1])}
  >>> made = encode({'train': Table(columns)}, {'size': 'y', 'kind': _encode.yes_no('kind')})
  >>> made.inputs.names, made.targets['size'].scaler
  (('x',), Scaler(mean=20.0, std=10.0))
  >>> made.splits['train']['labels']['size'].tolist(), made.splits['train']['mask']['size'].tolist()
  ([-1.0, 1.0, 1.0], [True, False, True])

  Args:
    parts: {'train': table, ...}, from `Table.split_by`, `Table.split`, or a file each.
    labels: {task: label}: `number`, `classes` or `yes_no` of a column; a column, which is `number` or `classes` of it;
      or a function table -> array that leads with N, NaN (floats) or -1 (integers) where a label is missing.
    inputs: columns, numbers and text (`Columns`); None takes all that are no label.
    unseen: what a category of the inputs that training did not have is: an 'error', or 'zeros'.

  Returns:
    `Encoded`. A task has a mask in the parts where some of its labels are missing.

  Raises:
    InputError: no 'train', a column that is missing or of another kind than in training, a class or category that
      training did not have, a task without any training example; with file, line, column and task.
  """
  train = _train(parts)
  if not labels:
    raise InputError('labels: found none, expected {task: label} of one or more tasks.')
  if inputs is None:
    functions = [task for task, label in labels.items() if not isinstance(label, str | _encode.Label)]
    if functions:
      raise InputError(
        f'inputs: found None with a function as label of {functions}, expected the columns to learn from.'
      )
    taken = {label if isinstance(label, str) else label.column for label in labels.values()}
    inputs = [name for name in train.columns if name not in taken]
  fitted = _encode.Columns.fit(train, inputs, unseen)
  targets = {task: _fit(task, label, train) for task, label in labels.items()}
  splits = {name: {'inputs': fitted(part), 'labels': {}, 'mask': {}} for name, part in parts.items()}
  for task, target in targets.items():
    for name, part in parts.items():
      labelled, mask = gaps(_named(task, target.encode, part))
      if name == 'train' and mask is not None and not mask.any():
        raise InputError(f'{part.source}: task {task!r} has no label in the training part, expected one or more.')
      splits[name]['labels'][task] = labelled
      if mask is not None:
        splits[name]['mask'][task] = mask
  for examples in splits.values():
    count_examples(examples)
  return Encoded(splits, fitted, {task: t for task, t in targets.items() if t.scaler is not None or t.classes})


def by_group(
  parts: Mapping[str, Table],
  group: str,
  label: str | _encode.Label,
  inputs: Sequence[str] | None = None,
  *,
  each: bool = False,
  unseen: Literal['error', 'zeros'] = 'error',
) -> Encoded:
  """A task for every value of a column: many small problems of one kind (pupils of schools, patients of hospitals).

  All tasks share one pool of rows, of which every row has a label for its own task alone; masks say which. So a step
  runs the trunk once, whatever the number of tasks; `apart` gives every task its own inputs.

  >>> table = Table({'x': np.arange(4.0), 'y': np.arange(4.0), 'school': np.array(['b', 'a', 'b', 'a'], object)})
  >>> made = by_group({'train': table}, 'school', _encode.number('y', standardise=False))
  >>> made.splits['train']['mask']
  {'a': array([False,  True, False,  True]), 'b': array([ True, False,  True, False])}

  Args:
    parts: {'train': table, ...}.
    group: column of the task; a task is called by its value, whole numbers without a point.
    label: `number`, `classes` or `yes_no` of a column, or a column.
    inputs: columns; None takes all but `group` and the label. They are fitted on the training rows of all tasks.
    each: whether the label is fitted on every task's training rows by themselves (numbers of different scale, classes
      of their own), or once on those of all tasks.
    unseen: as for `encode`.

  Returns:
    `Encoded`; all tasks have one `Target` unless `each`.

  Raises:
    InputError: as `encode`; a row without a group, a group without any labelled training row.
  """
  train = _train(parts)
  column = label if isinstance(label, str) else label.column
  inputs = [name for name in train.columns if name not in (group, column)] if inputs is None else inputs
  pooled = encode(parts, {column: label}, inputs, unseen=unseen)
  places = {value: place for place, value in enumerate(train.values(group))}
  names = [f'{value:g}' if isinstance(value, float) else str(value) for value in places]
  targets, splits = dict.fromkeys(names, pooled.targets[column]), {}
  for name, part in parts.items():
    part.values(group)  # none is missing
    codes = _encode.find(part, group, list(places), 'error', 'in the training part')
    examples = pooled.splits[name]
    given = examples['mask'].get(column, True)
    masks = {task: (codes == place) & given for place, task in enumerate(names)}
    if name == 'train':
      for place, task in enumerate(names):
        if not masks[task].any():
          row = int(np.argmax(codes == place))
          message = f'column {column!r} has no value in any training row of task {task!r} ({group!r}), expected some'
          raise InputError(f'{part.where(row)}: {message}.')
    splits[name] = {'inputs': examples['inputs'], 'labels': dict.fromkeys(names, examples['labels'][column])}
    splits[name]['mask'] = masks
  if each:
    for task in names:
      rows = {name: splits[name]['mask'][task] for name in parts}
      targets[task] = target = _fit(task, label, train.rows(rows['train']))
      for name, part in parts.items():
        labels = splits[name]['labels'][task].copy()
        if rows[name].any():
          labels[rows[name]] = _named(task, target.encode, part.rows(rows[name]))
        splits[name]['labels'][task] = labels
  return Encoded(splits, pooled.inputs, targets)


def from_matrix(inputs: PyTree, y: np.ndarray, names: Sequence[str], *, source: str = 'y') -> PyTree:
  """Examples of T tasks from a matrix of labels with gaps.

  >>> examples = from_matrix(np.zeros((2, 3)), np.array([[1.0, np.nan], [0.0, 1.0]]), ('a', 'b'))
  >>> examples['labels']['b'].tolist(), examples['mask']['b'].tolist()
  ([1.0, 1.0], [False, True])

  Args:
    inputs: arrays that lead with N.
    y: f[N, T], NaN where a label is missing; or integers, -1 where it is.
    names: of the tasks, T of them.
    source: of the matrix, for messages.

  Returns:
    `{'inputs', 'labels': {task: [N]}, 'mask': {task: bool[N]}}`, every task with a mask.

  Raises:
    InputError: no matrix, another number of names than columns, a name twice, lengths that differ.
  """
  y, names = np.asarray(y), [str(name) for name in names]
  if y.ndim != 2 or y.dtype.kind not in 'fiub':
    raise InputError(f'{source}: found {y.dtype}{list(y.shape)}, expected numbers [examples, tasks].')
  if len(names) != y.shape[1] or len(set(names)) < len(names):
    raise InputError(f'{source}: found {y.shape[1]} columns and names {names}, expected a name of its own for each.')
  labels, masks = {}, {}
  for place, task in enumerate(names):
    labels[task], mask = gaps(y[:, place])
    masks[task] = np.ones(len(y), bool) if mask is None else mask
  examples = {'inputs': inputs, 'labels': labels, 'mask': masks}
  count_examples(examples)
  return examples


def apart(examples: PyTree) -> PyTree:
  """Single-input examples as multi-input ones: every task with the rows that have a label of it.

  >>> apart({'inputs': np.arange(3), 'labels': {'a': np.arange(3)}, 'mask': {'a': np.array([True, False, True])}})
  {'a': {'inputs': array([0, 2]), 'labels': array([0, 2])}}

  Raises:
    InputError: examples of another shape, a task without any label.
  """
  count = count_examples(examples)['']
  found = {}
  for task, labels in examples['labels'].items():
    mask = examples.get('mask', {}).get(task, np.ones(count, bool))
    rows = np.flatnonzero(mask.reshape(count, -1).any(1))
    if not len(rows):
      raise InputError(f'examples: task {task!r} has no label, expected one or more.')
    part = {'inputs': examples['inputs'], 'labels': labels, **({'mask': mask} if mask.ndim > 1 else {})}
    found[task] = jax.tree.map(lambda x, rows=rows: x[rows], part)
  return found


def positive_weights(examples: PyTree) -> dict[str, float]:
  """{task: negatives / positives}, `pos_weight` of `losses.sigmoid_cross_entropy` that lets both weigh the same.

  >>> positive_weights({'inputs': np.zeros(4), 'labels': {'a': np.array([0, 0, 0, 1])}})
  {'a': 3.0}

  Args:
    examples: single input or multi-input, labels 0/1; what a mask leaves out counts nothing.

  Raises:
    InputError: a task without a positive or without a negative label, labels other than 0 and 1.
  """
  weights = {}
  single = '' in count_examples(examples)
  for task in examples['labels'] if single else examples:
    labels = np.asarray(examples['labels'][task] if single else examples[task]['labels'])
    mask = examples.get('mask', {}).get(task) if single else examples[task].get('mask')
    if mask is not None:
      labels = labels[np.asarray(mask)]
    yes, no = int((labels == 1).sum()), int((labels == 0).sum())
    if yes + no < labels.size:
      raise InputError(f'positive_weights: task {task!r} has labels other than 0 and 1, expected a yes or no.')
    if not yes or not no:
      raise InputError(f'positive_weights: task {task!r} has {yes} positive and {no} negative labels, expected some.')
    weights[task] = no / yes
  return weights


def gaps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
  """Labels without NaN or -1, which become 1 or 0, and where there is one: bool of their shape, None if everywhere."""
  values = np.asarray(values)
  floats = values.dtype.kind == 'f'
  mask = ~np.isnan(values) if floats else values != -1
  if mask.all():
    return values, None
  return np.where(mask, values, np.ones_like(values) if floats else np.zeros_like(values)), mask


def _train(parts: Mapping[str, Table]) -> Table:
  if 'train' not in parts:
    raise InputError(f"parts: found {sorted(parts)}, expected 'train' among them.")
  return parts['train']


def _fit(task: str, label: Spec, train: Table) -> _encode.Target:
  if isinstance(label, str):
    label = _named(task, lambda table: (_encode.number if table.is_number(label) else _encode.classes)(label), train)
  return _named(task, label.fit, train) if isinstance(label, _encode.Label) else _encode.Target(label)


def _named(task: str, function: Callable, table: Table):
  try:
    return function(table)
  except InputError as error:
    raise InputError(f'task {task!r}: {error}') from None
