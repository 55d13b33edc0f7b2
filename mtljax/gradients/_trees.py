"""Rows of gradients as pytrees."""

import jax
import jax.numpy as jnp

from mtljax import arrays, linalg
from mtljax.base import Array, PyTree


def with_zeros(tree: PyTree) -> tuple[PyTree, PyTree]:
  """The tree and one like it of zeros."""
  return tree, jax.tree.map(jnp.zeros_like, tree)


def of_present(present: Array, heads: dict[str, PyTree], rows: list[PyTree]) -> tuple[dict[str, PyTree], list[PyTree]]:
  """With zeros in place of what belongs to absent tasks, in the order of `heads`."""
  pairs = [arrays.select(present[t], *with_zeros(pair)) for t, pair in enumerate(zip(heads.values(), rows))]
  return dict(zip(heads, [head for head, _ in pairs])), [row for _, row in pairs]


def stack(trees) -> PyTree:
  """Rows on a new leading axis."""
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def tree_sum(trees) -> PyTree:
  """Leaf by leaf."""
  return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *trees)


def gramian(rows: PyTree, size: int) -> Array:
  """G of stacked rows; nothing shared makes a Gramian of zeros."""
  return linalg.gramian(rows) if jax.tree.leaves(rows) else jnp.zeros((size, size), arrays.real_dtype())


def as_is(row: PyTree) -> PyTree:
  """The pullback of what is a gradient of the shared parameters already."""
  return row


def rows_at_once(chunk_size: int | None, size: int) -> int:
  """How many of T = `size` rows are pulled back at once.

  On a CPU one by one is the faster way for all but small nets (a ResNet-18 of width 16 takes 2.0 times the `equal` step
  for 4.4 with three rows at once, an MLP 4x512 1.9 for 2.2 with two), and takes the least memory.
  """
  if chunk_size is None:
    return 1 if jax.default_backend() == 'cpu' else size
  return min(chunk_size, size)


def lift_rows(lift, rows: PyTree, shared: PyTree, size: int, at_once: int) -> PyTree:
  """Rows of J, `at_once` of them at a time; memory of the pullback grows with that, J itself with T = `size`."""
  if not jax.tree.leaves(rows):  # the trunk hands nothing on: no task reaches what is shared
    return jax.tree.map(lambda p: jnp.zeros((size, *p.shape), p.dtype), shared)
  if lift is as_is:
    return rows
  if at_once == size:
    return jax.vmap(lift)(rows)
  return jax.lax.map(lift, rows, batch_size=None if at_once == 1 else at_once)
