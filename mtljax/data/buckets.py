"""Examples of like length in one batch, cut to the longest of their bucket: less padding."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mtljax.arrays import path_label, pattern
from mtljax.base import InputError, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
  """How long examples are, and the lengths that batches are cut to.

  Every length that occurs is a shape of its own for the compiled step: some three to six.

  Attributes:
    lengths: int[N], of every example: the places that it needs along axis 1 of the leaves that are cut.
    boundaries: lengths of batches, rising; an example goes into the first bucket that it fits into. A bucket with less
      than a batch of examples is joined with a longer one.
    leaves: regular expression of the paths ('inputs/x', 'labels', 'mask') whose axis 1 is the length.

  Raises:
    InputError: lengths that are no int[N], an example longer than the last boundary, boundaries that do not rise.

  >>> buckets = Buckets(np.array([3, 8, 4, 7]), boundaries=(4, 8))
  >>> buckets.of_size(2)
  [(4, array([0, 2], dtype=int32)), (8, array([1, 3], dtype=int32))]
  """

  lengths: np.ndarray
  boundaries: Sequence[int]
  leaves: str = '.*'

  def __post_init__(self):
    lengths = np.asarray(self.lengths)
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or not len(lengths) or lengths.min() < 0:
      raise InputError(f'buckets: lengths are {lengths.dtype}{list(lengths.shape)}, expected int[N], none negative.')
    bounds = list(self.boundaries)
    if not bounds or any(b < 1 for b in bounds) or bounds != sorted(set(bounds)):
      raise InputError(f'buckets: boundaries are {bounds}, expected rising positive lengths.')
    if lengths.max() > bounds[-1]:
      longest = int(lengths.argmax())
      raise InputError(f'buckets: example {longest} has length {lengths[longest]}, expected at most {bounds[-1]}.')
    pattern('buckets: leaves', self.leaves)
    object.__setattr__(self, 'lengths', lengths)

  def of_size(self, batch_size: int) -> list[tuple[int, np.ndarray]]:
    """[(length, rows)], each with at least a batch of examples where there are as many."""
    place = np.searchsorted(np.asarray(self.boundaries), self.lengths)
    found = []
    waiting = np.zeros(0, np.int32)
    for i, length in enumerate(self.boundaries):
      rows = np.concatenate([waiting, np.flatnonzero(place == i).astype(np.int32)])
      if len(rows) < batch_size:
        waiting = rows
        continue
      found.append((int(length), np.sort(rows)))
      waiting = np.zeros(0, np.int32)
    if len(waiting):  # too few of the longest: the bucket before them becomes as long as they are
      rows = np.concatenate([found.pop()[1] if found else np.zeros(0, np.int32), waiting])
      found.append((int(self.boundaries[place[rows].max()]), np.sort(rows)))
    return found

  def cut(self, examples: PyTree, length: int) -> PyTree:
    """The leaves that are padded, up to this length."""
    where = pattern('buckets: leaves', self.leaves)

    def leaf(path, x):
      return x[:, :length] if x.ndim > 1 and where.fullmatch(path_label(path)) else x

    return jax.tree_util.tree_map_with_path(leaf, examples)


def quantiles(lengths: np.ndarray, count: int = 4) -> tuple[int, ...]:
  """Boundaries that put about as many examples into each of `count` buckets.

  >>> quantiles(np.arange(1, 101), 4)
  (25, 50, 75, 100)
  """
  if isinstance(count, bool) or not isinstance(count, int) or count < 1:
    raise InputError(f'buckets.quantiles: count is {count!r}, expected a positive whole number.')
  bounds = np.quantile(lengths, np.arange(1, count + 1) / count, method='inverted_cdf')
  return tuple(sorted({int(n) for n in bounds} - {0}))
