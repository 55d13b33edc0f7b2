"""Flax nnx modules as pure functions; imported only when somebody hands one in."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mtljax import arrays
from mtljax.base import Array, InputError, PyTree
from mtljax.sharing.modules import Module, mode_keywords, named_keywords, note_own_values, warn_local_batch_norm


def from_nnx(source: nnx.Module | Callable[[nnx.Rngs], nnx.Module], name: str) -> Module:
  """A function `rngs -> nnx.Module`, drawn from the key, or an instance, which keeps its own values.

  `nnx.Param`s are the parameters and every other variable is state, both as nested dictionaries with string keys; the
  random streams are in neither: they start from the step's key, so that a step is a function of state, batch and key.
  """
  drawn = not isinstance(source, nnx.Module)
  if not drawn:
    graphdef, *parts = _split(source)
    parts = jax.tree.map(lambda x: x, parts)  # new variables: changing the instance's own changes nothing here

  @functools.cache
  def structure():
    """The graph and the shapes of parameters, random streams and state; nothing is computed."""
    return _split(nnx.eval_shape(lambda: _build(source, name, jax.random.key(0)))) if drawn else (graphdef, *parts)

  def init(key, *args, **offered):
    if not drawn:
      note_own_values(name)
    params, _, state = _split(_build(source, name, key))[1:] if drawn else parts
    return tuple(jax.tree.map(lambda x: jnp.array(x, copy=True), _to_dict(part)) for part in (params, state))

  def apply(params, state, *args, train, key, **offered):
    graph, abstract_params, abstract_rngs, abstract_state = structure()
    rngs = _seed(abstract_rngs, key, train, name)
    parts = _from_dict(abstract_params, params), rngs, _from_dict(abstract_state, state)
    module = nnx.merge(graph, *parts, copy=True)  # a shared Variable could not be changed under vjp
    module.train() if train else module.eval()
    if train and arrays.axis() is not None:
      _check_batch_norm(module, name)
    keywords = named_keywords(module.__call__, len(args), {**mode_keywords(train), **offered})
    outputs = module(*args, **keywords)
    return outputs, _to_dict(_split(module)[3], state) if train else state

  return Module(init, apply)


def _build(source: Callable, name: str, key: Array) -> nnx.Module:
  # By keyword where there is one of that name: functools.partial(nnx.Linear, 4, 8) takes it no other way.
  function = source
  while isinstance(function, functools.partial):
    function = function.func
  function = function.__init__ if isinstance(function, type) else function  # a class shows its metaclass's signature
  by_keyword = 'rngs' in inspect.signature(function).parameters
  try:
    module = source(rngs=nnx.Rngs(key)) if by_keyword else source(nnx.Rngs(key))
  except (TypeError, ValueError, AttributeError) as error:
    raise InputError(f'{name}: the function {source!r} failed as rngs -> nnx.Module: {error}') from error
  if not isinstance(module, nnx.Module):
    raise InputError(f'{name}: the function {source!r} returned {type(module).__name__}, expected an nnx.Module.')
  return module


def _split(module: nnx.Module):
  """graphdef, parameters, random streams, everything else."""
  return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _to_dict(state: nnx.State, like: PyTree | None = None) -> PyTree:
  """Nested dictionaries with string keys (lists of layers have int ones); with `like`, only its entries."""
  tree = {}
  for path, leaf in nnx.to_flat_state(state):
    node, keep = tree, like
    for part in map(str, path[:-1]):
      keep = None if keep is None else keep.get(part)
      if like is not None and keep is None:
        break
      node = node.setdefault(part, {})
    else:
      if like is None or str(path[-1]) in keep:
        node[str(path[-1])] = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
  return tree


def _from_dict(abstract: nnx.State, tree: PyTree) -> nnx.State:
  """The values of `_to_dict` in the variables of `abstract`."""

  def value(path, leaf):
    found = functools.reduce(lambda node, part: node[str(part)], path, tree)
    return leaf.replace(found) if isinstance(leaf, nnx.Variable) else found

  return nnx.from_flat_state([(path, value(path, leaf)) for path, leaf in nnx.to_flat_state(abstract)])


def _seed(abstract: nnx.State, key: Array | None, train: bool, name: str) -> nnx.State:
  """Random streams at the start of a step: a key of its own for every stream, counts of zero."""
  flat = nnx.to_flat_state(abstract)
  if key is None and train and len(flat):
    raise InputError(f'{name}: key is None with train=True, but the module draws random numbers.')
  key = jax.random.key(0) if key is None else key  # evaluation draws nothing

  def value(path, leaf):
    if isinstance(leaf, nnx.RngKey):
      own = arrays.name_key(key, '/'.join(map(str, path)))
      return leaf.replace(jax.random.split(own, leaf.shape) if leaf.shape else own)
    return leaf.replace(jnp.zeros(leaf.shape, leaf.dtype))

  return nnx.from_flat_state([(path, value(path, leaf)) for path, leaf in flat])


def _check_batch_norm(module: nnx.Module, name: str) -> None:
  for path, part in nnx.iter_modules(module):
    if isinstance(part, nnx.BatchNorm) and part.axis_name is None and not part.use_running_average:
      warn_local_batch_norm(name, f'nnx.BatchNorm {"/".join(map(str, path))!r}')
