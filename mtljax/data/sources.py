"""Arrays from files: a user's own npz, and TFDS builders read without TensorFlow."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtljax.arrays import check_seed
from mtljax.base import InputError, PyTree
from mtljax.data.batching import count_examples, is_single_input


def npz(
  path: str | os.PathLike,
  *,
  inputs: str = 'inputs',
  labels: Mapping[str, str] | None = None,
  masks: Mapping[str, str] | None = None,
) -> PyTree:
  """Examples from an npz file of arrays that lead with the number of examples.

  By default the arrays are called 'inputs', 'labels/<task>' and 'mask/<task>', as written by
  `np.savez(path, **{'inputs': x, 'labels/digit': y})`.

  Args:
    path: the file; nothing is unpickled.
    inputs: name of the inputs.
    labels: {task: name of its labels}; None takes every array 'labels/<task>'.
    masks: {task: name of its mask}, bool, True where there is a label; None takes every array 'mask/<task>'.

  Returns:
    `{'inputs': x, 'labels': {task: y}, 'mask': {task: m}}`, numpy; no 'mask' where there is none.

  Raises:
    InputError: no such file, a file that is damaged or holds Python objects, an array that is missing, lengths that
      differ, no example.
  """
  return make_examples(read_npz(path), inputs=inputs, labels=labels, masks=masks, source=str(path))


def make_examples(
  arrays: Mapping[str, np.ndarray],
  *,
  inputs: str = 'inputs',
  labels: Mapping[str, str] | None = None,
  masks: Mapping[str, str] | None = None,
  source: str = 'arrays',
) -> PyTree:
  """Examples from named arrays; arguments as for `npz`.

  >>> arrays = {'image': np.zeros((3, 8, 8)), 'left': np.arange(3)}
  >>> make_examples(arrays, inputs='image', labels={'digit': 'left'})['labels']
  {'digit': array([0, 1, 2])}
  """

  def named(prefix):
    return {name.removeprefix(prefix): name for name in arrays if name.startswith(prefix) and name != prefix}

  def get(argument, name):
    if name not in arrays:
      raise InputError(f'{source}: {argument} is {name!r}, which is no array there; found {sorted(arrays)}.')
    return arrays[name]

  labels = named('labels/') if labels is None else labels
  masks = named('mask/') if masks is None else masks
  if not labels:
    raise InputError(f"{source}: found {sorted(arrays)}, expected arrays 'labels/<task>', or labels={{task: name}}.")
  examples: dict[str, Any] = {
    'inputs': get('inputs', inputs),
    'labels': {task: get(f'labels[{task!r}]', name) for task, name in labels.items()},
  }
  if masks:
    examples['mask'] = {task: get(f'masks[{task!r}]', name) for task, name in masks.items()}
  try:
    count_examples(examples)
  except InputError as error:
    raise InputError(f'{source}: {error}') from None
  return examples


def from_tfds(builder, split: str) -> dict[str, Any]:
  """All examples of a split as arrays, {feature: array [N, ...]}; text becomes an array of bytes objects.

  Args:
    builder: a `tfds.core.DatasetBuilder`, prepared with `file_format='array_record'` (the format that is read without
      TensorFlow).
    split: name of a split, or a slice such as 'train[:80%]'.

  Raises:
    InputError: not prepared, an unknown split, an empty one, a feature whose shape differs from example to example.
  """
  where = f'{builder.name}[{split!r}]'
  try:
    source = builder.as_data_source(split)
  except (AssertionError, KeyError, ValueError, NotImplementedError) as error:
    found = sorted(builder.info.splits or ())
    raise InputError(f'{where}: cannot be read, expected a prepared builder and one of {found}: {error}') from error
  if not len(source):
    raise InputError(f'{where}: found no example, expected at least one.')
  return stack(where, source.__getitems__(list(range(len(source)))))


def split(examples: PyTree, fractions: Mapping[str, float], seed: int = 0) -> dict[str, PyTree]:
  """Disjoint random parts that together are all examples: {name: examples}; multi-input examples task by task.

  >>> parts = split({'inputs': np.arange(10), 'labels': {'a': np.arange(10)}}, {'train': 0.7, 'test': 0.3})
  >>> len(parts['train']['inputs']), len(parts['test']['inputs'])
  (7, 3)

  Raises:
    InputError: fractions that are not positive or do not sum to 1, a part without an example, a negative seed.
  """
  check_seed('split seed', seed)
  shares = np.array(list(fractions.values()), float)
  if not shares.size or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
    raise InputError(f'split fractions: found {dict(fractions)}, expected positive numbers that sum to 1.')

  def rows(name, count):
    order = np.random.default_rng(seed).permutation(count)
    pieces = np.split(order, np.rint(np.cumsum(shares)[:-1] * count).astype(int))
    for part, piece in zip(fractions, pieces):
      if not len(piece):
        of = f' of task {name!r}' if name else ''
        raise InputError(f'split fractions: {part!r} gets none of the {count} examples{of}, expected at least one.')
    return dict(zip(fractions, pieces))

  def take(examples, rows):
    return jax.tree.map(lambda leaf: leaf[rows], examples)

  parts = {name: rows(name, count) for name, count in count_examples(examples).items()}
  if is_single_input(examples):
    return {part: take(examples, parts[''][part]) for part in fractions}
  return {part: {task: take(examples[task], parts[task][part]) for task in examples} for part in fractions}


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """All arrays of an npz file, {name: array}; nothing is unpickled.

  Raises:
    InputError: no such file, a file that is damaged or holds Python objects.
  """
  if not os.path.isfile(path):
    raise InputError(f'{path}: found no such file, expected an npz file.')
  name = None
  try:
    with open(path, 'rb') as stream:  # NumPy leaves a damaged file open
      file = np.load(stream, allow_pickle=False)
      if isinstance(file, np.ndarray):
        raise InputError(f'{path}: found a single array, expected an npz file (np.savez).')
      arrays = {}
      for name in file.files:
        arrays[name] = file[name]
      return arrays
  except InputError:
    raise
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    what = 'the file' if name is None else f'array {name!r}'
    if 'allow_pickle' in str(error):
      raise InputError(
        f'{path}: {what} holds Python objects, which are not loaded, expected numbers or text: rows of several lengths '
        'go end to end into one array, beside their lengths.'
      ) from error
    raise InputError(f'{path}: {what} cannot be read, expected numeric arrays of an npz file: {error}') from error


def stack(where: str, rows: list) -> Any:
  """One array [N, ...] of N rows, leaf by leaf of dicts; text becomes an array of objects.

  Raises:
    InputError: rows of different shapes.
  """
  if isinstance(rows[0], Mapping):
    return {key: stack(f'{where}[{key!r}]', [row[key] for row in rows]) for key in rows[0]}
  if isinstance(rows[0], bytes | str):
    column = np.empty(len(rows), object)  # a fixed-width array would strip trailing zeros
    column[:] = rows
    return column
  shapes = {np.shape(row) for row in rows}
  if len(shapes) > 1:
    raise InputError(f'{where}: found examples of shapes {sorted(shapes)[:3]}, expected one shape; pad or crop them.')
  return np.stack(rows)
