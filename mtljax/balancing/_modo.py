"""Multi-objective descent with double sampling."""

from typing import NamedTuple

import jax.numpy as jnp

from mtljax.balancing import _base, _oracle
from mtljax.base import Array, Balancer


class MoDoState(NamedTuple):
  """Weights f[T]."""

  weights: Array


def modo(gamma: float = 0.1, rho: float = 0.1) -> Balancer:
  """MGDA without the bias of noisy gradients: weights and direction come from independent parts of the batch.

  J0, J1, J2 the Jacobians of three parts; w <- projection onto the simplex of w - gamma (J1 J2' w + rho w), from 1 / T;
  d = sum_t w_t g_t with the new weights and the rows of J0.

  Args:
    gamma: step size of the weights, >= 0. May be traced.
    rho: >= 0, regularisation of the weights. May be traced.

  Returns:
    A balancer of level oracle with three parts: T + 2 backward passes through the trunk, T of them for J1.

  Departure: the three samples are parts of one batch, dealt out; heads see all of it. A task that part 1 or 2
  has no label of keeps its weight. Nothing is normalised, as in the
  authors' code: gamma is in the unit of one over a squared gradient.

  Needs: examples enough for three parts; gamma for the scale of the gradients.
  Helps: as mgda, with small batches: weights do not fit the noise of the gradients that they weigh.
  Breaks: the direction sees a third of the batch; steps of w that are too long jump between corners of the simplex.

  References: Chen, Fernando, Ying and Chen, Three-Way Trade-Off in Multi-Objective Learning: Optimization,
  Generalization and Conflict-Avoidance, 2023, https://arxiv.org/abs/2305.20057

  >>> from mtljax import balancing
  >>> balancer = balancing.modo(gamma=0.125, rho=0.0)
  >>> print(balancing.aggregate(balancer, jnp.array([[2.0, 0.0], [0.0, 1.0]])).direction)
  [0.8125  0.59375]
  """
  _base.check_number('modo', 'gamma', gamma, 'a number >= 0', lambda x: x >= 0)
  _base.check_number('modo', 'rho', rho, 'a number >= 0', lambda x: x >= 0)

  def init(example):
    return MoDoState(_base.zeros(example, 1 / _base.task_count(example)))

  def update(oracle, state, *, present, **_):
    w = _oracle.shares(state.weights, present)
    first = oracle(part=1)
    some = _oracle.shares(w, first.present)
    second = oracle(part=2, weights=some)
    here = first.present & second.present
    u = _oracle.shares(some, here)
    toward = _base.divide(_oracle.products(first.grads['shared'], second.grads['shared']), jnp.sum(some * here))
    u = _oracle.project_simplex(u - gamma * (toward + rho * u), here)
    w = _oracle.redistribute(w, here, u)
    return oracle(part=0, weights=w).grads['shared'], MoDoState(w)

  return _base.make('oracle', update, init, parts=3)
