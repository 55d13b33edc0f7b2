"""Soft parameter sharing: a trunk per task, tied by a penalty on their parameters."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import Array, InputError, Model, Penalty, PyTree
from mtljax.sharing._merged import matching
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, as_module, by_task
from mtljax.sharing.stages import composed


def soft(
  trunk: Any,
  heads: Mapping[str, Any],
  *,
  penalty: str | Callable[[Mapping[str, PyTree]], Array] = 'distance',
  beta: float | Callable = 1e-3,
  where: str = '.*',
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """y_t = h_t(f(x_t; theta_t)) with beta R(theta_1, ..., theta_T) in the objective.

  'distance' is R = 1/2 sum_{s<t} |theta_s - theta_t|^2. 'trace' is R = sum over the trunk's arrays of the trace norm of
  the matrix whose T rows are the tasks' values of that array: it is small where the rows span few directions.

  A loss reaches its own trunk only, so trunks are in `params['tasks'][task]`, as {'trunk': ..., 'head': ...}, and
  `params['shared']` is empty: there is no conflict for a balancing method to solve. Methods of level losses weigh whole
  tasks; those of level gramian run and see zeros; those that return a direction for what is shared (levels jacobian and
  oracle) refuse it. What ties the trunks is a penalty of the architecture, outside the balancer. A task without labels
  in a batch keeps its trunk, as everything of an absent task stays; the others are still pulled to it.

  Args:
    trunk: inputs -> features, drawn anew for every task.
    heads: {task: module}.
    penalty: 'distance', 'trace', or a function {task: trunk's parameters} -> f[].
    beta: its weight, a number or an optax schedule; 0 makes single-task nets.
    where: regular expression searched for in the path of a trunk's parameter ('Dense_0/kernel'): those that are tied.
    stems: {task: module}, for inputs of different modality, as in `hard`; they are not tied.

  Returns:
    A `Model` whose trunk hands on nothing, whose heads run trunk and head.

  Raises:
    InputError: a part that is no module, an unknown penalty, a negative `beta`, a pattern that is none; while tracing,
      one that matches no parameter.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = soft(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, beta=0.1)
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared'], sorted(params['tasks']['parity'])
  ({}, ['head', 'trunk'])

  References: Duong, Cohn, Bird & Cook, Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural
  Network Parser (ACL 2015), https://aclanthology.org/P15-2139 (distance); Yang & Hospedales, Trace Norm Regularised
  Deep Multi-Task Learning (2016), https://arxiv.org/abs/1606.04038 (trace norm, their last-axis flattening). Departs
  from the latter: singular values are smoothed, see `trace_norm`.
  """
  kinds = {'distance': distance, 'trace': trace_norm}
  if not callable(penalty) and penalty not in kinds:
    raise InputError(f'soft penalty: found {penalty!r}, expected one of {sorted(kinds)} or a function.')
  arrays.check_weight('soft beta', beta)
  module, tied = as_module(trunk, 'trunk'), arrays.pattern('soft where', where)
  measure = penalty if callable(penalty) else kinds[penalty]

  def value(params):
    own = {task: tree if stems is None else tree['head'] for task, tree in sorted(params['tasks'].items())}
    return measure({task: matching('soft where', tree['trunk'], tied) for task, tree in own.items()})

  def nothing(params, state, x, *, train, key):
    return () if stems is None else x, state

  def own(head):
    def walk(call, features, *, inputs):
      return call(('head',), head, call(('trunk',), module, inputs if stems is None else features), inputs=inputs)

    return composed(walk)

  heads = {task: own(head) for task, head in by_task(heads, 'heads').items()}
  return hard(Module(lambda key, x: ({}, {}), nothing), heads, stems)._replace(penalties=(Penalty(beta, value),))


def distance(trunks: Mapping[str, PyTree]) -> Array:
  """R = 1/2 sum_{s<t} |theta_s - theta_t|^2.

  >>> distance({'a': {'w': jnp.array([1.0, 2.0])}, 'b': {'w': jnp.array([0.0, 4.0])}}).item()
  2.5
  """
  total = jnp.zeros((), arrays.real_dtype())
  for a, b in itertools.combinations(trunks.values(), 2):
    total += sum(0.5 * jnp.sum((p - q) ** 2) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  return total


def trace_norm(trunks: Mapping[str, PyTree]) -> Array:
  """R = sum over arrays of sum_i sqrt(lambda_i + eps), lambda the eigenvalues of M M' and M f[T, P] the tasks' rows.

  eps is 1e-6 of their mean: the trace norm has no derivative where M is rank-deficient.

  >>> round(trace_norm({'a': {'w': jnp.array([3.0, 0.0])}, 'b': {'w': jnp.array([0.0, 4.0])}}).item(), 3)
  7.0
  """
  total = jnp.zeros((), arrays.real_dtype())
  for rows in zip(*(jax.tree.leaves(tree) for tree in trunks.values()), strict=True):
    matrix = jnp.stack([row.ravel() for row in rows])
    values = jnp.linalg.eigvalsh(jnp.matmul(matrix, matrix.T, precision=jax.lax.Precision.HIGHEST))
    smooth = jax.lax.stop_gradient(1e-6 * jnp.maximum(values, 0).mean() + jnp.finfo(values.dtype).tiny)
    total += jnp.sum(jnp.sqrt(jnp.maximum(values, 0) + smooth))
  return total
