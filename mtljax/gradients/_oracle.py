"""Level oracle: the Jacobian at moved shared parameters, on one of several parts of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs, linalg
from mtljax.base import Array, Batch, InputError, Model, PyTree, TaskGradients
from mtljax.gradients import _forward, _trees


def make_oracle(
  model: Model,
  tasks,
  params: PyTree,
  model_state: PyTree,
  batch: Batch,
  parts: int,
  *,
  key: Array,
  alphas: Array,
  present: Array,
  at_once: int,
  drop: bool,
) -> Callable[..., TaskGradients]:
  """What a balancer of level oracle is given.

  Args:
    parts: how many independent parts of the batch there are; `split` makes them.
    present: bool[T], tasks that the step has; the others have zero rows.
    drop: whether a task that is not finite counts as absent.

  Returns:
    `(shared_delta=None, part=0, *, weights=None) -> TaskGradients`, to be called as often as the method likes, in loops
    too. `grads['shared']` is the Jacobian, leaves f[T, *param], rows alpha_t g_t at `params['shared'] + shared_delta`;
    with `weights` f[T] it is the one gradient of sum_t weights_t alpha_t L_t, leaves f[*param], for a single trunk
    pullback. Heads stay where they are. `losses` are alpha_t L_t on that part, `present` tells the tasks that have a
    label there. The same part has the same dropout in every call, so that it is one function.
  """
  names = arrays.task_names(tasks)
  pieces = split(batch, parts, names, model)

  def oracle(shared_delta=None, part=0, *, weights=None):
    if not isinstance(part, int) or part not in range(parts):
      raise InputError(f'part: found {part!r}, expected one of {list(range(parts))}, the parts of the balancer.')
    shared = params['shared']
    if shared_delta is not None:
      shared = jax.tree.map(lambda p, d: (p + d).astype(p.dtype), shared, shared_delta)
    forward = _forward.forward_pass(
      model,
      tasks,
      {**params, 'shared': shared},
      model_state,
      pieces[part],
      key=key if part == 0 else jax.random.fold_in(key, part),
      alphas=alphas,
      drop=drop,
    )
    here = forward.present & present
    scaled = jnp.where(here, alphas, 0)
    heads, rows = forward.pull_all(scaled if weights is None else scaled * weights, here)
    if weights is None:
      found = arrays.psum(_trees.lift_rows(forward.lift, _trees.stack(rows), shared, len(names), at_once))
      if drop:
        here &= jax.vmap(arrays.all_finite)(found)
        found = linalg.mask_rows(here, found)
    else:
      found = arrays.psum(forward.lift(_trees.tree_sum(rows)))
    return TaskGradients(
      grads={'shared': found, 'tasks': arrays.psum(heads)},
      losses=jnp.where(here, arrays.psum(forward.losses) * alphas, 0),
      present=here,
      weights=None,
      gramian=None,
      model_state=model_state,
      balancer_state=(),
      penalty=jnp.zeros((), arrays.real_dtype()),
      nonfinite=jnp.zeros(len(names), bool),
    )

  return oracle


def split(batch: Batch, parts: int, names, model: Model) -> list[Batch]:
  """The parts of a batch: `batch['outer']`, where given, is the last one, and the rest is dealt out row by row.

  Row r goes to part r mod n, so that the parts of a batch are those of its slices on several devices.
  """
  outer = batch.get('outer')
  batch = {k: v for k, v in batch.items() if k != 'outer'}
  if parts == 1:
    return [batch]
  own = parts - (outer is not None)
  for name in names:
    if not inputs.has_task(batch, name):
      continue
    size = inputs.batch_size(inputs.task_inputs(batch, name)[0])
    if size < own or (arrays.axis() and size % own):
      expected = f'a multiple of {own} on every device' if arrays.axis() else f'at least {own}'
      raise InputError(
        f'batch: found {size} examples of task {name!r}, expected {expected}: the balancer wants independent parts.'
      )
  pieces = [jax.tree.map(lambda x, i=i: x[i::own], batch) for i in range(own)]
  if outer is not None:
    try:
      inputs.check_batch(outer, names, model, all_of=False)
    except InputError as error:
      raise InputError(f"batch['outer']: {error}") from error
    pieces.append(outer)
  return pieces
