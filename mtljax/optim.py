"""Optimisers: every task and the trunk their own, chosen by path."""

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
  transforms = {group: _group(group, tx, betas.get(group)) for group, tx in groups.items()}

  def split(params):
    return {'shared': params['shared'], **{f'tasks/{name}': params['tasks'][name] for name in tasks}}

  def join(parts):
    return {'shared': parts['shared'], 'tasks': {name: parts[f'tasks/{name}'] for name in tasks}}

  def init(params):
    if not hasattr(params, 'keys') or set(params) != {'shared', 'tasks'}:
      raise InputError("task_optimizer: expected params {'shared': ..., 'tasks': {task: ...}}.")
    arrays.check_names('task_optimizer tasks', tasks, params['tasks'])
    return join({group: transforms[group].init(part) for group, part in split(params).items()})

  def update(updates, state, params=None, **extra_args):
    updates, state = split(updates), split(state)
    params = dict.fromkeys(updates) if params is None else split(params)
    results = {g: tx.update(updates[g], state[g], params[g], **extra_args) for g, tx in transforms.items()}
    return join({g: result[0] for g, result in results.items()}), join({g: result[1] for g, result in results.items()})

  return optax.GradientTransformationExtraArgs(init, update)


def _group(group, tx, beta) -> optax.GradientTransformationExtraArgs:
  """The transformation of one group; its parameters are a subtree, so only patterns need `multi_transform`.

  One `multi_transform` over all groups keeps a masked copy of the whole tree in every group's state: T^2 empty nodes
  that each call flattens and rebuilds, half a millisecond a step at T = 8.
  """
  parts = tx if isinstance(tx, Mapping) else {'': tx}
  for pattern, part in parts.items():
    if not isinstance(part, optax.GradientTransformation):
      where = group if not pattern else f'{group}: {pattern}'
      raise InputError(f'task_optimizer {where!r}: found {part!r}, expected an optax.GradientTransformation.')
  if isinstance(tx, Mapping):
    tx = optax.multi_transform(dict(tx), lambda params: _labels(group, list(parts), params))
  if beta is not None:
    tx = optax.chain(optax.add_decayed_weights(beta, mask=_kernels), tx)
  return optax.with_extra_args_support(tx)


def _labels(group, patterns, params):
  """For every leaf the first pattern found in its path; unused patterns and unmatched leaves are errors."""

  def label(path, _):
    text = '/'.join((group, arrays.path_label(path))).rstrip('/')
    for pattern in patterns:
      if re.search(pattern, text):
        return pattern
    raise InputError(f'task_optimizer {group!r}: parameter {text!r} matches none of the patterns {patterns}.')

  labelled = jax.tree_util.tree_map_with_path(label, params)
  used = set(jax.tree.leaves(labelled))
  unused = [pattern for pattern in patterns if pattern not in used]
  if unused:
    raise InputError(
      f'task_optimizer {group!r}: patterns {unused} match no parameter; those in use are {sorted(used)}.'
    )
  return labelled


def _kernels(params):
  return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def hold_absent(new: PyTree, old: PyTree, names: Sequence[str], present: Array) -> PyTree:
  """Keeps what belongs to absent tasks, in parameters and in any optimiser's state.

  That is what lies below 'tasks', task of everything like the parameters, `{'shared': ..., 'tasks': {task: ...}}`:
  moments, and the states of `task_optimizer`, where a task's counters lie there too.
  """

  def is_mirror(node):
    # an optimiser may have labels 'shared' and 'tasks' for its groups, whose states are no tables by task
    return hasattr(node, 'keys') and set(node) == {'shared', 'tasks'} and hasattr(node['tasks'], 'keys')

  def pick(path, a, b):
    group, *below = path
    if group.key == 'shared' or below[0].key not in names:
      return a
    return jnp.where(present[names.index(below[0].key)], a, b)

  def held(a, b):
    return jax.tree_util.tree_map_with_path(pick, a, b) if is_mirror(a) else a

  return jax.tree.map(held, new, old, is_leaf=is_mirror)
