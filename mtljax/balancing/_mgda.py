"""Multiple gradient descent."""

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer

NORMALIZE = ('none', 'l2', 'loss', 'loss+')


def mgda(normalize: str = 'none') -> Balancer:
  """The shortest convex combination of the gradients, a direction in which no task gets worse.

  w = argmin over the simplex of |sum_t w_t g_t / n_t|, direction sum_t w_t g_t, with n_t = 1 (none), |g_t| (l2),
  l_t (loss) or l_t |g_t| (loss+).

  Args:
    normalize: 'none', 'l2', 'loss' or 'loss+'. As in the authors' code the weights found for normalised rows are
      applied to the rows themselves.

  Returns:
    A balancer of level gramian. The minimum is exact, by an active set, not Frank-Wolfe.

  Needs: gradients of like norm, or normalize.
  Helps: no task gets worse; ends where none can improve without another losing.
  Breaks: the smallest gradient dictates: a solved task, or a zero gradient, stops all.

  References: Desideri, Multiple-gradient descent algorithm (MGDA), 2012; Sener and Koltun, Multi-Task Learning as
  Multi-Objective Optimization, 2018, https://arxiv.org/abs/1810.04650

  >>> from mtljax import balancing
  >>> w = balancing.aggregate(balancing.mgda(), jnp.array([[3.0, 0.0], [0.0, 1.0]])).weights
  >>> [round(float(x), 3) for x in w]
  [0.1, 0.9]
  """
  _base.check_choice('mgda', 'normalize', normalize, NORMALIZE)

  def update(G, state, *, losses, present, **_):
    scale = jnp.ones_like(losses)
    if normalize in ('l2', 'loss+'):
      norms = jnp.sqrt(jnp.diagonal(G))
      scale = jnp.where(norms > 0, norms, 1)
    if normalize in ('loss', 'loss+'):
      scale = scale * jnp.where(losses != 0, jnp.abs(losses), 1)
    return linalg.min_norm(G / scale[:, None] / scale[None, :], present), state

  return _base.make('gramian', update)
