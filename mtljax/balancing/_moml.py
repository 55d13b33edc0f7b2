"""Multi-objective meta learning."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtljax import linalg
from mtljax.balancing import _base, _oracle
from mtljax.base import Array, Balancer, PyTree

NOISE = 16  # what is below this many roundings counts as 0: Adam would blow it up to full steps


class MOMLState(NamedTuple):
  """Logits f[T] and their optimiser's state, one per task."""

  logits: Array
  opt_state: PyTree


def moml(inner_lr: float = 0.1, optimizer: optax.GradientTransformation | None = None) -> Balancer:
  """Weights that one step of training with them would have made better for every task on held-out data.

  s = softmax(logits); delta = -inner_lr sum_t s_t g_t, g_t of the inner part; h_k the gradient of the outer part's l_k
  at the parameters moved by delta; row k of the upper level is u_k = -inner_lr (diag s - ss') <g_t, h_k>_t, its
  gradient with respect to the logits. They step down the shortest convex combination of the u_k / |u_k|; then
  d = sum_t s_t g_t with the new logits.

  Args:
    inner_lr: > 0, of the step that is looked ahead. May be traced.
    optimizer: of the logits, which start equal; None: `optax.adam(1e-3)`.

  Returns:
    A balancer of level oracle with two parts; the outer one is `batch['outer']` where the batch has it. 2 T backward
    passes through the trunk.

  Departure: one inner step, whose derivative is exactly the product above, so that nothing is differentiated twice.
  The shortest combination is exact, and 0 where it cannot be told from 0; a u_k that cannot has no say. The step ahead
  moves only what is shared: heads stay where they are. A task that the inner part has no label of keeps its logit and
  is not in s.

  Needs: held-out data in batch['outer'], or half of the batch is held out.
  Helps: weights for generalisation, without a scale or a preference among the held-out losses.
  Breaks: many tasks, for two backward passes each; logits stop where held-out losses want opposite weights.

  References: Ye et al., Multi-Objective Meta Learning, 2021, https://arxiv.org/abs/2102.07121

  >>> from mtljax import balancing
  >>> balancer = balancing.moml(optimizer=optax.sgd(0.5))
  >>> print(balancing.aggregate(balancer, jnp.array([[2.0, 0.0], [1.0, 0.5]])).state.logits.round(4))
  [ 0.3536 -0.3536]
  """
  _base.check_number('moml', 'inner_lr', inner_lr, 'a number > 0', lambda x: x > 0)
  _base.check_optimizer('moml', optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def init(example):
    logits = _base.zeros(example)
    return MOMLState(logits, _base.init_per_task(optimizer, logits))

  def update(oracle, state, *, present, **_):
    inner = oracle()
    J, here = inner.grads['shared'], inner.present  # what has no label in the inner part takes no part in its step
    s = _base.softmax(state.logits, here)
    ahead = _oracle.lookahead(inner_lr, linalg.combine(s, J))
    outer = oracle(ahead, 1)
    M = _oracle.cross_gramian(outer.grads['shared'], J).astype(s.dtype)
    spread = M - linalg.matvec(M, s)[:, None]
    size = jnp.max(jnp.where(here[None, :], jnp.abs(M), 0), axis=1, keepdims=True)
    told = jnp.any(here[None, :] & (jnp.abs(spread) > NOISE * jnp.finfo(s.dtype).eps * size), axis=1, keepdims=True)
    gradient = _shortest(jnp.where(told, -inner_lr * s[None, :] * spread, 0), present)
    moved = MOMLState(*_base.update_per_task(optimizer, gradient, state.opt_state, state.logits))
    state = _base.hold(here & jnp.any(outer.present), moved, state)
    return linalg.combine(_base.softmax(state.logits, here), J), state

  return _base.make('oracle', update, init, parts=2)


def _shortest(rows: Array, present: Array) -> Array:
  """The point of least norm in the hull of the unit rows; zero rows have no say."""
  rows = _base.divide(rows, jnp.max(jnp.abs(rows)))
  norms = linalg.row_norms(rows)
  rows = _base.divide(rows, norms[:, None])
  point = linalg.combine(linalg.min_norm(linalg.gramian(rows), present & (norms > 0)), rows)
  return jnp.where(jnp.sum(point**2) > NOISE * jnp.finfo(rows.dtype).eps, point, 0)
