"""Evaluation: metrics as sums that merge over batches, divided once at the end."""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays, inputs
from mtljax.base import Array, Batch, InputError, Model, PyTree, Task

Sums = dict[str, dict[str, PyTree]]


def make_eval_step(model: Model, tasks: Sequence[Task]) -> Callable[[PyTree, PyTree, Batch], Sums]:
  """`(params, model_state, batch) -> {task: {'loss' and metrics: sums}}`, a pure function to jit or vmap.

  Tasks with `decode` give their loss only: their metrics read predictions, which `evaluate` makes outside of jit.
  """
  names = arrays.task_names(tasks)

  def eval_step(params, model_state, batch):
    inputs.check_batch(batch, names, model)
    sums, features = {}, _features(model.trunk, model.stem, names, names, params, model_state, _inputs(batch, names))
    for task in tasks:
      x, labels, mask = inputs.task_inputs(batch, task.name)
      outputs, size = _head(model, task, params, features)(x), inputs.batch_size(x)
      safe = labels if mask is None else arrays.make_safe(labels, mask)
      values = task.loss(outputs, safe)
      inputs.check_losses(task.name, values, mask, size)
      mean, count = arrays.masked_mean(values, mask)
      sums[task.name] = {'loss': (mean * count, count)}
      if task.decode is None:
        for name, metric in task.metrics.items():
          sums[task.name][name] = metric.update(outputs, safe, _full_mask(mask, size))
    return sums

  return eval_step


def merge(tasks: Sequence[Task], a: Sums, b: Sums) -> Sums:
  """Adds up the sums of two batches."""
  merged = {}
  for task in tasks:
    left, right = a[task.name], b[task.name]
    merged[task.name] = {
      name: jax.tree.map(jnp.add, left[name], right[name])
      if name == 'loss'
      else task.metrics[name].merge(left[name], right[name])
      for name in left
    }
  return merged


def compute(tasks: Sequence[Task], sums: Sums) -> dict[str, dict[str, Array]]:
  """{task: {metric: value}}, a mean loss first; a task without a label has a NaN loss."""
  values = {}
  for task in tasks:
    total, count = sums[task.name]['loss']
    values[task.name] = {'loss': total / count}
    values[task.name] |= {n: task.metrics[n].compute(s) for n, s in sums[task.name].items() if n != 'loss'}
  return values


def evaluate(
  model: Model,
  tasks: Sequence[Task],
  params: PyTree,
  model_state: PyTree,
  batches: Iterable[Batch],
  eval_step: Callable | None = None,
) -> dict[str, dict[str, float]]:
  """Loss and metrics of every task over all batches.

  Args:
    model, tasks: what was trained.
    params, model_state: of a `TrainState`.
    batches: padded ones mark their padding in 'mask' (`data.eval_batches`).
    eval_step: a compiled `make_eval_step`, to be reused from call to call; None compiles one.

  Returns:
    {task: {'loss': float, metric: float}}.

  Raises:
    InputError: no batch.
  """
  eval_step = jax.jit(make_eval_step(model, tasks)) if eval_step is None else eval_step
  total = None
  for batch in batches:
    sums = eval_step(params, model_state, batch)
    for name, found in _decoded(model, tasks, params, model_state, batch).items():
      sums[name] |= found
    total = sums if total is None else merge(tasks, total, sums)
  if total is None:
    raise InputError('evaluate batches: found none, expected at least one batch.')
  return jax.tree.map(float, compute(tasks, total))


def _inputs(batch, names):
  """A batch with its inputs only."""
  if inputs.is_multi_input(batch):
    return {name: {'inputs': batch[name]['inputs']} for name in names}
  return {'inputs': batch['inputs']}


def _features(trunk, stem, names, wanted, params, model_state, batch):
  """{task: (features, state of its head)} of the wanted ones of the tasks; one input goes through the trunk once."""
  mode, states = dict(train=False, key=None), model_state['tasks']
  run = lambda z, seen: trunk(params['shared'], model_state['shared'], z, tasks=seen, **mode)[0]
  if not inputs.is_multi_input(batch):
    features = run(batch['inputs'], names)
    return {name: (features, states[name]) for name in wanted}
  found = {}
  for name in wanted:
    z, state = batch[name]['inputs'], states[name]
    if stem is not None:
      z, state = stem(params['tasks'][name], state, z, task=name, **mode)
    found[name] = run(z, (name,)), state
  return found


# Compiled once for all calls of `evaluate`: the functions are the key.
_compiled_features = functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))(_features)


def _head(model, task, params, features):
  """The task's head as a function of its inputs (target tokens), on its features."""
  z, state = features[task.name]

  def head(x):
    own = params['tasks'][task.name]
    return model.head(own, state, z, inputs=x, task=task.name, train=False, key=None)[0]

  return head


def _decoded(model, tasks, params, model_state, batch):
  """{task: sums of the metrics of its predictions}, of tasks with `decode`, which runs outside of jit."""
  names, decoded = arrays.task_names(tasks), [task for task in tasks if task.decode is not None]
  if not decoded:
    return {}
  wanted = tuple(task.name for task in decoded)
  features = _compiled_features(model.trunk, model.stem, names, wanted, params, model_state, _inputs(batch, names))
  sums = {}
  for task in decoded:
    x, labels, mask = inputs.task_inputs(batch, task.name)
    predictions = task.decode(_head(model, task, params, features), x)
    mask = np.asarray(_full_mask(mask, inputs.batch_size(x)))
    sums[task.name] = {name: metric.update(predictions, labels, mask) for name, metric in task.metrics.items()}
  return sums


def _full_mask(mask, size):
  """Metrics always get a mask: bool[B], or what the batch has."""
  return jnp.ones(size, bool) if mask is None else mask
