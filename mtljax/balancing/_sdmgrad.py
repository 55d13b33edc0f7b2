"""Stochastic direction-oriented multi-objective gradient descent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base, _oracle
from mtljax.base import Array, Balancer


class SDMGradState(NamedTuple):
  """Weights f[T], where the next search starts."""

  weights: Array


def sdmgrad(lam: float = 0.3, steps: int = 20, learning_rate: float = 10.0, momentum: float = 0.5) -> Balancer:
  """MGDA drawn towards the mean gradient, with weights and direction from independent parts of the batch.

  J0, J1, J2 the Jacobians of three parts, A = J1 J2' divided by (mean_t sqrt max(A_tt, 0))^2, b = 1 / T;
  steps of SGD with momentum on the simplex, w <- projection of w - learning_rate v, v <- momentum v + A (w + lam b),
  starting at the last weights; d = sum_t (w_t + lam b_t) / (1 + lam) g_t with the rows of J0.

  Args:
    lam: >= 0, pull of the mean gradient. May be traced.
    steps: >= 1, of the search for the weights.
    learning_rate: >= 0, of that search. May be traced.
    momentum: in [0, 1), of that search. May be traced.

  Returns:
    A balancer of level oracle with three parts: 2 T + 1 backward passes through the trunk.

  Departure: the three samples are parts of one batch, dealt out; heads see all of it. A task that part 1 or 2
  has no label of keeps its weight. The scale of A is at least eps
  of its largest entry in place of the authors' absolute 1e-4, so that the scale of gradients drops out. The direction
  is not multiplied by T, as theirs is in some experiments.

  Needs: examples enough for three parts; lam between mgda (0) and the mean gradient (large).
  Helps: as mgda, with small batches, and the mean loss goes down too.
  Breaks: the direction sees a third of the batch; small lam with noise: w jumps between corners of the simplex.

  References: Xiao, Ban and Ji, Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms,
  2023, https://arxiv.org/abs/2305.18409

  >>> from mtljax import balancing
  >>> J = jnp.array([[2.0, 0.0], [0.0, 1.0]])
  >>> direction = balancing.aggregate(balancing.sdmgrad(lam=0.0, steps=50, learning_rate=0.5), J).direction
  >>> [round(float(x), 3) for x in direction]  # that of mgda
  [0.4, 0.8]
  """
  _base.check_number('sdmgrad', 'lam', lam, 'a number >= 0', lambda x: x >= 0)
  steps = _base.check_count('sdmgrad', 'steps', steps, 1)
  _base.check_number('sdmgrad', 'learning_rate', learning_rate, 'a number >= 0', lambda x: x >= 0)
  _base.check_number('sdmgrad', 'momentum', momentum, 'a number in [0, 1)', lambda x: (x >= 0) & (x < 1))

  def init(example):
    return SDMGradState(_base.zeros(example, 1 / _base.task_count(example)))

  def update(oracle, state, *, present, **_):
    w = _oracle.shares(state.weights, present)
    first, second = oracle(part=1), oracle(part=2)
    here = first.present & second.present
    A = _oracle.cross_gramian(first.grads['shared'], second.grads['shared']).astype(w.dtype)
    A = jnp.where(here[:, None] & here[None, :], A, 0)
    scale = _base.mean(jnp.sqrt(jnp.maximum(jnp.diagonal(A), 0)), here) ** 2
    A = _base.divide(A, jnp.maximum(scale, jnp.finfo(A.dtype).eps * jnp.max(jnp.abs(A))))
    mean = _base.preference_weights(None, here, w.dtype)

    def move(_, carry):
      u, velocity = carry
      velocity = momentum * velocity + linalg.matvec(A, u + lam * mean)
      return _oracle.project_simplex(u - learning_rate * velocity, here), velocity

    u, _ = jax.lax.fori_loop(0, steps, move, (_oracle.shares(w, here), jnp.zeros_like(w)))
    w = _oracle.redistribute(w, here, u)
    pull = lam * _base.preference_weights(None, present, w.dtype)
    return oracle(part=0, weights=(w + pull) / (1 + lam)).grads['shared'], SDMGradState(w)

  return _base.make('oracle', update, init, parts=3)
