"""Aligned multi-task learning."""

from typing import Any

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer

SCALE_MODES = ('min', 'median', 'rmse')


def aligned_mtl(preference: Any = None, scale_mode: str = 'min') -> Balancer:
  """Makes the principal components of the gradient matrix equally large before it is combined.

  G = V diag(e) V', kept are e > 4 T eps max(e); w = sqrt(s) V diag(e^(-1/2)) V' preference, with s the least (min),
  lower median (median) or mean (rmse) of the kept eigenvalues.

  Args:
    preference: f[T] >= 0, None: 1 / T each.
    scale_mode: 'min', 'median' or 'rmse'.

  Returns:
    A balancer of level gramian. Weights may be negative. The rank cut makes the result jump where an eigenvalue
    crosses the threshold.

  Needs: gradients that are linearly independent.
  Helps: conflict and dominance at once: all principal directions count alike.
  Breaks: nearly dependent gradients: the least eigenvalue sets the step, the rank cut jumps.

  References: Senushkin et al., Independent Component Alignment for Multi-Task Learning, 2023,
  https://arxiv.org/abs/2305.19000

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.aligned_mtl(), jnp.array([[4.0, 0.0], [0.0, 1.0]])).direction)
  [0.5 0.5]
  """
  _base.check_preference('aligned_mtl', preference)
  _base.check_choice('aligned_mtl', 'scale_mode', scale_mode, SCALE_MODES)

  def update(G, state, *, present, **_):
    values, vectors, kept = linalg.spectrum(_base.over_trace(G))
    count = jnp.maximum(jnp.sum(kept), 1)
    ascending = jnp.sort(jnp.where(kept, values, jnp.inf))
    place = 0 if scale_mode == 'min' else (count - 1) // 2
    scale = _base.mean(values, kept) if scale_mode == 'rmse' else ascending[place]
    factor = jnp.where(kept, jnp.sqrt(scale / jnp.where(kept, values, 1)), 0)
    r = _base.preference_weights(preference, present, G.dtype)
    return linalg.matvec(vectors, factor * linalg.matvec(vectors.T, r)), state

  return _base.make('gramian', update)
