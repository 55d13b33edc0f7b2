"""Rows of the Jacobian of T tasks over the shared parameters, of kernels as the factors of their products.

The rows of a kernel W in y = x W are dW_t = x' d_t, with the same x[n, a] for all tasks and cotangents d_t[n, e] that
one vmapped pullback finds, n being all positions of the batch. A method of level gramian needs <dW_s, dW_t> and
sum_t w_t dW_t, and neither needs the rows:

  <dW_s, dW_t> = <d_s, K d_t>, K = x x' f[n, n]           sum_t w_t dW_t = x' (sum_t w_t d_t)

so that T products x' d_t, and memory for T kernels, become one. It is done for a leaf where it takes fewer products.
Where the terms of dW_t over the batch nearly cancel (a full batch near its stationary point), the first form loses
digits that the second keeps; that is measured in the step, and the rows are multiplied out then.

References: the products of factors are those of Rochette et al. 2019, https://arxiv.org/abs/1912.06015, and Quinton and
Rey 2024, https://arxiv.org/abs/2406.16232, there for the gradients of examples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, linalg
from mtljax.base import Array, PyTree
from mtljax.gradients import _trees
from mtljax.gradients._program import Program

CANCELLED = 2.0**-6  # |g_t|^2 below this share of sum_n |x_n|^2 |d_tn|^2: rounding is 64 times that of the rows
TASKS = 8  # of which K d_t is held at a time
COLUMNS = 32  # of rows of a kernel that are multiplied out at a time


class Rows(NamedTuple):
  """T rows over the shared parameters.

  Attributes:
    gramian: f[T, T].
    combine: weights f[T] -> sum_t w_t g_t, like the shared parameters.
  """

  gramian: Array
  combine: Callable[[Array], PyTree]


def explicit(jacobian: PyTree, size: int) -> Rows:
  """Rows that are there: leaves f[T, *param], T = `size`."""
  return Rows(_trees.gramian(jacobian, size), lambda weights: linalg.combine(weights, jacobian))


def factored(lift: Callable[[PyTree], PyTree], cotangents: PyTree) -> Rows:
  """Rows `vmap(lift)(cotangents)`, multiplied out only where that takes fewer products."""
  program = Program(jax.vmap(lift), cotangents)
  treedef = jax.tree.structure(program.shapes)
  plans = [_plan(program, variable) for variable in program.results]
  wanted = [(v,) if plan is None else (plan.x, plan.d) for v, plan in zip(program.results, plans)]
  values = iter(program.evaluate([variable for leaf in wanted for variable in leaf]))
  whole, products = [], {}
  for place, plan in enumerate(plans):
    if plan is None:
      whole.append((place, next(values)))
    else:
      x, d = next(values), next(values)
      x = x.transpose(plan.x_axes).reshape(plan.x_shape)
      products[place] = x, d.transpose(plan.d_axes).reshape(plan.d_shape)
  if not products:
    size = len(jax.tree.leaves(cotangents)[0])
    return explicit(jax.tree.unflatten(treedef, [leaf for _, leaf in whole]), size)

  products = jax.lax.optimization_barrier(products)  # all that follows reads them: not made again for every reader
  rest = linalg.gramian([leaf for _, leaf in whole]) if whole else 0
  pairs = products.values()
  by_factors = rest + sum(_gramian(x, d) for x, d in pairs)
  scale = jnp.diagonal(rest) if whole else 0
  scale += sum(jnp.einsum('gn,tgn->t', _squares(x), _squares(d)) for x, d in pairs)
  exact = jnp.all(jnp.diagonal(by_factors) >= CANCELLED * scale)
  multiplied = lambda: rest + sum(_multiplied(x, d) for x, d in pairs)

  def combine(weights):
    leaves = dict(zip([place for place, _ in whole], linalg.combine(weights, [leaf for _, leaf in whole])))
    for place, (x, d) in products.items():
      plan = plans[place]
      together = linalg.combine(weights, d)
      leaf = jnp.einsum('gna,gne->gae', x, together).reshape(plan.shape).transpose(plan.order)
      leaves[place] = leaf.astype(program.results[place].aval.dtype)
    return jax.tree.unflatten(treedef, [leaves[place] for place in range(len(plans))])

  return Rows(jax.lax.cond(exact, lambda: by_factors, multiplied), combine)


class _Plan(NamedTuple):
  """A leaf as a product: variables of x and d, their axes as x[g, n, a] and d[T, g, n, e], and the way back.

  g are axes that x and d share and that are not summed over (a kernel for every expert).
  """

  x: Any
  d: Any
  x_axes: tuple[int, ...]
  d_axes: tuple[int, ...]
  x_shape: tuple[int, int, int]
  d_shape: tuple[int, int, int, int]
  shape: tuple[int, ...]
  order: tuple[int, ...]


def _plan(program: Program, variable) -> _Plan | None:
  """The product behind a leaf f[T, *param], where its factors are the smaller work."""
  found = program.product(variable)
  if found is None:
    return None
  eqn, (task, *axes) = found
  contracted, batched = eqn.params['dimension_numbers']
  free = [
    [d for d in range(v.aval.ndim) if d not in (*c, *b)]
    for v, c, b in zip(eqn.invars, contracted, batched, strict=True)
  ]
  shared = len(batched[0])
  side = 0 if task < shared + len(free[0]) else 1  # the one with the task axis
  place = task - shared - side * len(free[0])
  if place < 0:  # both have it
    return None
  x, d = eqn.invars[1 - side], eqn.invars[side]
  x_free, d_free = free[1 - side], [axis for axis in free[side] if axis != free[side][place]]
  sizes = lambda v, dims: tuple(v.aval.shape[axis] for axis in dims)
  g, n = sizes(x, batched[1 - side]), sizes(x, contracted[1 - side])
  a, e, T = sizes(x, x_free), sizes(d, d_free), d.aval.shape[free[side][place]]
  out = list(range(shared + len(free[0]) + len(free[1])))  # axes of the product's output
  of_side = [out[shared : shared + len(free[0])], out[shared + len(free[0]) :]]
  ours = [*out[:shared], *of_side[1 - side], *(axis for axis in of_side[side] if axis != task)]
  plan = _Plan(
    x=x,
    d=d,
    x_axes=(*batched[1 - side], *contracted[1 - side], *x_free),
    d_axes=(free[side][place], *batched[side], *contracted[side], *d_free),
    x_shape=(math.prod(g), math.prod(n), math.prod(a)),
    d_shape=(T, math.prod(g), math.prod(n), math.prod(e)),
    shape=(*g, *a, *e),
    order=tuple(ours.index(axis) for axis in axes),
  )
  return plan if _pays(T, *plan.x_shape[1:], plan.d_shape[-1]) else None


def _pays(T: int, n: int, a: int, e: int) -> bool:
  """Multiplications with factors (K, K d_t, their products, x' d) against those with rows (x' d_t, their products)."""
  return n * n * a + T * n * n * e + T * T * n * e + n * a * e < T * n * a * e + T * T * a * e


def _gramian(x: Array, d: Array) -> Array:
  """<d_s, x x' d_t> f[T, T] of x[g, n, a] and d[T, g, n, e]."""
  x, d = wide(x), wide(d)
  K = jnp.einsum('gna,gma->gnm', x, x, precision=linalg.HIGHEST)
  flat, rows = d.reshape(len(d), -1), []
  for some in (d[i : i + TASKS] for i in range(0, len(d), TASKS)):
    Kd = jnp.einsum('gnm,tgme->tgne', K, some, precision=linalg.HIGHEST)
    rows.append(jnp.matmul(Kd.reshape(len(some), -1), flat.T, precision=linalg.HIGHEST))
  G = jnp.concatenate(rows)
  return (G + G.T) / 2


def _multiplied(x: Array, d: Array) -> Array:
  """<x' d_s, x' d_t> f[T, T], some columns of the kernel at a time."""
  width = math.gcd(d.shape[3], COLUMNS)

  def block(start):
    some = jax.lax.dynamic_slice_in_dim(d, start, width, axis=3)
    return linalg.gramian(jnp.einsum('gna,tgne->tgae', x, some))

  return jax.lax.map(block, jnp.arange(0, d.shape[3], width)).sum(axis=0)


def _squares(x: Array) -> Array:
  return jnp.sum(wide(x) ** 2, axis=-1)


def wide(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, arrays.real_dtype()))
