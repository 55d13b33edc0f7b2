"""One function that runs any balancer on an explicit Jacobian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, linalg
from mtljax.balancing import _base, _oracle
from mtljax.base import LEVELS, Array, Balancer, BalancerState, InputError, PyTree, TaskGradients


class Aggregate(NamedTuple):
  """What `aggregate` returns.

  Attributes:
    direction: the Jacobian's leaves without the task axis; `weights @ J` for methods that give weights.
    weights: f[T], exactly 0 for absent tasks; None at the levels 'jacobian' and 'oracle'.
    state: pass it to the next call.
  """

  direction: PyTree
  weights: Array | None
  state: BalancerState


def aggregate(
  balancer: Balancer,
  jacobian: PyTree,
  losses: Array | None = None,
  state: BalancerState | None = None,
  *,
  present: Array | None = None,
  key: Array | None = None,
  step: int | Array = 0,
  losses_after: Array | None = None,
  **extras: Any,
) -> Aggregate:
  """Combines the rows of a Jacobian as the balancer says; jit-able with the balancer static.

  Args:
    balancer: of any level. At level 'oracle' the tasks are taken as linear, l_t + <g_t, delta>, and all parts of the
      batch as equal.
    jacobian: pytree, leaves f[T, *param]; a plain [T, P] array is one.
    losses: f[T], ones by default.
    state: of the previous call; None starts afresh.
    present: bool[T], all by default. The result is that of the same call with the absent tasks deleted.
    key: typed PRNG key, `jax.random.key(0)` by default.
    step: int32, the number of this call.
    losses_after: f[T], losses of the same batch after the step; given, they are shown to `observe`.
    **extras: go to the balancer's `update`: given draws `order`, `uniform`, `normal`, scores.

  Returns:
    An `Aggregate`. With no task present the direction is zero and the state unchanged.

  Raises:
    InputError: shapes that do not fit, or an unknown level.

  >>> from mtljax import balancing
  >>> J = jnp.array([[1.0, 0.0], [0.0, 2.0]])
  >>> print(aggregate(balancing.mgda(), J).direction.round(3))
  [0.8 0.4]
  """
  if not isinstance(balancer, Balancer):
    raise InputError(f'balancer: found {balancer!r}, expected a Balancer, such as balancing.mgda().')
  if balancer.level not in LEVELS:
    raise InputError(f'balancer: found level {balancer.level!r}, expected one of {LEVELS}.')
  jacobian = jax.tree.map(jnp.asarray, jacobian)
  tasks = _base.check_statistic('jacobian', jacobian)
  losses = jnp.ones(tasks) if losses is None else _base.as_float(losses)
  _base.check_length('losses', losses, tasks)
  present = jnp.ones(tasks, bool) if present is None else jnp.asarray(present, bool)
  _base.check_length('present', present, tasks)
  key = jax.random.key(0) if key is None else key

  masked = linalg.mask_rows(present, jacobian)
  statistic = example = jacobian
  if balancer.level == 'losses':
    statistic = example = losses
  elif balancer.level == 'gramian':
    statistic = example = linalg.gramian(jax.lax.stop_gradient(masked))
  elif balancer.level == 'oracle':
    statistic = linear_oracle(masked, losses, present)
  state = balancer.init(example) if state is None else state
  result, state = balancer.update(statistic, state, losses=losses, present=present, key=key, step=step, **extras)
  if losses_after is not None and balancer.observe is not None:
    state = arrays.select(jnp.any(present), balancer.observe(jnp.asarray(losses_after), state), state)
  if balancer.level in ('jacobian', 'oracle'):
    return Aggregate(jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), result, jacobian), None, state)
  return Aggregate(linalg.combine(result, masked), result, state)


def linear_oracle(jacobian: PyTree, losses: Array, present: Array) -> Callable[..., TaskGradients]:
  """What level 'oracle' takes, for tasks l_t + <g_t, delta> and one batch for all parts; rows of absent tasks are 0."""

  def oracle(shared_delta=None, part=0, *, weights=None):
    moved = losses if shared_delta is None else losses + _oracle.products(jacobian, shared_delta)
    shared = jacobian if weights is None else linalg.combine(weights, jacobian)
    nothing = dict.fromkeys(TaskGradients._fields)
    return TaskGradients(**nothing | {'grads': {'shared': shared, 'tasks': {}}, 'losses': moved, 'present': present})

  return oracle
