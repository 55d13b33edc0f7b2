"""Auto-Lambda."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from mtljax import linalg
from mtljax.balancing import _base, _oracle
from mtljax.base import Array, Balancer, PyTree


class AutoLambdaState(NamedTuple):
  """Weights f[T] and their optimiser's state, one per task."""

  weights: Array
  opt_state: PyTree


def auto_lambda(
  primary: Any = None,
  inner_lr: float = 0.1,
  initial: float = 0.1,
  optimizer: optax.GradientTransformation | None = None,
) -> Balancer:
  """Weights that one step of training with them would have made better on held-out data.

  delta = -inner_lr sum_t w_t g_t, g_t of the inner part; v the gradient of sum_t primary_t l_t of the outer part at
  the parameters moved by delta; w steps down -inner_lr <g_t, v>; then d = sum_t w_t g_t with the new weights.

  Args:
    primary: f[T] >= 0, weights of the tasks that are aimed at in the outer objective; None: ones.
    inner_lr: > 0, of the step that is looked ahead, best the optimiser's learning rate. May be traced.
    initial: the weights at the start. May be traced.
    optimizer: of the weights; None: `optax.adam(1e-4)`.

  Returns:
    A balancer of level oracle with two parts; the outer one is `batch['outer']` where the batch has it. T + 1 backward
    passes through the trunk. Weights are free, as in the paper: no simplex, no sign.

  Departure: with one step of SGD the derivative of the outer objective with respect to w_t is exactly the product
  above, so that no finite difference is taken. The step ahead has neither momentum nor weight decay, and moves only
  what is shared: heads stay where they are. A task that the inner part has no label of keeps its weight.

  Needs: held-out data in batch['outer'], or half of the batch is held out.
  Helps: few primary tasks: finds which of the others train them well, and when.
  Breaks: all losses primary: those of large scale dominate; few steps, for the weights are slow.

  References: Liu, James, Davison and Johns, Auto-Lambda: Disentangling Dynamic Task Relationships, 2022,
  https://openreview.net/forum?id=KKeCMim5VN

  >>> from mtljax import balancing
  >>> balancer = balancing.auto_lambda(primary=(1.0, 0.0), optimizer=optax.sgd(1.0))
  >>> print(balancing.aggregate(balancer, jnp.array([[2.0, 0.0], [0.0, 8.0]])).direction)
  [1.  0.8]
  """
  if primary is not None:
    expected = 'None or numbers >= 0, one per task'
    _base.check_number('auto_lambda', 'primary', primary, expected, lambda x: x >= 0, scalar=False)
  _base.check_number('auto_lambda', 'inner_lr', inner_lr, 'a number > 0', lambda x: x > 0)
  _base.check_number('auto_lambda', 'initial', initial, 'a number', lambda x: x == x)
  _base.check_optimizer('auto_lambda', optimizer)
  optimizer = optax.adam(1e-4) if optimizer is None else optimizer

  def init(example):
    w = _base.zeros(example) + initial
    return AutoLambdaState(w, _base.init_per_task(optimizer, w))

  def update(oracle, state, *, present, **_):
    aim = jnp.ones_like(state.weights) if primary is None else jnp.asarray(primary, state.weights.dtype)
    _base.check_length('primary', aim, len(present))
    inner = oracle()
    J = inner.grads['shared']
    ahead = _oracle.lookahead(inner_lr, linalg.combine(state.weights, J))
    outer = oracle(ahead, 1, weights=aim)
    gradient = (-inner_lr * _oracle.products(J, outer.grads['shared'])).astype(state.weights.dtype)
    moved = AutoLambdaState(*_base.update_per_task(optimizer, gradient, state.opt_state, state.weights))
    # where the product is 0 for want of labels, the optimiser's memory shall not move the weight
    state = _base.hold(inner.present & jnp.any(outer.present & (aim > 0)), moved, state)
    return linalg.combine(state.weights, J), state

  return _base.make('oracle', update, init, parts=2)
