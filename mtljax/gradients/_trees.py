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


def lift_rows(lift, rows: PyTree, shared: PyTree, size: int, chunk_size: int | None) -> PyTree:
  """Rows of J, `chunk_size` at a time; memory of the pullback grows with the chunk, J itself with T."""
  if not jax.tree.leaves(rows):  # the trunk hands nothing on: no task reaches what is shared
    return jax.tree.map(lambda p: jnp.zeros((size, *p.shape), p.dtype), shared)
  if chunk_size is None:
    return jax.vmap(lift)(rows)
  if chunk_size == 1:
    return jax.lax.map(lift, rows)
  return jax.lax.map(lift, rows, batch_size=chunk_size)
