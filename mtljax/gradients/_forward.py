"""One forward pass of all tasks, with what pulls their losses back.

Both kinds of batch have one shape here. Every task has a pullback from its outputs to its own parameters and a *row*:
a cotangent of the features (single input, one trunk for all tasks) or a gradient of the shared parameters (multi-input,
one trunk pass a task). `lift` turns a row into a gradient of the shared parameters: the trunk's pullback, or nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs
from mtljax.base import Array, Batch, Model, PyTree, Task
from mtljax.gradients import _trees


class Forward(NamedTuple):
  """One forward pass of all tasks.

  Attributes:
    outputs: {task: outputs}.
    losses: f[T], this device's part of L_t.
    counts: f[T], how many items of L_t are labelled, on all devices.
    present: bool[T], a label on some device and alpha_t > 0.
    pull: {task: (cotangent of the outputs' floating leaves) -> (gradient of the task's parameters, row)}.
    cotangents: {task: dL_t / d outputs}, floating leaves.
    lift: row -> gradient of the shared parameters.
    model_state: after the pass; tasks without a label not yet held.
  """

  outputs: dict[str, PyTree]
  losses: Array
  counts: Array
  present: Array
  pull: dict[str, Callable]
  cotangents: dict[str, list[Array]]
  lift: Callable[[PyTree], PyTree]
  model_state: PyTree

  def pull_each(self, coefficients: Array) -> tuple[dict[str, PyTree], list[PyTree]]:
    """Task gradients and rows of coefficient_t L_t, whether the tasks are present or not."""
    heads, rows = {}, []
    for t, name in enumerate(self.pull):
      cotangent = [(coefficients[t] * c).astype(c.dtype) for c in self.cotangents[name]]  # rounded once
      heads[name], row = self.pull[name](cotangent)
      rows.append(row)
    return heads, rows

  def pull_all(self, coefficients: Array, present: Array) -> tuple[dict[str, PyTree], list[PyTree]]:
    """Task gradients and rows of coefficient_t L_t; those of absent tasks are zero even where a product is NaN."""
    return _trees.of_present(present, *self.pull_each(coefficients))


def task_weights(tasks: Sequence[Task], step: Array) -> Array:
  """alpha f[T] at a step."""
  values = [task.weight(step) if callable(task.weight) else task.weight for task in tasks]
  return jnp.stack([jnp.asarray(value, arrays.real_dtype()) for value in values])


def forward_pass(
  model: Model,
  tasks: Sequence[Task],
  params: PyTree,
  model_state: PyTree,
  batch: Batch,
  *,
  key: Array,
  alphas: Array,
  drop: bool = False,
) -> Forward:
  """Runs trunk and heads, keeping pullbacks; the shared state is threaded through the tasks of a multi-input batch.

  A task that a multi-input batch leaves out is absent: it has no outputs, and costs nothing.
  With `drop` a task whose loss is not finite counts as absent.
  """
  names = arrays.task_names(tasks)
  inputs.check_batch(batch, names, model, all_of=False)
  key = arrays.fold_in_device(key)
  multi = inputs.is_multi_input(batch)
  shared_state, task_states = model_state['shared'], {}
  outputs, losses, counts, present, pulls, cotangents = {}, [], [], [], {}, {}
  lift = _trees.as_is

  if not multi:

    def trunk(shared):
      trunk_key = arrays.name_key(key, 'shared')
      return model.trunk(shared, shared_state, batch['inputs'], tasks=names, train=True, key=trunk_key)

    features, pull_trunk, shared_state = float_vjp(trunk, params['shared'])
    floats, others, merge = arrays.split_floats(features)
    lift = lambda row: pull_trunk(row)[0]

  for t, task in enumerate(tasks):
    name = task.name
    if not inputs.has_task(batch, name):
      cotangents[name], task_states[name] = [], model_state['tasks'][name]
      pulls[name] = lambda _, name=name: jax.tree.map(jnp.zeros_like, (params['tasks'][name], params['shared']))
      nothing = jnp.zeros((), arrays.real_dtype())
      losses.append(nothing)
      counts.append(nothing)
      present.append(jnp.asarray(False))
      continue
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

      y, pulls[name], (state, new_shared) = float_vjp(run, params['tasks'][name], params['shared'])
    else:

      def run(task_params, floats, state=state, x=x, name=name, task_key=task_key):
        features = merge(floats, others)
        return model.head(task_params, state, features, inputs=x, task=name, train=True, key=task_key)

      y, pulls[name], state = float_vjp(run, params['tasks'][name], floats)

    loss, count, cotangents[name] = _loss(task, y, labels, mask, inputs.batch_size(x))
    outputs[name], task_states[name] = y, state
    losses.append(loss)
    counts.append(count)
    present.append((count > 0) & (alphas[t] > 0))
    if drop:
      present[-1] &= jnp.isfinite(arrays.psum(loss))
    if multi:  # an absent task's inputs are no data: they leave no trace in the shared statistics
      shared_state = arrays.select(present[-1], new_shared, shared_state)

  new_state = {'shared': shared_state, 'tasks': task_states}
  # All tasks read these: without the barrier XLA fuses the T operands of each into every reader, T^2 in all. A program
  # of 80 tasks took 2.3 times as long to compile and 2.6 times the memory, one of 139 more than 16 GB.
  # Counts of batches without masks stay outside: they are constants, and what depends on them is decided in compiling.
  losses, counted = jnp.stack(losses), (jnp.stack(counts), jnp.stack(present))
  if drop or any(inputs.task_inputs(batch, name)[2] is not None for name in outputs):
    losses, counted = jax.lax.optimization_barrier((losses, counted))
  else:
    losses = jax.lax.optimization_barrier(losses)
  return Forward(outputs, losses, *counted, pulls, cotangents, lift, new_state)


def float_vjp(function, *primals):
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


def hold_state(new: PyTree, old: PyTree, names: Sequence[str], present: Array) -> PyTree:
  """Absent tasks keep their state, and all of it stays when there is no task."""

  def moved(condition, new, old):
    # the mean over devices of what changed: frozen weights keep their bits
    def leaf(n, o):
      return o + arrays.pmean(n.astype(o.dtype) - o) if arrays.is_float(o) and arrays.axis() else n.astype(o.dtype)

    return arrays.select(condition, jax.tree.map(leaf, new, old), old)

  shared = moved(present.any(), new['shared'], old['shared'])
  tasks = {name: moved(present[t], new['tasks'][name], old['tasks'][name]) for t, name in enumerate(names)}
  return {'shared': shared, 'tasks': {**old['tasks'], **tasks}}
