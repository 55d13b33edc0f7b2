"""What a batch is, and what is wrong with one: checked while tracing, so that it costs nothing per step."""

import jax
import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import Array, Batch, InputError, Model, PyTree, TrainState


def is_multi_input(batch: Batch) -> bool:
  """Whether every task brings its own inputs: `{task: {'inputs', 'labels', 'mask'?}}`."""
  return 'inputs' not in batch


def task_inputs(batch: Batch, name: str) -> tuple[PyTree, PyTree, Array | None]:
  """Inputs, labels and mask (or None) of one task."""
  if is_multi_input(batch):
    part = batch[name]
    return part['inputs'], part['labels'], part.get('mask')
  return batch['inputs'], batch['labels'][name], (batch.get('mask') or {}).get(name)


def has_task(batch: Batch, name: str) -> bool:
  """Whether the batch has this task: a multi-input one may leave it out."""
  return not is_multi_input(batch) or name in batch


def inputs_by_task(batch: Batch, names) -> dict[str, PyTree]:
  """{task: inputs}, what `Model.init` takes."""
  return {name: task_inputs(batch, name)[0] for name in names}


def batch_size(tree: PyTree) -> int:
  """Leading dimension of the first leaf."""
  leaves = jax.tree.leaves(tree)
  return jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 0


def check_state(state: TrainState) -> None:
  """Raises on anything else, such as parameters or arguments in another order."""
  if not isinstance(state, TrainState):
    raise InputError(f'state: found {type(state).__name__}, expected the mtljax.TrainState of init_state.')


def check_batch(batch: Batch, names: tuple[str, ...], model: Model | None = None, *, all_of: bool = True) -> None:
  """Raises an InputError that names the key, what was found and what was expected.

  With `all_of=False` a multi-input batch may leave tasks out: they are absent.
  """
  if not isinstance(batch, dict) and not hasattr(batch, 'keys'):
    raise InputError(f'batch: found {type(batch).__name__}, expected a dict.')
  if is_multi_input(batch):
    if 'labels' in batch:
      raise InputError(f"batch: found {sorted(batch)}, expected 'inputs', 'labels' and optionally 'mask'.")
    given = set(batch) - {'outer'}
    arrays.check_names('batch (multi-input)', given, names, all_of=all_of)
    if not given:
      raise InputError(f'batch (multi-input): found no task, expected one or more of {names}.')
    names = tuple(name for name in names if name in given)
    for name in names:
      if not hasattr(batch[name], 'keys'):
        raise InputError(
          f"batch[{name!r}]: found {type(batch[name]).__name__}, expected a dict with 'inputs', 'labels'."
        )
      unknown = set(batch[name]) - {'inputs', 'labels', 'mask'}
      missing = {'inputs', 'labels'} - set(batch[name])
      if unknown or missing:
        raise InputError(
          f"batch[{name!r}]: found {sorted(batch[name])}, expected 'inputs', 'labels' and optionally 'mask'."
        )
  else:
    unknown = set(batch) - {'inputs', 'labels', 'mask', 'outer'}
    if unknown or 'labels' not in batch:
      raise InputError(f"batch: found {sorted(batch)}, expected 'inputs', 'labels' and optionally 'mask', 'outer'.")
    if not hasattr(batch['labels'], 'keys'):
      raise InputError(f"batch['labels']: found {type(batch['labels']).__name__}, expected a dict of tasks.")
    arrays.check_names("batch['labels']", batch['labels'], names)
    if batch.get('mask') is not None and not hasattr(batch['mask'], 'keys'):
      raise InputError(f"batch['mask']: found {type(batch['mask']).__name__}, expected a dict of tasks.")
    arrays.check_names("batch['mask']", batch.get('mask') or {}, names, all_of=False)
    if model is not None and model.stem is not None:
      raise InputError('batch: found a single input, expected one per task {task: {...}}: the model has stems.')
  for name in names:
    _check_task(name, *task_inputs(batch, name))


def _check_task(name: str, inputs: PyTree, labels: PyTree, mask: Array | None) -> None:
  for what, tree in (('inputs', inputs), ('labels', labels), ('mask', mask)):
    for leaf in jax.tree.leaves(tree):
      if not hasattr(leaf, 'dtype'):
        raise InputError(f'{what} of task {name!r}: found {type(leaf).__name__}, expected arrays with a batch axis.')
      if not any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.number, jnp.bool_, jax.dtypes.extended)):
        raise InputError(f'{what} of task {name!r}: found dtype {leaf.dtype}, expected numbers.')
  size = batch_size(inputs)
  if size == 0:
    raise InputError(f'inputs of task {name!r}: found an empty batch, expected at least one example.')
  for path, leaf in jax.tree_util.tree_leaves_with_path(labels):
    if jnp.shape(leaf)[:1] != (size,):
      where = f'labels of task {name!r}' + (f' ({arrays.path_label(path)})' if path else '')
      raise InputError(f'{where}: found shape {jnp.shape(leaf)}, expected a leading batch axis of {size}.')
  if mask is not None:
    if jnp.result_type(mask) != jnp.bool_:
      raise InputError(f'mask of task {name!r}: found dtype {jnp.result_type(mask)}, expected bool.')
    if jnp.shape(mask)[:1] != (size,):
      raise InputError(
        f'mask of task {name!r}: found shape {jnp.shape(mask)}, expected a leading batch axis of {size}.'
      )


def check_losses(name: str, losses: Array, mask: Array | None, size: int) -> None:
  """Raises unless a loss gave f[B, ...] and the mask fits it."""
  if not arrays.is_float(losses) or jnp.shape(losses)[:1] != (size,):
    raise InputError(
      f'loss of task {name!r}: found {jnp.result_type(losses)}{list(jnp.shape(losses))}, expected one floating value '
      f'per example, [{size}] or [{size}, ...]; the step takes the mean.'
    )
  if mask is not None and jnp.shape(mask) not in ((size,), losses.shape):
    raise InputError(
      f'mask of task {name!r}: found shape {jnp.shape(mask)}, expected ({size},) or that of the losses, {losses.shape}.'
    )


def check_features(
  model: Model, names: tuple[str, ...], params: PyTree, model_state: PyTree, batch: Batch, level: str
) -> None:
  """Raises on what `at='features'` does not take, naming the leaf or the reason."""
  where = "at='features'"
  if level not in ('losses', 'gramian'):
    raise InputError(f"{where}: found a balancer of level {level!r}, expected 'losses' or 'gramian'.")
  if is_multi_input(batch):
    raise InputError(f"{where}: found a multi-input batch, which has no features shared by the tasks; use at='params'.")
  size, key = batch_size(batch['inputs']), jax.random.key(0)
  trunk = lambda shared: model.trunk(shared, model_state['shared'], batch['inputs'], tasks=names, train=True, key=key)[
    0
  ]
  features = jax.eval_shape(trunk, params['shared'])
  leaves = jax.tree_util.tree_leaves_with_path(features)
  leaves = [(arrays.path_label(path) or 'features', leaf) for path, leaf in leaves]
  floats = [(label, leaf) for label, leaf in leaves if arrays.is_float(leaf)]
  if not floats:
    raise InputError(f"{where}: the architecture's trunk hands on no floating feature; use at='params'.")
  for label, leaf in floats:
    if leaf.shape[:1] != (size,):
      raise InputError(
        f'{where}: feature {label!r} has shape {leaf.shape}, expected a leading batch axis of {size}: the architecture '
        f"shares what is no feature; use at='params'."
      )
  if len(floats) == 1 or len(names) == 1:
    return
  for name in names:
    head = lambda z, name=name: model.head(
      params['tasks'][name], model_state['tasks'][name], z, inputs=batch['inputs'], task=name, train=True, key=key
    )[0]
    jaxpr = jax.make_jaxpr(head)(features).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    for (label, leaf), var in zip(leaves, jaxpr.invars, strict=True):
      if arrays.is_float(leaf) and id(var) not in read:
        raise InputError(
          f"{where}: feature {label!r} is not read by task {name!r}: the architecture's features are not shared by all "
          f"tasks; use at='params'."
        )
