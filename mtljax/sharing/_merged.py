"""Nets whose weights are part shared, part a task's own: the trunk hands on parameters, the head runs the net."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model, PyTree
from mtljax.sharing import scopes
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, by_task, explained
from mtljax.sharing.stages import no_features


def merged(
  trunk: Module,
  heads: Mapping[str, Any],
  part: str,
  make: Callable[[Array, PyTree, str], tuple[PyTree, PyTree]],
  merge: Callable[[PyTree, PyTree, PyTree], PyTree],
  *,
  share: Callable[[PyTree], PyTree] = lambda params: params,
  frozen: bool | PyTree = False,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """y_t = h_t(f(x_t; merge(theta, phi_t))): theta in `params['shared']`, phi_t in `params['tasks'][t][part]`.

  Every task runs the whole net on its own weights, so what the trunk keeps as state (BatchNorm's statistics) is the
  task's: `model_state['tasks'][t]` is {'trunk', part, 'head'}. A frozen theta is `model_state['shared']['frozen']`.

  Args:
    trunk: the net f.
    heads: {task: module}, outputs of the net -> outputs.
    part: name of what is the task's own.
    make: `(key, parameters of the net drawn for the task, task) -> (phi_t, its state)`.
    merge: `(theta, phi_t, its state) -> parameters of the net`.
    share: parameters of the net -> theta.
    frozen: False, True (theta stays as it is initialised), or values for theta.
    stems: as in `hard`.

  Returns:
    A `Model`; with the same key its theta and heads are those of `hard`.
  """

  if not isinstance(frozen, bool):
    frozen = jax.tree.map(np.array, frozen)  # a copy: the arrays of a state that is donated would be gone

  def init(key, x, *, tasks):
    params, _ = trunk.init(key, x, tasks=tasks)
    theta = share(params)
    if frozen is False:
      return theta, {}
    return {}, {'frozen': theta if frozen is True else fitted('frozen', frozen, theta)}

  def apply(params, state, x, *, train, key):
    features = no_features({'shared': params, **state})
    return (features if stems is None else {**features, 'inputs': x}), state

  own = {task: _own(trunk, head, task, part, make, merge) for task, head in by_task(heads, 'heads').items()}
  return hard(Module(init, apply), own, stems)


def _own(trunk: Module, head: Module, task: str, part: str, make: Callable, merge: Callable) -> Module:
  def net(params, state, features, inputs, *, train, key):
    # Frozen weights are no parameters, but the head is differentiated by all that it is handed.
    theta = jax.lax.stop_gradient(features['frozen']) if 'frozen' in features else features['shared']
    x, key = features.get('inputs', inputs), arrays.name_key(key, 'trunk')
    with scopes.part(part):
      weights = merge(theta, params[part], state[part])
    with scopes.part('trunk'):
      return trunk.apply(weights, state['trunk'], x, train=train, key=key, tasks=(task,))

  def init(key, features, *, inputs=None):
    x = features.get('inputs', inputs)
    with explained('trunk', x):
      drawn, trunk_state = trunk.init(arrays.name_key(key, 'trunk'), x, tasks=(task,))
    phi, phi_state = make(arrays.name_key(key, part), drawn, task)
    params, state = {part: phi}, {'trunk': trunk_state, part: phi_state}
    with explained('trunk', x):
      z, _ = net(params, state, features, inputs, train=False, key=None)
    with explained(f'heads[{task!r}]', z):
      head_params, head_state = head.init(key, z, inputs=inputs)
    return {**params, 'head': head_params}, {**state, 'head': head_state}

  def apply(params, state, features, *, inputs=None, train, key):
    z, trunk_state = net(params, state, features, inputs, train=train, key=key)
    with scopes.part('head'):
      y, head_state = head.apply(params['head'], state['head'], z, train=train, key=key, inputs=inputs)
    return y, {**state, 'trunk': trunk_state, 'head': head_state}

  return Module(init, apply)


def nested(leaves: Mapping[str, Any]) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}.

  >>> nested({'a/b': 1, 'a/c': 2})
  {'a': {'b': 1, 'c': 2}}
  """
  tree = {}
  for label, leaf in leaves.items():
    *path, last = label.split('/')
    node = tree
    for name in path:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def matching(argument: str, params: PyTree, where: re.Pattern) -> dict[str, Array]:
  """{path: leaf} where the path matches; raises an InputError if none does."""
  leaves = arrays.labelled(params)
  found = {label: leaf for label, leaf in leaves.items() if where.search(label)}
  if not found:
    raise InputError(f"{argument}: {where.pattern!r} matches none of the trunk's parameters {sorted(leaves)}.")
  return found


def fitted(argument: str, found: PyTree, like: PyTree) -> PyTree:
  """The values of `found`, by path, in the structure and dtypes of `like`; raises where names or shapes differ."""
  values = arrays.labelled(found)
  arrays.check_names(argument, values, arrays.labelled(like))

  def value(path, leaf):
    label = arrays.path_label(path)
    check_shape(argument, label, values[label], leaf)
    return jnp.array(values[label], leaf.dtype)

  return jax.tree_util.tree_map_with_path(value, like)


def check_shape(argument: str, label: str, found: Any, leaf: Array) -> None:
  """Raises unless what is given for the parameter `label` has its shape."""
  if jnp.shape(found) != leaf.shape:
    raise InputError(f'{argument}: {label!r} has shape {jnp.shape(found)}, expected {leaf.shape}.')
