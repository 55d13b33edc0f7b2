"""Active-set and Newton iterations behind `linalg`: small dense problems, batched by vmap, bounded in length."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax.base import Array

HIGHEST = jax.lax.Precision.HIGHEST


def _mv(matrix: Array, vector: Array) -> Array:
  return jnp.matmul(matrix, vector, precision=HIGHEST)


def _dot(a: Array, b: Array) -> Array:
  return jnp.dot(a, b, precision=HIGHEST)


class _Face(NamedTuple):
  """A point x >= 0 on the face of the coordinates `inside`, and the inverse of the matrix on that face."""

  x: Array  # f[T]
  inside: Array  # bool[T]
  inverse: Array  # f[T, T], 0 outside the face
  barred: Array  # bool[T], coordinates that may not enter until another one has
  grew: Array  # bool[], the last move was an entry
  done: Array  # int32[], how often no coordinate wanted to enter; the second look removes rounding
  count: Array  # int32[]


def _active_set(M: Array, start: _Face, allowed: Array, face_minimum: Callable[[_Face], tuple[Array, Array, Array]]):
  """Minimises a convex function over x >= 0 by walking from face to face (Lawson-Hanson, Wolfe).

  On each face `face_minimum` gives the minimiser z of the function on the plane of the face, the gradient's excess
  there (negative: entering lowers the function) and its noise level. If z is inside, x moves to it and the most
  negative coordinate enters; otherwise x moves as far as it can and the coordinate that blocks leaves. The inverse of
  the positive definite matrix M on the face follows by rank-one updates, O(T^2) per move.
  """
  T, dtype = M.shape[0], M.dtype
  eps = jnp.finfo(dtype).eps

  def move(s: _Face) -> _Face:
    z, excess, noise = face_minimum(s)
    blocks = s.inside & (z <= 0)
    full = ~jnp.any(blocks)
    ratio = jnp.where(blocks, s.x / jnp.where(blocks & (s.x > z), s.x - z, 1), jnp.inf)
    x = jnp.where(full, z, s.x + jnp.minimum(jnp.min(ratio), 1) * (z - s.x))
    barred = s.barred & ~(full & s.grew)
    gain = jnp.where(allowed & ~s.inside & ~barred, -excess, -jnp.inf)
    index = jnp.where(full, jnp.argmax(gain), jnp.argmin(ratio))
    done = full & ((gain[index] <= noise) | (s.done > 0))
    unit = jnp.arange(T) == index
    column = _mv(s.inverse, M[index]) - unit
    pivot = M[index, index] - _dot(M[index], column + unit)  # Schur complement: 0 for a dependent coordinate
    row = s.inverse[index]
    dependent = full & (pivot <= 16 * eps * jnp.sum(jnp.abs(column)) ** 2)  # the rounding of column'M column
    vector = jnp.where(full, column, row)
    scale = jnp.where(full, 1 / jnp.where(dependent, 1, pivot), -1 / jnp.where(full, 1, row[index]))
    inside = jnp.where(full, s.inside | (unit & ~dependent & ~done), s.inside & ~unit)
    inverse = s.inverse + jnp.where(done | dependent, 0, scale) * vector[:, None] * vector[None, :]
    inverse = jnp.where(inside[:, None] & inside[None, :], inverse, 0)
    stuck = jnp.where(full, dependent, s.x[index] <= 0)
    x = jnp.where(inside, jnp.maximum(x, 0), 0)
    return _Face(x, inside, inverse, barred | (unit & stuck), full & ~dependent, s.done + done, s.count + 1)

  return jax.lax.while_loop(lambda s: (s.done < 2) & (s.count < 6 * T + 12), move, start).x


def length(C: Array, y: Array) -> Array:
  """|y|_C, 0 where it cannot be told from 0."""
  square = _dot(y, _mv(C, y))
  return jnp.sqrt(jnp.where(square > 16 * jnp.finfo(C.dtype).eps * jnp.sum(jnp.abs(y)) ** 2, square, 0))


def nonnegative(M: Array, q: Array, allowed: Array) -> Array:
  """argmin over u >= 0 of u'Mu/2 + q.u; coordinates with a zero diagonal or not allowed stay 0."""
  T, eps = M.shape[0], jnp.finfo(M.dtype).eps
  diagonal = jnp.diagonal(M)
  allowed = allowed & (diagonal > 0)
  d = jnp.where(allowed, jax.lax.rsqrt(jnp.where(allowed, diagonal, 1)), 0)
  M, q = M * d[:, None] * d[None, :], q * d  # unit diagonal
  size = jnp.max(jnp.abs(q))
  q = q / jnp.where(size > 0, size, 1)

  def face_minimum(s):
    z = s.x - _mv(s.inverse, _mv(M, s.x) + q)
    return z, _mv(M, z) + q, 4 * eps * (1 + jnp.sum(jnp.abs(z)))

  no, zero = jnp.zeros(T, bool), jnp.zeros(T, M.dtype)
  start = _Face(zero, no, jnp.zeros_like(M), no, jnp.array(False), jnp.array(0), jnp.array(0))
  return _active_set(M, start, allowed, face_minimum) * d * size


def simplex(C: Array, b: Array, p: Array | None, r: Array, allowed: Array) -> Array:
  """argmin of p.y + r |y|_C over y >= 0 with b.y = 1, for cosines C (unit diagonal) and 0 < b <= 1 where allowed.

  With w0 the point of least norm of a face, v the steepest direction within it and D its distance from 0, the minimiser
  on the face is w0 + v D / sqrt(r^2 - |v|^2), or lies at infinity along v. The inverse kept is that of C + bb', which
  exists for every affinely independent face, also where 0 lies on it. `p` None is 0: the point of least norm.
  """
  T, dtype = C.shape[0], C.dtype
  eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
  M = C + b[:, None] * b[None, :]

  def face_minimum(s):
    def solve(rhs):
      y = _mv(s.inverse, rhs)
      return y + _mv(s.inverse, rhs - _mv(M, y))

    y = solve(b)
    w0 = y / jnp.maximum(_dot(b, y), tiny)
    if p is None:
      point = _mv(C, w0)
      return w0, point - _dot(w0, point) * b, 4 * eps * jnp.sum(jnp.abs(w0))
    v = -solve(p - _dot(p, w0) * b)
    slack = r**2 + _dot(p, v)
    distance = length(C, w0)
    steepest = jnp.max(-v)
    ray = s.x + v * 2 * jnp.max(s.x) / jnp.where(steepest > 0, steepest, 1)
    z = jnp.where(slack > 0, w0 + v * distance / jnp.sqrt(jnp.where(slack > 0, slack, 1)), ray)
    norm = length(C, z)
    slope = r / jnp.where(norm > 0, norm, 1)
    noise = 4 * eps * (r + jnp.max(jnp.abs(p)) + slope * jnp.sum(jnp.abs(z)))

    def on_smooth():
      return p + slope * _mv(C, z) - (_dot(p, z) + r * norm) * b

    def at_origin():  # a kink: the steepest slope out of the span of the face towards each row
      across = 1 - jnp.sum(C * jnp.matmul(s.inverse, C, precision=HIGHEST), axis=0)
      return p + _mv(C, v) + jnp.sqrt(jnp.maximum(across * slack, 0))

    return z, jax.lax.cond((distance == 0) & (slack > 0), at_origin, on_smooth), noise

  # the best vertex: p_t / b_t + r / b_t
  costs = r if p is None else p + r
  vertex = jnp.argmin(jnp.where(allowed, costs / jnp.where(allowed, b, 1), jnp.inf))
  unit = jnp.arange(T) == vertex
  x = jnp.where(unit, 1 / jnp.where(b > 0, b, 1), 0)
  inverse = jnp.where(unit[:, None] & unit[None, :], 1 / jnp.where(M[vertex, vertex] > 0, M[vertex, vertex], 1), 0)
  start = _Face(x, unit, inverse, jnp.zeros(T, bool), jnp.array(False), jnp.array(0), jnp.array(0))
  return jnp.where(allowed, _active_set(M, start, allowed, face_minimum), 0)


def power_fair(C: Array, norms: Array, alpha: Array, share: Array) -> Array:
  """w > 0 with (DCD) w = (share / w)^(1/alpha), D = diag(norms); 0 where the norm is 0.

  Newton on x'Ax/2 - sum rho x^(1 - 1/alpha) / (1 - 1/alpha), w = s x scaled so that each task alone has x = 1, written
  for the relative change of x; a step changes no entry by more than a factor that keeps the problem convex.
  """
  T, dtype = C.shape[0], C.dtype
  eps = jnp.finfo(dtype).eps
  present = norms > 0
  safe = jnp.where(present, norms, 1)
  top = jnp.max(jnp.where(present, norms, 0))
  safe = safe / jnp.where(top > 0, top, 1)
  e = (1 - alpha) / (1 + alpha)
  side = jnp.where(present, safe**e, 0)
  A = C * side[:, None] * side[None, :]
  rho = jnp.where(present, side**2 * share ** (1 / alpha), 1)

  def energies(x):
    return x * _mv(A, x), jnp.where(present, rho * x ** (1 - 1 / alpha), 1)

  def step(carry):
    x, _, count = carry
    work, wage = energies(x)  # equal at the solution
    s = jax.lax.rsqrt(wage)
    H = A * (x * s)[:, None] * (x * s)[None, :] + jnp.eye(T, dtype=dtype) / alpha
    factor = jnp.linalg.cholesky(H)
    residual = jnp.where(present, wage - work, 0) * s
    change = s * jax.scipy.linalg.cho_solve((factor, True), residual)
    change = jnp.where(jnp.all(jnp.isfinite(change)), change, 0)
    largest = jnp.max(jnp.abs(change))
    x = x * (1 + change / (1 + largest))
    return x, largest, count + 1

  total = jnp.sum(jnp.where(present, _mv(A, jnp.where(present, 1.0, 0.0).astype(dtype)), 0))
  start = (jnp.sum(jnp.where(present, rho, 0)) / jnp.where(total > 0, total, 1)) ** (alpha / (1 + alpha))
  start = jnp.where(present, jnp.where(total > 0, start, 1), 1).astype(dtype)
  carry = (start, jnp.array(jnp.inf, dtype), jnp.array(0))
  x, *_ = jax.lax.while_loop(lambda c: (c[1] > 4 * eps) & (c[2] < 120), step, carry)
  scale = safe ** (-2 * alpha / (1 + alpha)) * jnp.where(top > 0, top, 1) ** (-2 * alpha / (1 + alpha))
  return jnp.where(present, x * scale, 0)
