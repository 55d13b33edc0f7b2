"""Jacobians as pytrees with a leading task axis, their Gramians, and the small exact problems of the balancing methods.

Every solver takes a Gramian f[T, T] and a mask of the tasks that are present, runs inside jit and vmap, takes a bounded
number of iterations and never leaves the device. Problems are posed on rows of unit norm, so that neither the scale of
the Jacobian nor that of its rows matters. Entries of absent tasks are exactly 0.
"""

import jax
import jax.numpy as jnp

from mtljax import _solvers
from mtljax.arrays import expand_to, placed_by_compiler, real_dtype
from mtljax.base import Array, InputError, PyTree

HIGHEST = jax.lax.Precision.HIGHEST
PIECE = 2**13  # numbers of a row; see `_inner`


def gramian(jacobian: PyTree) -> Array:
  """G_st = <g_s, g_t>, summed leaf by leaf: the rows are never concatenated.

  Args:
    jacobian: leaves f[T, *param].

  Returns:
    f[T, T] in float32 or wider, products at highest precision.

  >>> gramian({'a': jnp.array([[1.0, 0.0], [0.0, 2.0]]), 'b': jnp.array([3.0, 1.0])}).tolist()
  [[10.0, 3.0], [3.0, 5.0]]
  """
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(jacobian)]
  if not leaves:
    raise InputError('jacobian: found a pytree without leaves, expected leaves f[T, *param].')

  return sum(_inner(leaf) for leaf in leaves)


def _inner(rows: Array) -> Array:
  """Inner products f[T, T] of the rows of one leaf.

  On a CPU one long axis, in pieces that stay in the cache: a product over all of it takes 1.2 to 2 times as long, and
  one over the axes of a kernel 2.3 to 3.4 times (benchmarks/rows.py).
  """
  dtype = jnp.promote_types(rows.dtype, real_dtype())

  def products(rows):
    axes = tuple(range(1, rows.ndim))
    return jax.lax.dot_general(rows, rows, ((axes, axes), ((), ())), precision=HIGHEST, preferred_element_type=dtype)

  if placed_by_compiler():
    return products(rows)
  rows = rows.reshape(len(rows), -1)
  pieces = rows.shape[1] // PIECE
  if pieces < 2 or jax.default_backend() != 'cpu':
    return products(rows)

  def add(piece, total):
    return total + products(jax.lax.dynamic_slice_in_dim(rows, piece * PIECE, PIECE, axis=1))

  return jax.lax.fori_loop(0, pieces, add, products(rows[:, pieces * PIECE :]))


def combine(weights: Array, jacobian: PyTree) -> PyTree:
  """sum_t w_t g_t, leaf by leaf: leaves f[T, *param] -> f[*param] of the same dtype, accumulated like `gramian`."""

  def total(leaf):
    leaf = jnp.asarray(leaf)
    dtype = jnp.promote_types(leaf.dtype, real_dtype())
    if len(leaf) <= 4:  # one pass over memory, half the time of a product on a CPU
      return sum(weight * row.astype(dtype) for weight, row in zip(weights.astype(dtype), leaf)).astype(leaf.dtype)
    return jnp.tensordot(weights.astype(dtype), leaf.astype(dtype), axes=1, precision=HIGHEST).astype(leaf.dtype)

  return jax.tree.map(total, jacobian)


def mask_rows(present: Array, jacobian: PyTree) -> PyTree:
  """Leaves f[T, *param] with the rows of absent tasks replaced by zeros, whatever they hold."""

  def masked(leaf):
    leaf = jnp.asarray(leaf)
    return jnp.where(expand_to(present, leaf.ndim), leaf, jnp.zeros_like(leaf))

  return jax.tree.map(masked, jacobian)


def row_norms(jacobian: PyTree) -> Array:
  """|g_t| f[T], leaf by leaf."""

  def squares(leaf):
    leaf = jnp.asarray(leaf)
    leaf = leaf.astype(jnp.promote_types(leaf.dtype, real_dtype()))
    return jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim)))

  return jnp.sqrt(sum(squares(leaf) for leaf in jax.tree.leaves(jacobian)))


def scale_rows(factors: Array, jacobian: PyTree) -> PyTree:
  """Leaves f[T, *param], row t times factors_t."""
  return jax.tree.map(lambda leaf: leaf * expand_to(factors, leaf.ndim).astype(leaf.dtype), jacobian)


def matvec(matrix: Array, vector: Array) -> Array:
  """matrix @ vector at highest precision."""
  return jnp.matmul(matrix, vector, precision=HIGHEST)


def combined_norm(G: Array, weights: Array) -> Array:
  """|w @ J| from the Gramian."""
  return jnp.sqrt(jnp.maximum(jnp.dot(weights, matvec(G, weights), precision=HIGHEST), 0))


def correlations(G: Array, present: Array) -> tuple[Array, Array]:
  """Cosines between the rows f[T, T] (0 where a row is zero or absent) and the norms of the rows f[T]."""
  norms = jnp.sqrt(jnp.where(present, jnp.maximum(jnp.diagonal(G), 0), 0))
  inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
  cosines = jnp.clip(G * inverse[:, None] * inverse[None, :], -1, 1)
  return jnp.where(jnp.eye(len(norms), dtype=bool), jnp.where(norms > 0, 1, 0)[:, None], cosines), norms


@jax.jit
def min_norm(G: Array, present: Array) -> Array:
  """Weights w >= 0 with sum 1 of the point of least norm in the convex hull of the rows.

  Exact, by an active set: argmin w'Gw. A zero row is that point.
  """
  C, norms = correlations(G, present)
  zero = present & (norms == 0)
  y, b = _over_hull(C, norms, None, jnp.ones((), G.dtype))
  w = jnp.where(jnp.any(zero), zero, y * b)
  return w / jnp.maximum(jnp.sum(w), jnp.finfo(G.dtype).tiny)


@jax.jit
def conflict_averse(G: Array, c: Array, present: Array) -> Array:
  """CAGrad's problem: argmax of min_t <g_t, d> over |d - g_0| <= c |g_0|, g_0 the mean row.

  Exact, by an active set on the dual, argmin over the simplex of g_w . g_0 + c |g_0| |g_w|, whose faces are solved in
  closed form. Where the hull of the rows contains 0 and the ball meets the cone of directions that harm no task, all
  of the intersection is optimal; the projection of g_0 onto the cone is taken.

  Returns:
    Weights f[T] of d - g_0.
  """
  C, norms = correlations(G, present)
  mean = jnp.where(present, norms / jnp.maximum(jnp.sum(present), 1), 0)
  pull = matvec(C, mean)  # unit rows . g_0
  length = jnp.sqrt(jnp.maximum(jnp.dot(mean, pull, precision=HIGHEST), 0))
  pull = pull / jnp.where(length > 0, length, 1)
  y, _ = _over_hull(C, norms, pull, c)
  distance = _solvers.length(C, y)
  at_zero = (distance == 0) & (c > 0)
  project = lambda: _solvers.nonnegative(C, pull, norms > 0)
  y = jax.lax.cond(at_zero, project, lambda: y * c / jnp.where(distance > 0, distance, 1))
  return jnp.where(norms > 0, y * length / jnp.where(norms > 0, norms, 1), 0)


def _over_hull(C, norms, p, r):
  """argmin p.y + r |y|_C over y_t = w_t |g_t|, w on the simplex, zero rows left out; and b, for w ~ b y."""
  least = jnp.min(jnp.where(norms > 0, norms, jnp.inf))
  b = jnp.where(norms > 0, least / jnp.where(norms > 0, norms, 1), 0)  # sum w = 1 reads b.y = least
  return _solvers.simplex(C, b, p, r, norms > 0), b


@jax.jit
def cone_weights(G: Array, lower: Array, allowed: Array) -> Array:
  """argmin v'Gv subject to v >= lower; entries that are not allowed stay at `lower`.

  Weights of the projection of lower @ J onto the dual cone of the rows {d: <g_t, d> >= 0}. `lower` may be f[T] or a
  batch f[N, T] of bounds, solved together. G must be positive definite (add a multiple of I).
  """
  q = jnp.matmul(lower, G, precision=HIGHEST)
  solve = lambda q: _solvers.nonnegative(G, q, allowed)
  return lower + (solve(q) if lower.ndim == 1 else jax.vmap(solve)(q))


@jax.jit
def nonnegative(M: Array, q: Array, allowed: Array) -> Array:
  """argmin over u >= 0 of u'Mu/2 + q.u for a positive semi-definite M, exact, by an active set."""
  return _solvers.nonnegative(M, q, allowed)


@jax.jit
def power_fair(G: Array, alpha: Array, present: Array, share: Array | None = None) -> Array:
  """w > 0 with G w = (share / w)^(1/alpha), entry by entry, by damped Newton on the convex problem.

  alpha = 1 and share = 1 is Nash bargaining. Zero rows get weight 0: they are not bargained for. Where the hull of the
  rows contains 0 no finite w exists: the weights grow until the bound on the iterations.
  """
  C, norms = correlations(G, present)
  return _solvers.power_fair(C, norms, alpha, jnp.ones_like(norms) if share is None else share)


def spectrum(G: Array) -> tuple[Array, Array, Array]:
  """Eigenvalues f[T], eigenvectors in columns f[T, T], and which are kept: those above 4 T eps of the largest."""
  values, vectors = jnp.linalg.eigh(G)
  return values, vectors, values > 4 * len(G) * jnp.finfo(G.dtype).eps * values[-1]


def pseudo_solve(G: Array, rhs: Array) -> Array:
  """pinv(G) @ rhs for a positive semi-definite G, with the rank rule of `spectrum`."""
  values, vectors, kept = spectrum(G)
  return matvec(vectors, jnp.where(kept, matvec(vectors.T, rhs) / jnp.where(kept, values, 1), 0))
