"""Optimisers: every task and the trunk their own, chosen by path, on `optax.multi_transform`."""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from mtljax import arrays
from mtljax.base import Array, InputError, PyTree


def task_optimizer(
  shared: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
  tasks: Mapping[str, optax.GradientTransformation | Mapping[str, optax.GradientTransformation]],
  decay: Mapping[str, float] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """An optimiser for the trunk and one for each task.

  Learning rates act where loss weights do not: Adam cancels the scale of a head's loss, so `Task.weight` moves what is
  shared and the optimiser given here moves the head. `optax.set_to_zero()` freezes a part; it keeps no state.

  Args:
    shared: for everything under `params['shared']`; or a mapping from regular expression to transformation, searched
      for in the path ('shared/Dense_0/kernel') in the given order, first match wins.
    tasks: task -> transformation (or mapping) for `params['tasks'][task]`.
    decay: 'shared' or task -> beta, adds beta * kernel to the gradient of kernels (two axes or more), the gradient of
      beta/2 |kernel|^2. It acts in the optimiser, so it is in no Jacobian and no balancer sees it.

  Returns:
    A transformation whose `init` and `update` take the whole `params`.

  Raises:
    InputError: on `init`, tasks without an optimiser, optimisers without a task, a parameter that no pattern matches,
      or a pattern that matches none; the message has both sets.

  >>> import jax.numpy as jnp, optax
  >>> optimizer = task_optimizer(shared=optax.sgd(0.1), tasks={'a': optax.sgd(1.0), 'b': optax.set_to_zero()})
  >>> params = {'shared': jnp.ones(1), 'tasks': {'a': jnp.ones(1), 'b': jnp.ones(1)}}
  >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
  >>> [float(updates[k][0]) for k in ('shared',)] + [float(updates['tasks'][k][0]) for k in 'ab']
  [-0.10000000149011612, -1.0, 0.0]
  """
  groups = {'shared': shared, **{f'tasks/{name}': tx for name, tx in tasks.items()}}
  betas = {('shared' if name == 'shared' else f'tasks/{name}'): beta for name, beta in (decay or {}).items()}
  arrays.check_names('task_optimizer decay', betas, groups, all_of=False)
  transforms, patterns = {}, {}
  for group, tx in groups.items():
    if isinstance(tx, Mapping):
      patterns[group] = {pattern: f'{group}/{pattern}' for pattern in tx}
      found = {f'{group}/{pattern}': part for pattern, part in tx.items()}
    else:
      found = {group: tx}
    for label, part in found.items():
      if not isinstance(part, optax.GradientTransformation):
        raise InputError(f'task_optimizer {label!r}: found {part!r}, expected an optax.GradientTransformation.')
      if group in betas:
        part = optax.chain(optax.add_decayed_weights(betas[group], mask=_kernels), part)
      transforms[label] = part

  def labels(params):
    labelled = jax.tree_util.tree_map_with_path(lambda path, _: _label(path, groups, patterns), params)
    used = set(jax.tree.leaves(labelled))
    # A group without parameters (a head without weights) is no mistake; a pattern that matches nothing is.
    present = {'shared', *(f'tasks/{name}' for name in params['tasks'])}
    unused = [label for label in transforms if label not in used and not (label in groups and label in present)]
    if unused:
      raise InputError(f'task_optimizer: optimisers {unused} match no parameter; labels in use are {sorted(used)}.')
    return labelled

  inner = optax.multi_transform(transforms, labels)

  def init(params):
    if not hasattr(params, 'keys') or set(params) != {'shared', 'tasks'}:
      raise InputError("task_optimizer: expected params {'shared': ..., 'tasks': {task: ...}}.")
    arrays.check_names('task_optimizer tasks', tasks, params['tasks'])
    return inner.init(params)

  return optax.GradientTransformationExtraArgs(init, inner.update)


def _kernels(params):
  return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def _label(path, groups, patterns) -> str:
  text = arrays.path_label(path)
  group = 'shared' if path[0].key == 'shared' else f'tasks/{path[1].key}'
  if group not in patterns:
    return group
  for pattern, label in patterns[group].items():
    if re.search(pattern, text):
      return label
  raise InputError(f'task_optimizer: parameter {text!r} matches none of the patterns {list(patterns[group])}.')


def hold_absent(new: PyTree, old: PyTree, names: Sequence[str], present: Array) -> PyTree:
  """Keeps what belongs to absent tasks: leaves below `tasks/<task>`, in parameters and in any optimiser's state.

  A leaf belongs to a task when its path has the keys 'tasks', task in a row (states that mirror the parameters) or a
  key 'tasks/<task>' (`task_optimizer`'s own groups, counters included).
  """

  def owner(path):
    keys = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
    for t, name in enumerate(names):
      own = f'tasks/{name}'
      if any(key == own or key.startswith(own + '/') for key in keys):
        return t
      if any(pair == ('tasks', name) for pair in zip(keys, keys[1:])):
        return t
    return None

  def pick(path, a, b):
    t = owner(path)
    return a if t is None else jnp.where(present[t], a, b)

  return jax.tree_util.tree_map_with_path(pick, new, old)
