"""Gradient sign dropout."""

import jax
import jax.numpy as jnp

from mtljax.balancing import _base
from mtljax.base import Balancer


def graddrop(leak: float = 0.0) -> Balancer:
  """Keeps, coordinate by coordinate, only the gradients of one randomly chosen sign.

  P = (1 + sum_t g_t / sum_t |g_t|) / 2, U uniform; M_t = (P > U)(g_t > 0) + (P < U)(g_t < 0);
  direction sum_t (leak + (1 - leak) M_t) g_t.

  Args:
    leak: share of the dropped gradients that passes, in [0, 1]; a number, or f[T] one per task.

  Returns:
    A balancer of level jacobian. Extra: `uniform`, leaves f[*param], in place of the draw.

  Departure: acts on the gradients of the shared parameters, where the paper acts on those of the activations.
  Columns that are all zero give 0.

  Needs: a random draw a parameter.
  Helps: conflicts parameter by parameter; acts as regularisation.
  Breaks: noise grows with conflict; the larger gradient wins most draws.

  References: Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, 2020,
  https://arxiv.org/abs/2010.06808

  >>> from mtljax import balancing
  >>> J = jnp.array([[3.0, 1.0], [-1.0, 1.0]])
  >>> print(balancing.aggregate(balancing.graddrop(), J, uniform=jnp.array([0.9, 0.5])).direction)
  [-1.  2.]
  """
  _base.check_number('graddrop', 'leak', leak, 'numbers in [0, 1]', lambda x: (x >= 0) & (x <= 1), scalar=False)

  def update(J, state, *, present, key, uniform=None, **_):
    leaves, treedef = jax.tree.flatten(J)
    if uniform is None:
      draws = [jax.random.uniform(jax.random.fold_in(key, i), g.shape[1:], g.dtype) for i, g in enumerate(leaves)]
    else:
      draws = treedef.flatten_up_to(uniform)
    share = jnp.broadcast_to(jnp.asarray(leak, leaves[0].dtype), present.shape)

    def drop(g, U):
      U = jnp.asarray(U, g.dtype)
      if U.shape != g.shape[1:]:
        raise _base.InputError(f'uniform: found shape {U.shape}, expected {g.shape[1:]}, that of the parameter.')
      P = 0.5 * (1 + _base.divide(_base.add_rows(g), _base.add_rows(jnp.abs(g))))
      kept = ((P > U)[None] & (g > 0)) | ((P < U)[None] & (g < 0))
      leaked = _base.expand_to(share, g.ndim).astype(g.dtype)
      return _base.add_rows((leaked + (1 - leaked) * kept) * g)

    return treedef.unflatten([drop(g, U) for g, U in zip(leaves, draws)]), state

  return _base.make('jacobian', update)
