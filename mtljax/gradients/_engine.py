"""The engine: from a batch to the balanced gradient of every parameter, and the only branch on a balancer's level."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs
from mtljax.base import Array, Balancer, Batch, InputError, Model, Penalty, PyTree, Task, TaskGradients
from mtljax.gradients import _dealt, _examples, _feature_rows, _oracle, _rows, _trees
from mtljax.gradients._forward import forward_pass, hold_state, task_weights
from mtljax.gradients._penalties import output_penalties


def task_gradients(
  model: Model,
  tasks: Sequence[Task],
  balancer: Balancer,
  params: PyTree,
  model_state: PyTree,
  balancer_state: PyTree,
  batch: Batch,
  *,
  key: Array,
  step: Array | int = 0,
  at: str = 'params',
  objectives: str = 'tasks',
  chunk_size: int | None = None,
  penalties: Sequence[Penalty] = (),
  on_nonfinite: str = 'error',
  extras: Mapping[str, Any] | None = None,
) -> TaskGradients:
  """The balanced gradient of every parameter.

  At level losses heads get w_t alpha_t times their loss's gradient, at the other levels alpha_t times it.

  Args:
    model: a trunk and T heads.
    tasks: the order of the task axis.
    balancer: a balancing method.
    params: `{'shared': ..., 'tasks': {task: ...}}`.
    model_state: the same two keys.
    balancer_state: of the balancer.
    batch: single-input `{'inputs', 'labels': {task: y}, 'mask'?: {task: m}}` or multi-input `{task: {...}}`, which may
      leave tasks out (they are absent); 'outer', a batch of the same kind, is read at level oracle only.
    key: typed PRNG key of this step.
    step: int32[], for schedules and balancers.
    at: 'params', rows of J are gradients of the shared parameters; 'features', rows are gradients of the shared
      features (MGDA-UB, arXiv 1810.04650): one trunk pullback whatever T.
    objectives: 'tasks', or 'examples' and 'examples_tasks': the balancer gets the Gramian of per-example gradients
      (arXiv 2406.16232), see `_examples`.
    chunk_size: how many rows of J are pulled through the trunk at once; T and more are all. None is 1 on a CPU, and all
      elsewhere.
    penalties: those with `on='outputs'`; they add one row outside the balancer.
    on_nonfinite: 'drop', a task whose loss or row is not finite counts as absent; 'error', it is reported. Shared
      statistics of a multi-input batch have seen a task that is dropped for its gradient, not its loss. At level oracle
      a task is dropped from the parts where it is not finite, and named for the batch as a whole.
    extras: keyword arguments of the balancer's `update`.

  Returns:
    `TaskGradients`, the same on all devices.

  Raises:
    InputError: what the batch, the balancer or the architecture has that `at` or `objectives` does not take.
  """
  names = arrays.task_names(tasks)
  step = jnp.asarray(step, jnp.int32)
  alphas = task_weights(tasks, step)
  model_key, balancer_key = arrays.name_key(key, 'model'), arrays.name_key(key, 'balancer')
  drop = on_nonfinite == 'drop'
  at_once = _trees.rows_at_once(chunk_size, len(names))
  if at == 'features':
    inputs.check_features(model, names, params, model_state, batch, balancer.level)
  if objectives != 'tasks':
    inputs.check_batch(batch, names, model)
    _examples.check(balancer, batch, objectives)

  forward = forward_pass(model, tasks, params, model_state, batch, key=model_key, alphas=alphas, drop=drop)
  labelled, present = (forward.counts > 0) & (alphas > 0), forward.present
  if drop:  # rows of J at params are looked at where they are made
    rows = zip(*(x.values() if isinstance(x, dict) else x for x in forward.pull_all(alphas, present)))
    present &= arrays.psum(jnp.stack([~arrays.all_finite(row) for row in rows]).astype(int)) == 0
  raw = arrays.psum(forward.losses)

  def balance(statistic, present, losses=None):
    losses = jnp.where(present, raw * alphas, 0) if losses is None else losses
    result, state = balancer.update(
      losses if statistic is None else statistic,
      balancer_state,
      losses=losses,
      present=present,
      key=balancer_key,
      step=step,
      **(extras or {}),
    )
    if balancer.level in ('losses', 'gramian'):
      if jnp.shape(result) != losses.shape:
        raise InputError(
          f'balancer: found weights of shape {jnp.shape(result)}, expected {losses.shape}, one per objective.'
        )
      result = jnp.where(present, result, 0)
    elif jax.tree.structure(result) != jax.tree.structure(params['shared']):
      raise InputError(
        f'balancer: found a direction {jax.tree.structure(result)}, expected one like the shared parameters.'
      )
    return result, arrays.select(present.any(), state, balancer_state)

  penalty, penalty_grads, penalty_row = output_penalties(penalties, names, present, step, params, forward, batch)

  def pull_trunk(row):
    """The row's gradient of the shared parameters, with that of the penalties."""
    return arrays.psum(forward.lift(row if penalty_row is None else _trees.tree_sum([row, penalty_row])))

  def alone(shared):
    """A gradient of the shared parameters with that of the penalties, which takes a pullback of its own."""
    return shared if penalty_row is None else _trees.tree_sum([shared, arrays.psum(forward.lift(penalty_row))])

  scaled = jnp.where(present, alphas, 0)

  weights = gramian = None
  if objectives != 'tasks':
    found = _examples.example_objectives(
      model,
      tasks,
      params,
      model_state,
      batch,
      objectives,
      key=model_key,
      alphas=alphas,
      counts=forward.counts,
      present=present,
    )
    gramian = found.gramian
    weights, balancer_state = balance(gramian, found.present, found.losses)
    heads, _ = forward.pull_all(scaled, present)
    shared = alone(found.pull(weights))
  elif balancer.level == 'losses':
    weights, balancer_state = balance(None, present)
    heads, rows = forward.pull_all(weights * scaled, present)
    shared = pull_trunk(_trees.tree_sum(rows))
  elif balancer.level == 'oracle':
    heads, rows = forward.pull_all(scaled, present)
    oracle = _oracle.make_oracle(
      model,
      tasks,
      params,
      model_state,
      batch,
      balancer.parts,
      key=model_key,
      alphas=alphas,
      present=present,
      at_once=at_once,
      drop=drop,
    )
    shared, balancer_state = balance(oracle, present)
    shared = alone(shared)
  elif at == 'features':
    heads, found = _feature_rows.of_features(forward.pull_each, scaled, present)
    gramian = arrays.psum(found.gramian)
    weights, balancer_state = balance(gramian, present)
    shared = pull_trunk(found.combine(weights))
  else:
    heads, rows = forward.pull_all(scaled, present)
    together = penalty_row is not None and not drop  # a dropped task takes its penalties with it
    stacked = _trees.stack([*rows, penalty_row] if together else rows)
    # factors are those of this device, and of rows that need not be looked at
    local = arrays.axis() is None and not arrays.placed_by_compiler()
    if balancer.level == 'gramian' and local and at_once == len(names) and not drop and jax.tree.leaves(stacked):
      found = _rows.factored(forward.lift, stacked)
    else:
      size, deal = len(names) + together, balancer.level == 'gramian'
      at_once = size if at_once == len(names) else at_once
      found = _dealt.lift_rows(forward.lift, stacked, params['shared'], size, at_once, deal=deal)
      if drop:
        if jax.tree.leaves(params['shared']):  # nothing may be shared
          present &= found.finite()
        found = found.mask(present)
        penalty, penalty_grads, penalty_row = output_penalties(penalties, names, present, step, params, forward, batch)
    gramian = found.gramian[: len(names), : len(names)]
    if balancer.level == 'gramian':
      weights, balancer_state = balance(gramian, present)
      shared = found.combine(jnp.append(weights, 1) if together else weights)
    else:
      jacobian = found.rows()
      shared, balancer_state = balance(jax.tree.map(lambda x: x[: len(names)], jacobian), present)
      if together:
        shared = _trees.tree_sum([shared, jax.tree.map(lambda x: x[-1], jacobian)])
    shared = shared if together else alone(shared)

  heads = arrays.psum(heads)
  if drop:
    heads = {n: arrays.select(present[t], *_trees.with_zeros(heads[n])) for t, n in enumerate(names)}
    shared = arrays.select(present.any(), *_trees.with_zeros(shared))  # inputs may be NaN, and times nothing still are
  grads = {'shared': shared, 'tasks': heads}
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
  if penalty_grads is not None:
    grads = _trees.tree_sum([grads, arrays.psum(penalty_grads)])
  return TaskGradients(
    grads=grads,
    losses=jnp.where(present, raw, 0),
    present=present,
    weights=weights,
    gramian=gramian,
    model_state=hold_state(forward.model_state, model_state, names, present),
    balancer_state=balancer_state,
    penalty=penalty,
    nonfinite=labelled & ~present,
  )


def task_losses(model, tasks, params, model_state, batch, *, key, step, present) -> Array:
  """alpha_t L_t f[T] at other parameters, absent tasks 0: the forward pass of the step (same dropout), no gradients."""
  alphas = task_weights(tasks, step)
  forward = forward_pass(model, tasks, params, model_state, batch, key=arrays.name_key(key, 'model'), alphas=alphas)
  return jnp.where(present, arrays.psum(forward.losses) * alphas, 0)
