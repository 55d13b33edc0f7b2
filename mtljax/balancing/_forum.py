"""First-order multi-gradient bilevel optimisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtljax import arrays, linalg
from mtljax.balancing import _base, _oracle
from mtljax.base import Array, Balancer, PyTree

PENALTY, ROUNDS = 30.0, 16  # the error of the multiplier falls by at least 31 a round


class FORUMState(NamedTuple):
  """Logits f[T], their optimiser's state, one per task, and the averaged multipliers f[T]."""

  logits: Array
  opt_state: PyTree
  average: Array


def forum(
  rho: float = 0.1,
  inner_lr: float = 0.1,
  inner_steps: int = 5,
  decay: float = 0.75,
  optimizer: optax.GradientTransformation | None = None,
) -> Balancer:
  """Held-out losses all go down, subject to the weighted training loss being as low as a few steps can bring it.

  s = softmax(logits), f = sum_t s_t l_t of the inner part, q = f(theta) - f(theta after inner_steps of SGD), the
  latter point held fixed; F_t the unit gradients of the outer part's l_t, without a component in the logits;
  m, nu = argmin over the simplex and nu >= 0 of |sum_t m_t F_t + nu grad q|^2 / 2 - nu rho |grad q|^2;
  average <- average + (step + 1)^-decay (m - average); nu = max(rho - <grad q, sum_t average_t F_t> / |grad q|^2, 0);
  d and the gradient of the logits are the two parts of sum_t average_t F_t + nu grad q.

  Args:
    rho: > 0, how fast q has to fall. May be traced.
    inner_lr: > 0, of the steps that are looked ahead. May be traced.
    inner_steps: >= 1.
    decay: >= 0, exponent of the average; 0: none. May be traced.
    optimizer: of the logits, which start equal; None: `optax.adam(1e-3)`.

  Returns:
    A balancer of level oracle with two parts; the outer one is `batch['outer']` where the batch has it.
    T + inner_steps + 1 backward passes through the trunk.

  Departure: the small problem is solved on the device, by an active set inside a method of multipliers, and with the
  factor 1/2 that the direction's dual has (the authors' code leaves it out). The average counts steps, theirs epochs.
  A step ahead that does not lower f is not taken; they stop where f is above 1e5. Steps ahead move only what is
  shared, and heads take part neither in F nor in q. A task that the inner part has no label of keeps its logit and is
  not in f; one that the outer part has none of keeps its average, and is not in this step's sum.

  Needs: held-out data in batch['outer'], or half of the batch is held out; an inner_lr that lowers f.
  Helps: as moml without second derivatives for several inner steps; held-out losses act on the parameters too.
  Breaks: with an outer batch for validation the parameters are fitted to it; unit gradients make steps of equal length.

  References: Ye et al., A First-Order Multi-Gradient Algorithm for Multi-Objective Bi-Level Optimization, 2024,
  https://arxiv.org/abs/2401.09257

  >>> from mtljax import balancing
  >>> result = balancing.aggregate(balancing.forum(), jnp.array([[3.0, 0.0], [0.0, 4.0]]))
  >>> print(result.direction.round(3), result.state.average.round(3))
  [0.5 0.5] [0.5 0.5]
  """
  _base.check_number('forum', 'rho', rho, 'a number > 0', lambda x: x > 0)
  _base.check_number('forum', 'inner_lr', inner_lr, 'a number > 0', lambda x: x > 0)
  inner_steps = _base.check_count('forum', 'inner_steps', inner_steps, 1)
  _base.check_number('forum', 'decay', decay, 'a number >= 0', lambda x: x >= 0)
  _base.check_optimizer('forum', optimizer)
  optimizer = optax.adam(1e-3) if optimizer is None else optimizer

  def init(example):
    logits = _base.zeros(example)
    average = jnp.full_like(logits, 1 / len(logits))
    return FORUMState(logits, _base.init_per_task(optimizer, logits), average)

  def update(oracle, state, *, present, step, **_):
    s = _base.softmax(state.logits, present)
    here = oracle(weights=s)
    labelled = jnp.sum(s * here.present)  # the share of those that the inner part has labels of: f is theirs
    s = _base.normalise(s, here.present)
    q = jax.tree.map(lambda x: _base.divide(x, labelled.astype(x.dtype)), here.grads['shared'])

    def move(_, carry):
      delta, losses, gradient = carry
      delta = jax.tree.map(jnp.add, delta, _oracle.lookahead(inner_lr, gradient))
      there = oracle(delta, weights=s)
      lower = jnp.sum(s * there.losses) <= jnp.sum(s * losses)  # not where it is NaN
      return arrays.select(lower, (delta, there.losses, there.grads['shared']), carry)

    start = (jax.tree.map(jnp.zeros_like, q), here.losses, q)
    _, lowest, _ = jax.lax.fori_loop(0, inner_steps, move, start)
    fall = here.losses - lowest
    q_logits = s * (fall - jnp.sum(s * fall))
    outer = oracle(part=1)
    F = outer.grads['shared']
    norms = linalg.row_norms(F)
    F = linalg.scale_rows(_base.divide(jnp.ones_like(norms), norms), F)
    size = jnp.sqrt(_oracle.products(jax.tree.map(lambda x: x[None], q), q)[0] + jnp.sum(q_logits**2)).astype(s.dtype)
    along = _base.divide(_oracle.products(F, q).astype(s.dtype), size)
    m = _multipliers(linalg.gramian(F).astype(s.dtype), along, rho * size, outer.present)
    average = _oracle.shares(state.average, present)
    among = _oracle.shares(average, outer.present)
    among = among + (m - among) / jnp.asarray(step + 1, s.dtype) ** decay
    average = _oracle.redistribute(average, outer.present, among)
    nu = _base.divide(jnp.maximum(rho * size - jnp.sum(among * along), 0), size)
    direction = jax.tree.map(lambda a, b: a + nu.astype(b.dtype) * b, linalg.combine(among, F), q)
    gradient = (nu * q_logits).astype(s.dtype)
    moved = _base.update_per_task(optimizer, gradient, state.opt_state, state.logits)
    return direction, FORUMState(*_base.hold(here.present, moved, (state.logits, state.opt_state)), average)

  return _base.make('oracle', update, init, parts=2)


def _multipliers(G: Array, along: Array, aim: Array, present: Array) -> Array:
  """m of argmin of |sum_t m_t F_t + n u|^2 / 2 - n aim over the simplex and n >= 0; u of unit length, along = <F_t, u>.

  The sum of m enters as sum_t m_t = 1 with a multiplier, which each round corrects by what is missing.
  """
  T = len(present)
  one = jnp.where(present, jnp.ones_like(along), 0)
  K = jnp.ones((T + 1, T + 1), G.dtype).at[:T, :T].set(G).at[T, :T].set(along).at[:T, T].set(along)
  ones = jnp.append(one, 0)
  M = K + PENALTY * ones[:, None] * ones[None, :]
  allowed = jnp.append(present, aim > 0)
  linear = jnp.append(jnp.zeros_like(one), -aim)

  def round_(_, carry):
    _, multiplier = carry
    x = linalg.nonnegative(M, linear - (multiplier + PENALTY) * ones, allowed)
    return x, multiplier + PENALTY * (1 - jnp.sum(x * ones))

  x, _ = jax.lax.fori_loop(0, ROUNDS, round_, (jnp.zeros_like(ones), jnp.zeros((), G.dtype)))
  return _base.normalise(x[:T], present)
