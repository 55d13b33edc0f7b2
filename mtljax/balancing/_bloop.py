"""Bilevel optimisation with orthogonal projection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Array, Balancer, PyTree


class BloopState(NamedTuple):
  """Moving averages of the gradients, leaves f[T, *param], and whether they have begun, bool[T]."""

  average: PyTree
  seen: Array


def bloop(primary: int = 0, strength: float = 0.1, rho: float = 0.1) -> Balancer:
  """The primary gradient plus what of the others is orthogonal to its moving average.

  m the moving average of g_p, which starts at the first gradient and takes today's after use, m <- (1 - rho) m +
  rho g_p; d = g_p + strength sum over t != p of (g_t - <g_t, m> / |m|^2 m).

  Args:
    primary: index of the primary task p. Where it is absent, the first task that is present stands in.
    strength: >= 0, weight of the others. May be traced.
    rho: in [0, 1]. May be traced.

  Returns:
    A balancer of level jacobian.

  Departure: several auxiliary losses are one, their sum. Averages are kept for every task.

  Needs: a primary task; T copies of the trunk in the state.
  Helps: auxiliary losses that must not slow the main one.
  Breaks: auxiliaries that agree with the main task lose what they share with it.

  References: Hsieh et al., Careful with that Scalpel: Improving Gradient Surgery with an EMA, 2024,
  https://arxiv.org/abs/2402.02998

  >>> from mtljax import balancing
  >>> print(balancing.aggregate(balancing.bloop(strength=0.5), jnp.array([[2.0, 0.0], [-7.0, 8.0]])).direction)
  [2. 4.]
  """
  primary = _base.check_count('bloop', 'primary', primary)
  _base.check_number('bloop', 'strength', strength, 'a number >= 0', lambda x: x >= 0)
  _base.check_number('bloop', 'rho', rho, 'a number in [0, 1]', lambda x: (x >= 0) & (x <= 1))

  def init(example):
    if primary >= _base.task_count(example):
      raise _base.InputError(f'bloop: primary is {primary}, expected an index below {_base.task_count(example)}.')
    return BloopState(_base.zero_rows(example), jnp.zeros(_base.task_count(example), bool))

  def update(J, state, *, present, **_):
    average = _base.hold(state.seen, state.average, J)
    chosen = jnp.arange(len(present)) == jnp.where(present[primary], primary, jnp.argmax(present))
    one = chosen.astype(jnp.float32)
    main = linalg.combine(one, J)
    others = linalg.combine((present & ~chosen).astype(jnp.float32), J)
    m = linalg.combine(one, average)
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))
    share = _base.divide(dot(others, m), dot(m, m))
    direction = jax.tree.map(lambda g, h, m: g + strength * (h - share * m), main, others, m)
    average = jax.tree.map(lambda m, g: m + rho * (g - m), average, J)
    return direction, BloopState(average, state.seen | present)

  return _base.make('jacobian', update, init)
