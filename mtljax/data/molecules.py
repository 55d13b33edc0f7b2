"""Molecules as fingerprints and descriptors, many assays with gaps: Tox21, and files of its layout."""

import os
from typing import Literal

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data import lines, sources, tables

SPLITS = ('train', 'val', 'test')  # 0, 1, 2 in the file


def tox21(data_dir: str | os.PathLike, split: Literal['scaffold', 'random'] = 'scaffold') -> dict[str, PyTree]:
  """Tox21: 7823 compounds, 12 toxicity assays, 17 % of the labels missing.

  Args:
    data_dir: folder of tox21.npz, or the folder above it, called tox21; the layout is that of `load`.
    split: molecules with one scaffold in one part, or at random.

  Raises:
    InputError: another split; as `load`.

  Reference: Huang et al., Tox21Challenge to Build Predictive Models of Nuclear Receptor and Stress Response Pathways
  (2016), https://doi.org/10.3389/fenvs.2015.00085; Wu et al., MoleculeNet (2018), https://doi.org/10.1039/C7SC02664A.
  """
  if split not in ('scaffold', 'random'):
    raise InputError(f"split: found {split!r}, expected 'scaffold' or 'random'.")
  return load(lines.locate(data_dir, 'tox21.npz', 'tox21'), split=f'split_{split}')


def load(
  path: str | os.PathLike,
  *,
  bits: str | None = 'fp_bits',
  descriptors: str | None = 'descriptors',
  labels: str = 'y',
  names: str = 'task_names',
  split: str = 'split_scaffold',
) -> dict[str, PyTree]:
  """{'train', 'val', 'test'} of an npz file of molecules; each argument is the name of an array.

  Args:
    path: the file.
    bits: uint8[N, D / 8], bits of fingerprints packed by `np.packbits`, or None; D features, 0 or 1.
    descriptors: f[N, D] numbers, standardised by the training part, or None.
    labels: f[N, T] of 0 and 1, NaN where one is missing.
    names: text[T], the tasks.
    split: int[N], 0 train, 1 val, 2 test.

  Raises:
    InputError: no such file, a damaged one, an array that is missing or of another shape, neither bits nor descriptors,
      a part without a molecule, a task without any label in training; with file, array and task.
  """
  arrays = sources.read_npz(path)

  def get(argument, name, ndim, kinds):
    if name not in arrays:
      raise InputError(f'{path}: {argument} is {name!r}, which is no array there; found {sorted(arrays)}.')
    array = arrays[name]
    if array.ndim != ndim or array.dtype.kind not in kinds:
      axes = 'an axis' if ndim == 1 else 'two axes'
      raise InputError(f'{path}: {name!r} is {array.dtype}{list(array.shape)}, expected {axes} and kind {kinds!r}.')
    return array

  part, features = get('split', split, 1, 'iu'), []
  if not np.isin(part, (0, 1, 2)).all():
    raise InputError(f'{path}: {split!r} holds {sorted(set(part.tolist()))}, expected 0 train, 1 val and 2 test.')
  for place, name in enumerate(SPLITS):
    if not (part == place).any():
      raise InputError(f'{path}: {split!r} has no {place}, expected a molecule in {name!r}.')
  if bits is not None:
    packed = get('bits', bits, 2, 'u')
    if packed.dtype != np.uint8:
      raise InputError(f'{path}: {bits!r} is {packed.dtype}, expected uint8 (np.packbits).')
    features.append(np.unpackbits(packed, axis=1).astype(np.float32))
  if descriptors is not None:
    columns = get('descriptors', descriptors, 2, 'fiu').astype(float)
    if not np.isfinite(columns).all():
      row = int(np.argmin(np.isfinite(columns).all(axis=1)))
      raise InputError(f'{path}: {descriptors!r} is not finite in row {row}, expected numbers.')
    if len(columns) == len(part):
      scalers = [tables.Scaler.fit(column[part == 0]) for column in columns.T]
      columns = np.stack([scaler(column) for scaler, column in zip(scalers, columns.T)], axis=1)
    features.append(columns.astype(np.float32))
  if not features:
    raise InputError(f'{path}: bits and descriptors are None, expected an array of one of them.')
  y = get('labels', labels, 2, 'f')
  for name, array in {bits: features[0], descriptors: features[-1], labels: y}.items():
    if name is not None and len(array) != len(part):
      raise InputError(f'{path}: {name!r} has {len(array)} rows, expected {len(part)}, as {split!r}.')
  examples = {}
  for place, name in enumerate(SPLITS):
    rows = part == place
    inputs = np.concatenate([feature[rows] for feature in features], axis=1)
    examples[name] = tables.from_matrix(inputs, y[rows], get('names', names, 1, 'U'), source=f'{path}: {labels!r}')
  for task, mask in examples['train']['mask'].items():
    if not mask.any():
      raise InputError(f'{path}: task {task!r} has no label in the training part, expected one or more.')
  return examples
