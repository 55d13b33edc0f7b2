"""Rows of the Jacobian of T tasks over the shared features, of linear heads as the factors of their products.

Behind a linear head a row is a product r_t = d_t W_t' of d_t[n, e_t], the cotangents of its outputs, and W_t[a, e_t],
so that with all tasks side by side in the brackets

  <r_s, r_t> = sum over the entries of (d_s' d_t) o (W_s' W_t)     sum_t w_t r_t = [w_t d_t] [W_t]'

and T rows f[n, a] need not be formed. Where the columns of a head nearly cancel, they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, linalg
from mtljax.base import Array, PyTree
from mtljax.gradients import _rows, _trees
from mtljax.gradients._program import Program


def of_features(pull: Callable, coefficients: Array, present: Array) -> tuple[dict[str, PyTree], _rows.Rows]:
  """`pull(coefficients) -> ({task: gradients}, rows over the features)`, rows formed only where that is less work.

  Returns:
    The gradients, zeros for absent tasks, and the rows, which are leaves f[T, *feature].
  """
  program = Program(pull, coefficients)
  heads, rows = program.shapes
  size, treedef = len(rows), jax.tree.structure(rows[0])
  results = jax.tree.unflatten(jax.tree.structure(program.shapes), program.results)
  leaves = [list(same) for same in zip(*map(jax.tree.leaves, results[1]))]  # T variables for every leaf
  plans = [None if arrays.placed_by_compiler() else _plan(program, variables) for variables in leaves]
  wanted = [v if plan is None else (*plan.left, *plan.right) for v, plan in zip(leaves, plans)]
  flat = jax.tree.leaves(results[0])
  found = iter(program.evaluate([*flat, *(variable for leaf in wanted for variable in leaf)]))
  heads = jax.tree.unflatten(jax.tree.structure(heads), [next(found) for _ in flat])
  heads, _ = _trees.of_present(present, heads, [()] * size)
  values = [[next(found) for _ in leaf] for leaf in wanted]

  def masked(t, x):
    return arrays.select(present[t], *_trees.with_zeros(x))

  parts = []
  for variables, plan, leaf in zip(leaves, plans, values):
    if plan is None:
      stacked = jnp.stack([masked(t, row) for t, row in enumerate(leaf)])
      parts.append(_rows.explicit(stacked, size))
    else:
      sides = [[masked(t, x) for t, x in enumerate(side)] for side in (leaf[:size], leaf[size:])]
      parts.append(plan.rows(*sides, variables[0].aval.dtype))
  gramian = sum((part.gramian for part in parts), jnp.zeros((size, size), arrays.real_dtype()))
  return heads, _rows.Rows(
    gramian, lambda weights: jax.tree.unflatten(treedef, [part.combine(weights) for part in parts])
  )


class _Plan(NamedTuple):
  """A leaf of T rows as T products: their factors, the axes e_t that are summed over, and the way back."""

  left: list
  right: list
  summed: list[tuple[int, int]]
  axes: tuple[int, ...]

  def rows(self, left: list[Array], right: list[Array], dtype) -> _rows.Rows:
    free = [side[0].shape[:axis] + side[0].shape[axis + 1 :] for side, axis in zip((left, right), self.summed[0])]
    width = max(x.shape[axis] for x, (axis, _) in zip(left, self.summed))

    def together(side, which):
      """f[n, T, e], with columns of zeros where a task has fewer."""
      flat = [jnp.moveaxis(x, axes[which], -1).reshape(-1, x.shape[axes[which]]) for x, axes in zip(side, self.summed)]
      return jnp.stack([jnp.pad(_rows.wide(x), ((0, 0), (0, width - x.shape[1]))) for x in flat], axis=1)

    d, W = jax.lax.optimization_barrier((together(left, 0), together(right, 1)))  # made once, for all that read them
    of_columns = lambda x: linalg.gramian(x.reshape(len(x), -1).T).reshape(x.shape[1:] * 2)
    terms = of_columns(d) * of_columns(W)
    total = terms.sum((1, 3))
    exact = jnp.all(jnp.diagonal(total) >= _rows.CANCELLED * jnp.diagonal(jnp.abs(terms).sum((1, 3))))

    def multiplied():
      return linalg.gramian(jnp.einsum('nte,ate->tna', d, W))

    def combine(weights):
      weighted = d * weights.astype(d.dtype)[None, :, None]
      row = jnp.einsum('nte,ate->na', weighted, W, precision=linalg.HIGHEST)
      return row.reshape(*free[0], *free[1]).transpose(self.axes).astype(dtype)

    return _rows.Rows(jax.lax.cond(exact, lambda: (total + total.T) / 2, multiplied), combine)


def _plan(program: Program, variables) -> _Plan | None:
  """The products behind the T rows of a leaf, where their factors are the smaller work."""
  found = [program.product(variable) for variable in variables]
  if None in found:
    return None
  summed, forms = [], set()
  for eqn, axes in found:
    sides, batched = eqn.params['dimension_numbers']
    if batched[0] or len(sides[0]) != 1:
      return None
    summed.append((sides[0][0], sides[1][0]))
    free = [tuple(n for axis, n in enumerate(v.aval.shape) if axis != c[0]) for v, c in zip(eqn.invars, sides)]
    forms.add((*free, axes))
  if len(forms) != 1:
    return None
  ((n, a, axes),) = forms
  n, a, T = math.prod(n), math.prod(a), len(variables)
  width = T * max(eqn.invars[0].aval.shape[axis] for (eqn, _), (axis, _) in zip(found, summed))
  if width**2 * (n + a) >= T**2 * n * a:  # products of the factors' columns against those of the rows
    return None
  left, right = ([eqn.invars[side] for eqn, _ in found] for side in (0, 1))
  return _Plan(left, right, summed, axes)
