"""Gradients of many tasks: the only place with vjp, and the only branch on a balancer's level.

Both kinds of batch have one shape here. Every task has a pullback from its outputs to its own parameters and a *row*:
a cotangent of the features (single input, one trunk for all tasks) or a gradient of the shared parameters (multi-input,
one trunk pass a task). `lift` turns a row into a gradient of the shared parameters: the trunk's pullback, or nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs, linalg
from mtljax.base import Array, Balancer, Batch, InputError, Model, Penalty, PyTree, Task, TaskGradients


class _Forward(NamedTuple):
  """One forward pass of all tasks.

  Attributes:
    outputs: {task: outputs}.
    losses: f[T], this device's part of L_t.
    present: bool[T], a label on some device and alpha_t > 0.
    pull: {task: (cotangent of the outputs' floating leaves) -> (gradient of the task's parameters, row)}.
    cotangents: {task: dL_t / d outputs}, floating leaves.
    lift: row -> gradient of the shared parameters.
    model_state: after the pass; tasks without a label not yet held.
  """

  outputs: dict[str, PyTree]
  losses: Array
  present: Array
  pull: dict[str, Callable]
  cotangents: dict[str, list[Array]]
  lift: Callable[[PyTree], PyTree]
  model_state: PyTree


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
  chunk_size: int | None = None,
  penalties: Sequence[Penalty] = (),
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
    batch: single-input `{'inputs', 'labels': {task: y}, 'mask'?: {task: m}}` or multi-input `{task: {...}}`.
    key: typed PRNG key of this step.
    step: int32[], for schedules and balancers.
    at: 'params', rows of J are gradients of the shared parameters; 'features', rows are gradients of the shared
      features (MGDA-UB, arXiv 1810.04650): one trunk pullback whatever T.
    chunk_size: how many rows of J are pulled through the trunk at once; None all, 1 one by one.
    penalties: those with `on='outputs'`; they add one row outside the balancer.
    extras: keyword arguments of the balancer's `update`.

  Returns:
    `TaskGradients`, the same on all devices.

  Raises:
    InputError: what the batch, the balancer or the architecture has that `at` does not take.
  """
  names = arrays.task_names(tasks)
  step = jnp.asarray(step, jnp.int32)
  alphas = task_weights(tasks, step)
  forward = _forward(model, tasks, params, model_state, batch, arrays.name_key(key, 'model'), alphas)
  present = forward.present
  losses = jnp.where(present, arrays.psum(forward.losses), 0)
  scaled = jnp.where(present, alphas, 0)

  def balance(statistic):
    result, state = balancer.update(
      statistic,
      balancer_state,
      losses=losses * scaled,
      present=present,
      key=arrays.name_key(key, 'balancer'),
      step=step,
      **(extras or {}),
    )
    if balancer.level in ('losses', 'gramian') and jnp.shape(result) != (len(names),):
      raise InputError(f'balancer: found weights of shape {jnp.shape(result)}, expected ({len(names)},), one per task.')
    return result, arrays.select(present.any(), state, balancer_state)

  def pull(coefficients):
    """Task gradients and rows of coefficient_t L_t; those of absent tasks are zero even where a product is NaN."""
    pulled = {}
    for t, name in enumerate(names):
      cotangent = [coefficients[t].astype(c.dtype) * c for c in forward.cotangents[name]]
      pulled[name] = arrays.select(present[t], *_with_zeros(forward.pull[name](cotangent)))
    return {n: g for n, (g, _) in pulled.items()}, [row for _, row in pulled.values()]

  penalty, penalty_grads, penalty_row = _output_penalties(penalties, names, present, step, params, forward)

  if at == 'features':
    inputs.check_features(model, names, params, model_state, batch, balancer.level)
  weights = gramian = None
  if balancer.level == 'losses':
    weights, balancer_state = balance(losses * scaled)
    weights = jnp.where(present, weights, 0)
    heads, rows = pull(weights * scaled)
    row = _tree_sum(rows if penalty_row is None else [*rows, penalty_row])
    shared = arrays.psum(forward.lift(row))
  elif at == 'features':
    heads, rows = pull(scaled)
    stacked = _stack(rows)
    gramian = arrays.psum(_gramian(stacked, names))
    weights, balancer_state = balance(gramian)
    weights = jnp.where(present, weights, 0)
    row = linalg.combine(weights, stacked)
    shared = arrays.psum(forward.lift(row if penalty_row is None else _tree_sum([row, penalty_row])))
  else:
    heads, rows = pull(scaled)
    stacked = _stack(rows if penalty_row is None else [*rows, penalty_row])
    jacobian = arrays.psum(_lift_rows(forward.lift, stacked, params['shared'], len(names), chunk_size))
    last = None
    if penalty_row is not None:
      jacobian, last = (jax.tree.map(lambda x, s=s: x[s], jacobian) for s in (slice(None, -1), -1))
    gramian = _gramian(jacobian, names)
    if balancer.level == 'gramian':
      weights, balancer_state = balance(gramian)
      weights = jnp.where(present, weights, 0)
      shared = linalg.combine(weights, jacobian)
    else:
      shared, balancer_state = balance(jacobian)
    shared = shared if last is None else _tree_sum([shared, last])

  grads = {'shared': shared, 'tasks': arrays.psum(heads)}
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
  if penalty_grads is not None:
    grads = _tree_sum([grads, arrays.psum(penalty_grads)])
  return TaskGradients(
    grads=grads,
    losses=losses,
    present=present,
    weights=weights,
    gramian=gramian,
    model_state=_hold_state(forward.model_state, model_state, names, present),
    balancer_state=balancer_state,
    penalty=penalty,
  )


def task_weights(tasks: Sequence[Task], step: Array) -> Array:
  """alpha f[T] at a step."""
  values = [task.weight(step) if callable(task.weight) else task.weight for task in tasks]
  return jnp.stack([jnp.asarray(value, arrays.real_dtype()) for value in values])


def task_losses(model, tasks, params, model_state, batch, *, key, step, present) -> Array:
  """alpha_t L_t f[T] at other parameters, absent tasks 0: the forward pass of the step (same dropout), no gradients."""
  alphas = task_weights(tasks, step)
  forward = _forward(model, tasks, params, model_state, batch, arrays.name_key(key, 'model'), alphas)
  return jnp.where(present, arrays.psum(forward.losses) * alphas, 0)


def _forward(model, tasks, params, model_state, batch, key, alphas) -> _Forward:
  """Runs trunk and heads, keeping pullbacks; the shared state is threaded through the tasks of a multi-input batch."""
  names = arrays.task_names(tasks)
  inputs.check_batch(batch, names, model)
  key = arrays.fold_in_device(key)
  multi = inputs.is_multi_input(batch)
  shared_state, task_states = model_state['shared'], {}
  outputs, losses, present, pulls, cotangents = {}, [], [], {}, {}
  lift = lambda row: row

  if not multi:

    def trunk(shared):
      trunk_key = arrays.name_key(key, 'shared')
      return model.trunk(shared, shared_state, batch['inputs'], tasks=names, train=True, key=trunk_key)

    features, pull_trunk, shared_state = _float_vjp(trunk, params['shared'])
    floats, others, merge = arrays.split_floats(features)
    lift = lambda row: pull_trunk(row)[0]

  for t, task in enumerate(tasks):
    name = task.name
    x, labels, mask = inputs.task_inputs(batch, name)
    task_key = arrays.name_key(key, name)
    state = model_state['tasks'][name]

    if multi:

      def run(task_params, shared, state=state, shared_state=shared_state, x=x, name=name, task_key=task_key):
        z = x
        if model.stem is not None:
          z, state = model.stem(task_params, state, x, task=name, train=True, key=arrays.name_key(task_key, 'stem'))
        trunk_key = arrays.name_key(task_key, 'shared')
        features, new_shared = model.trunk(shared, shared_state, z, tasks=(name,), train=True, key=trunk_key)
        y, state = model.head(task_params, state, features, inputs=x, task=name, train=True, key=task_key)
        return y, (state, new_shared)

      y, pulls[name], (state, new_shared) = _float_vjp(run, params['tasks'][name], params['shared'])
    else:

      def run(task_params, floats, state=state, x=x, name=name, task_key=task_key):
        features = merge(floats, others)
        return model.head(task_params, state, features, inputs=x, task=name, train=True, key=task_key)

      y, pulls[name], state = _float_vjp(run, params['tasks'][name], floats)

    loss, count, cotangents[name] = _loss(task, y, labels, mask, inputs.batch_size(x))
    outputs[name], task_states[name] = y, state
    losses.append(loss)
    present.append((count > 0) & (alphas[t] > 0))
    if multi:  # an absent task's inputs are no data: they leave no trace in the shared statistics
      shared_state = arrays.select(present[-1], new_shared, shared_state)

  new_state = {'shared': shared_state, 'tasks': task_states}
  return _Forward(outputs, jnp.stack(losses), jnp.stack(present), pulls, cotangents, lift, new_state)


def _float_vjp(function, *primals):
  """vjp of `primals -> (tree, aux)` whose pullback takes cotangents of the tree's floating leaves only."""
  merge = None

  def floats_of(*primals):
    nonlocal merge
    tree, aux = function(*primals)
    floats, others, merge = arrays.split_floats(tree)
    return floats, (others, aux)

  floats, pullback, (others, aux) = jax.vjp(floats_of, *primals, has_aux=True)
  return merge(floats, others), pullback, aux


def _loss(task: Task, outputs, labels, mask, size: int):
  """This device's part of L_t, the global count of labels, and dL_t / d outputs."""
  floats, others, merge = arrays.split_floats(outputs)
  labels = labels if mask is None else arrays.make_safe(labels, mask)

  def mean(floats):
    values = task.loss(merge(floats, others), labels)
    inputs.check_losses(task.name, values, mask, size)
    return arrays.masked_mean(values, mask)

  loss, pullback, count = jax.vjp(mean, floats, has_aux=True)
  return loss, count, pullback(jnp.ones_like(loss))[0]


def _output_penalties(penalties, names, present, step, params, forward):
  """Sum of beta_t R_t(params, outputs), its gradient with respect to the parameters, and its row."""
  penalties = [p for p in penalties if p.on == 'outputs']
  if not penalties:
    return jnp.zeros((), arrays.real_dtype()), None, None
  floats, others, merge = arrays.split_floats(forward.outputs)
  value, grads, cotangents = jnp.zeros((), arrays.real_dtype()), *jax.tree.map(jnp.zeros_like, (params, floats))
  for penalty in penalties:
    weight = penalty_weight(penalty, names, present, step) / arrays.psum(1)  # the mean over devices
    scaled = scaled_penalty(lambda p, z, r=penalty.value: r(p, merge(z, others)), weight, params, floats)
    value, grads, cotangents = _tree_sum([(value, grads, cotangents), scaled])
  by_task = merge(cotangents, [None] * len(others))
  rows = []
  for t, name in enumerate(names):
    mine = [c for c in jax.tree.leaves(by_task[name])]
    head, row = arrays.select(present[t], *_with_zeros(forward.pull[name](mine)))
    grads['tasks'][name] = _tree_sum([grads['tasks'][name], head])
    rows.append(row)
  return arrays.psum(value), grads, _tree_sum(rows)


def scaled_penalty(function, weight, *primals):
  """weight * R and its gradients; exactly 0 where the weight is, even if R or its gradient is not finite there."""
  value, grads = jax.value_and_grad(function, argnums=tuple(range(len(primals))))(*primals)
  return jax.tree.map(lambda x: jnp.where(weight != 0, weight * x, 0).astype(x.dtype), (value, *grads))


def penalty_weight(penalty: Penalty, names, present: Array, step: Array) -> Array:
  """beta_t at a step; 0 while the penalty's task is absent."""
  beta = jnp.asarray(penalty.weight(step) if callable(penalty.weight) else penalty.weight, arrays.real_dtype())
  return beta if penalty.task is None else jnp.where(present[names.index(penalty.task)], beta, 0)


def _gramian(rows, names):
  """Nothing shared makes a Gramian of zeros."""
  return linalg.gramian(rows) if jax.tree.leaves(rows) else jnp.zeros((len(names),) * 2, arrays.real_dtype())


def _lift_rows(lift, rows, shared, size, chunk_size):
  """Rows of J, `chunk_size` at a time; memory of the pullback grows with the chunk, J itself with T."""
  if not jax.tree.leaves(rows):  # the trunk hands nothing on: no task reaches what is shared
    return jax.tree.map(lambda p: jnp.zeros((size, *p.shape), p.dtype), shared)
  if chunk_size is None:
    return jax.vmap(lift)(rows)
  if chunk_size == 1:
    return jax.lax.map(lift, rows)
  return jax.lax.map(lift, rows, batch_size=chunk_size)


def _hold_state(new, old, names, present):
  """Absent tasks keep their state, and all of it stays when there is no task."""

  def moved(condition, new, old):
    # the mean over devices of what changed: frozen weights keep their bits
    def leaf(n, o):
      return o + arrays.pmean(n.astype(o.dtype) - o) if arrays.is_float(o) and arrays.axis() else n.astype(o.dtype)

    return arrays.select(condition, jax.tree.map(leaf, new, old), old)

  shared = moved(present.any(), new['shared'], old['shared'])
  tasks = {name: moved(present[t], new['tasks'][name], old['tasks'][name]) for t, name in enumerate(names)}
  return {'shared': shared, 'tasks': {**old['tasks'], **tasks}}


def _with_zeros(tree):
  return tree, jax.tree.map(jnp.zeros_like, tree)


def _stack(trees):
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def _tree_sum(trees):
  return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *trees)
