"""Matrices over tasks."""

import numpy as np

from mtljax.base import InputError


def square(name: str, matrix, names, symmetric: bool) -> np.ndarray:
  """A user's matrix with a row and a column per task, as numpy; raises an InputError that names it."""
  matrix = np.asarray(matrix, float)
  if matrix.shape != (len(names),) * 2 or not np.isfinite(matrix).all():
    raise InputError(
      f'{name}: found shape {matrix.shape} and {"finite" if np.isfinite(matrix).all() else "non-finite"} entries, '
      f'expected a finite f[T, T] for the {len(names)} tasks {tuple(names)}.'
    )
  if symmetric and not np.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-6 * np.abs(matrix).max(initial=0)):
    raise InputError(f'{name}: found a matrix that is not symmetric, expected one that is.')
  return matrix
