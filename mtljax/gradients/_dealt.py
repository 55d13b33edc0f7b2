"""Rows of the Jacobian that are summed over devices, dealt out: each device sums and keeps one part of every row.

A Gramian is a sum over parameters, and w J is made parameter by parameter, so a device needs its part of the T rows:

  each device has T rows of its slice of the batch -> reduce-scatter -> T rows of P / n parameters, of the whole batch
  -> its part of the Gramian -> sum f[T, T] -> balancer -> its part of w J -> all-gather f[P]

A sum of T whole rows would send twice the bytes, and every device would hold, read and multiply all of them. It is how
ZeRO splits gradients (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054), here with a task axis. Small leaves
are summed whole, all in one collective; without a device axis every leaf is whole and nothing is sent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, linalg
from mtljax.base import Array, PyTree
from mtljax.gradients import _trees


class Dealt(NamedTuple):
  """T rows over the shared parameters; what is made of them is the same on all devices.

  Attributes:
    parts: of large leaves this device's part, f[T, ceil(size / n)], padded with zeros at the end.
    whole: small leaves, f[T, *param].
    merge: (one array for each of the parts' leaves, one for each whole leaf) -> like the shared parameters.
    size: T.
  """

  parts: list[Array]
  whole: list[Array]
  merge: Callable[[list[Array], list[Array]], PyTree]
  size: int

  @property
  def gramian(self) -> Array:
    """f[T, T]."""
    whole = _trees.gramian(self.whole, self.size)
    return whole + arrays.psum(linalg.gramian(self.parts)) if self.parts else whole

  def combine(self, weights: Array) -> PyTree:
    """sum_t w_t g_t, like the shared parameters."""
    parts = [jax.lax.all_gather(part, arrays.axis(), tiled=True) for part in linalg.combine(weights, self.parts)]
    return self.merge(parts, linalg.combine(weights, self.whole))

  def finite(self) -> Array:
    """bool[T], rows without NaN and infinity; there has to be a leaf."""
    parts = arrays.psum((~jax.vmap(arrays.all_finite)(self.parts)).astype(int)) == 0 if self.parts else True
    return jax.vmap(arrays.all_finite)(self.whole) & parts if self.whole else parts

  def mask(self, present: Array) -> 'Dealt':
    """With zeros in place of the rows of absent tasks, whatever they hold."""
    return self._replace(parts=linalg.mask_rows(present, self.parts), whole=linalg.mask_rows(present, self.whole))

  def rows(self) -> PyTree:
    """Leaves f[T, *param]; of rows that were not dealt out."""
    return self.merge([], self.whole)


def lift_rows(lift, rows: PyTree, shared: PyTree, size: int, at_once: int, *, deal: bool) -> Dealt:
  """Rows `vmap(lift)(rows)` summed over devices, pulled back `at_once` at a time and dealt out as they are made.

  Args:
    lift: row -> gradient of the shared parameters on this device's slice of the batch.
    rows: stacked, T = `size` of them.
    shared: the shared parameters.
    deal: whether large leaves are dealt out; they are whole otherwise.
  """
  leaves, treedef = jax.tree.flatten(shared)
  large = [deal and arrays.axis() is not None and leaf.size >= arrays.split_from() for leaf in leaves]

  def dealt(row):
    gradient = lift(row)
    return treedef.unflatten([_own_part(x) if deals else x for x, deals in zip(jax.tree.leaves(gradient), large)])

  def merge(parts, whole):
    parts, whole = iter(parts), iter(whole)
    whole_leaf = lambda x: next(parts)[: x.size].reshape(x.shape)
    return treedef.unflatten([whole_leaf(x) if deals else next(whole) for x, deals in zip(leaves, large)])

  found = _trees.lift_rows(dealt if any(large) else lift, rows, shared, size, size if lift is _trees.as_is else at_once)
  found = jax.tree.leaves(found)
  whole = [x for x, deals in zip(found, large) if not deals]
  return Dealt([x for x, deals in zip(found, large) if deals], arrays.psum(whole), merge, size)


def _own_part(leaf: Array) -> Array:
  """This device's part of the sum over devices, f[ceil(size / n)]."""
  flat = jnp.pad(leaf.ravel(), (0, -leaf.size % jax.lax.axis_size(arrays.axis())))
  return jax.lax.psum_scatter(flat, arrays.axis(), tiled=True)
