"""What the methods that ask an oracle share: products of gradients of two parts, lookaheads, the simplex."""

import jax
import jax.numpy as jnp
import optax

from mtljax import linalg
from mtljax.arrays import real_dtype
from mtljax.balancing import _base
from mtljax.base import Array, PyTree


def cross_gramian(left: PyTree, right: PyTree) -> Array:
  """<g_s, h_t> f[S, T] of two Jacobians with leaves f[S, *param] and f[T, *param], like `linalg.gramian`."""

  def products(a, b):
    axes = tuple(range(1, a.ndim))
    dtype = jnp.promote_types(jnp.result_type(a, b), real_dtype())
    return jax.lax.dot_general(a, b, ((axes, axes), ((), ())), precision=linalg.HIGHEST, preferred_element_type=dtype)

  return sum(jax.tree.leaves(jax.tree.map(products, left, right)))


def products(jacobian: PyTree, direction: PyTree) -> Array:
  """<g_t, v> f[T]."""
  return cross_gramian(jacobian, jax.tree.map(lambda v: v[None], direction))[:, 0]


def lookahead(rate: float | Array, gradient: PyTree) -> PyTree:
  """Where a step of SGD leads to, as a `shared_delta`."""
  return jax.tree.map(lambda g: -jnp.asarray(rate, g.dtype) * g, gradient)


def shares(weights: Array, present: Array) -> Array:
  """Non-negative weights f[T] of the present tasks scaled to sum 1; equal ones where they are all 0."""
  some = jnp.any(present & (weights > 0))
  return _base.normalise(jnp.where(some, weights, jnp.ones_like(weights)), present)


def redistribute(weights: Array, here: Array, new: Array) -> Array:
  """What `weights` f[T] give to the tasks `here` dealt out as `new`, f[T] of sum 1, has it; the others keep theirs."""
  return jnp.where(here, jnp.sum(jnp.where(here, weights, 0)) * new, weights)


def project_simplex(values: Array, present: Array) -> Array:
  """The nearest point f[T] of the simplex of the present tasks, 0 for the others.

  >>> print(project_simplex(jnp.array([0.75, 5.0, 0.5]), jnp.array([True, False, True])))
  [0.625 0.    0.375]
  """
  top = jnp.max(jnp.where(present, values, -jnp.inf))
  # a common shift changes nothing, and what lies 1 below the top gets 0: numbers stay small whatever the step was
  below = jnp.where(present, jnp.clip(values - top, -1, 0), -1)
  return jnp.where(present, optax.projections.projection_simplex(below), 0)
