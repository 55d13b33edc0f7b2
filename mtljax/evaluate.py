"""Evaluation: metrics as sums that merge over batches, divided once at the end."""

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
  arrays.task_names(tasks)

  def eval_step(params, model_state, batch):
    sums = {}
    for task in tasks:
      head, x, labels, mask = _head(model, tasks, task, params, model_state, batch)
      outputs, size = head(x), inputs.batch_size(x)
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
  decoded = [task for task in tasks if task.decode is not None]
  total = None
  for batch in batches:
    sums = eval_step(params, model_state, batch)
    for task in decoded:
      sums[task.name] |= _decode(model, tasks, task, params, model_state, batch)
    total = sums if total is None else merge(tasks, total, sums)
  if total is None:
    raise InputError('evaluate batches: found none, expected at least one batch.')
  return jax.tree.map(float, compute(tasks, total))


def _head(model, tasks, task, params, model_state, batch):
  """The task's head as a function of its inputs (target tokens), on the features of this batch."""
  name, names = task.name, arrays.task_names(tasks)
  inputs.check_batch(batch, names, model)
  x, labels, mask = inputs.task_inputs(batch, name)
  own, state = params['tasks'][name], model_state['tasks'][name]
  z, seen = x, names
  if inputs.is_multi_input(batch):
    seen = (name,)
    if model.stem is not None:
      z, state = model.stem(own, state, x, task=name, train=False, key=None)
  features, _ = model.trunk(params['shared'], model_state['shared'], z, tasks=seen, train=False, key=None)

  def head(x):
    return model.head(own, state, features, inputs=x, task=name, train=False, key=None)[0]

  return head, x, labels, mask


def _decode(model, tasks, task, params, model_state, batch):
  head, x, labels, mask = _head(model, tasks, task, params, model_state, batch)
  predictions = task.decode(head, x)
  mask = np.asarray(_full_mask(mask, inputs.batch_size(x)))
  return {name: metric.update(predictions, labels, mask) for name, metric in task.metrics.items()}


def _full_mask(mask, size):
  """Metrics always get a mask: bool[B], or what the batch has."""
  return jnp.ones(size, bool) if mask is None else mask
