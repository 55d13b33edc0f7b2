"""Random loss weighting."""

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Balancer


def rlw() -> Balancer:
  """Random weights, drawn anew at every step: a baseline that says how much weights matter at all.

  w = softmax(z), z ~ N(0, I); sums to 1.

  Returns:
    A balancer of level losses. Extra: `normal` f[T], in place of the draw.

  Needs: a random draw a step.
  Helps: litmus test: a method that does not beat it gains nothing by its weights.
  Breaks: adds noise; scales of losses stay as they are.

  References: Lin et al., Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning, 2022,
  https://arxiv.org/abs/2111.10603

  >>> from mtljax import balancing
  >>> w = balancing.aggregate(balancing.rlw(), jnp.eye(2), normal=jnp.log(jnp.array([1.0, 3.0]))).weights
  >>> [round(float(x), 3) for x in w]
  [0.25, 0.75]
  """

  def update(l, state, *, present, key, normal=None, **_):
    z = jax.random.normal(key, l.shape, l.dtype) if normal is None else normal
    _base.check_length('normal', z, len(l))
    return _base.softmax(jnp.asarray(z, l.dtype), present), state

  return _base.make('losses', update)
