"""Experts side by side, the gates that mix them, and models of one level of experts (MMoE, CGC, DSelect-k)."""

import math
import numbers
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import Array, InputError, Model, Penalty, PyTree
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, as_module, describe
from mtljax.sharing.stages import composed


class Experts(NamedTuple):
  """`count` experts as one `Module` of inputs -> leaves f[B, count, ...]; leaves that are not floating: the first's."""

  count: int
  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[PyTree, PyTree]]


def make_experts(x: Any, count: int | None, name: str, count_name: str, default: int) -> Experts:
  """Experts from one module, copied with a key for each and run as one (vmap), or from a list of modules.

  Args:
    x: a module, or a list of modules with outputs of equal shapes.
    count: how many copies; None, the default for a module and the length of a list.
    name, count_name: the arguments, for errors.
    default: copies of a module.
  """
  several = is_list(x)
  number = (len(x) if several else default) if count is None else count
  if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < 1:
    raise InputError(f'{count_name}: found {number!r} (of {name}), expected a whole number of experts >= 1.')
  if several:
    if number != len(x):
      raise InputError(f'{count_name}: found {number}, expected None or {len(x)}, the length of the list {name}.')
    return _from_list([as_module(part, f'{name}[{e}]') for e, part in enumerate(x)], name)
  nnx = sys.modules.get('flax.nnx')  # who holds an nnx module has imported it
  if number > 1 and nnx is not None and isinstance(x, nnx.Module):
    raise InputError(
      f'{name}: found an nnx instance, whose {number} copies would all be the same expert; expected a function '
      'rngs -> nnx.Module or a list of modules.'
    )
  return _copies(as_module(x, name), int(number), name)


def make_own(own: Any, tasks, count: int | None, name: str, count_name: str, default: int) -> dict[str, Experts]:
  """{task: experts} from a module or list that every task gets its own copy of, or from {task: module or list}."""
  if isinstance(own, Mapping):
    arrays.check_names(name, own, tasks)
    return {t: make_experts(own[t], count, f'{name}[{t!r}]', count_name, default) for t in tasks}
  return {t: make_experts(own, count, name, count_name, default) for t in tasks}


def is_list(x: Any) -> bool:
  """Whether `x` is several modules: a list or tuple that is no module itself."""
  if isinstance(x, list):
    return True
  if not isinstance(x, tuple) or isinstance(x, Module):
    return False
  return len(x) != 2 or not all(callable(part) and not isinstance(part, nn.Module) for part in x)  # else (init, apply)


def _copies(module: Module, count: int, name: str) -> Experts:
  def init(key, x):
    return jax.vmap(lambda key: module.init(key, x))(jax.random.split(key, count))

  def apply(params, state, x, *, train, key):
    keys = None if key is None else jax.random.split(key, count)
    run = lambda params, state, key: module.apply(params, state, x, train=train, key=key)
    outputs, state = jax.vmap(run, axis_size=count)(params, state, keys)
    side = lambda y: jnp.moveaxis(y, 0, 1) if arrays.is_float(y) else y[0]
    _check_outputs(name, jax.tree.map(lambda y: y[0], outputs), x)
    return jax.tree.map(side, outputs), state

  return Experts(count, init, apply)


def _from_list(parts: list[Module], name: str) -> Experts:
  def init(key, x):
    made = [part.init(arrays.name_key(key, str(e)), x) for e, part in enumerate(parts)]
    return tuple({str(e): pair[i] for e, pair in enumerate(made)} for i in (0, 1))

  def apply(params, state, x, *, train, key):
    outputs, new = {}, {}
    for e, part in enumerate(map(str, range(len(parts)))):
      y, new[part] = parts[e].apply(params[part], state[part], x, train=train, key=arrays.name_key(key, part))
      _check_outputs(f'{name}[{e}]', y, x)
      outputs[f'{name}[{e}]'] = jax.tree.map(lambda y: jnp.expand_dims(y, 1) if arrays.is_float(y) else y, y)
    return join(outputs), new

  return Experts(len(parts), init, apply)


def _check_outputs(name: str, outputs: PyTree, x: PyTree) -> None:
  batch = jnp.shape(jax.tree.leaves(x)[0])[:1]
  floats = [y for y in jax.tree.leaves(outputs) if arrays.is_float(y)]
  if not floats or any(jnp.shape(y)[:1] != batch for y in floats):
    raise InputError(f'{name}: found outputs {describe(outputs)}, expected floating ones that lead with B={batch[0]}.')


def join(outputs: Mapping[str, PyTree]) -> PyTree:
  """{name: leaves f[B, n, ...]} -> leaves f[B, sum n, ...], in the order given.

  Raises:
    InputError: experts of different output shapes, by name.
  """
  one = lambda tree: jax.tree.map(lambda y: jnp.take(y, 0, axis=1) if arrays.is_float(y) else y, tree)
  shapes = {name: jax.eval_shape(one, tree) for name, tree in outputs.items()}
  (first, like), *rest = shapes.items()
  for name, found in rest:
    same = jax.tree.structure(found) == jax.tree.structure(like)
    if not same or any(a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (found, like)))):
      raise InputError(
        f'{name}: found experts of outputs {describe(found)}, expected the shapes of {first}, {describe(like)}.'
      )
  return jax.tree.map(lambda *y: jnp.concatenate(y, axis=1) if arrays.is_float(y[0]) else y[0], *outputs.values())


def mix(weights: Array, outputs: PyTree) -> PyTree:
  """sum_e w_e f_e: weights f[B, E] or f[1, E], leaves f[B, E, ...] -> leaves f[B, ...] of their own dtype."""

  def leaf(f):
    return (arrays.expand_to(weights, f.ndim).astype(f.dtype) * f).sum(axis=1) if arrays.is_float(f) else f

  return jax.tree.map(leaf, outputs)


def read(x: PyTree, name: str) -> Array:
  """Inputs as real vectors f[B, D], for a gate that is no module of the user's.

  Any pytree is flattened, but of a sequence {'x': f[B, N, C], 'mask': bool[B, N]} it is the mean of x over the places
  that count: sequences have lengths of their own, and what else lies beside x (targets) is not for a gate.
  """
  if isinstance(x, Mapping) and 'x' in x:
    if not arrays.is_float(x['x']):
      raise InputError(f'{name}: found tokens {describe(x["x"])}, expected a module, as their numbers mean nothing.')
    if x['x'].ndim == 3:
      mask = x.get('mask')
      mask = jnp.ones(x['x'].shape[:2], bool) if mask is None else mask
      total = jnp.where(mask[..., None], x['x'], 0).astype(arrays.real_dtype()).sum(axis=1)
      return total / jnp.maximum(mask.sum(axis=1), 1)[:, None].astype(total.dtype)
  flat = [jnp.reshape(leaf, (jnp.shape(leaf)[0], -1)).astype(arrays.real_dtype()) for leaf in jax.tree.leaves(x)]
  return jnp.concatenate(flat, axis=1)


def logits_of(gate: Any, width: int, name: str, dense: nn.Module | None = None) -> Module:
  """A module of inputs -> logits f[B, width] in float32: a linear map of what `read` gives, or the user's gate."""
  module = as_module(dense or nn.Dense(width) if gate is None else gate, name)
  seen = (lambda x: read(x, name)) if gate is None else lambda x: x

  def apply(params, state, x, *, train, key):
    z = seen(x)
    if gate is None and z.shape[1] != params['kernel'].shape[0]:
      raise InputError(
        f'{name}: found inputs {describe(x)}, {z.shape[1]} numbers, expected {params["kernel"].shape[0]} as when they '
        "were initialised; inputs of any length are sequences {'x', 'mask'} or take a gate of yours."
      )
    outputs, state = module.apply(params, state, z, train=train, key=key)
    expected = (jnp.shape(jax.tree.leaves(x)[0])[0], width)
    if jax.tree.map(jnp.shape, outputs) != expected:
      raise InputError(f'{name}: found outputs {describe(outputs)}, expected logits f{list(expected)}, one per expert.')
    return outputs.astype(arrays.real_dtype()), state

  return Module(lambda key, x: module.init(key, seen(x)), apply)


def no_gate() -> Module:
  """The gate of a single expert: weight 1 and no parameters, which would never get a gradient."""
  return Module(lambda key, x: ({}, {}), lambda params, state, x, *, train, key: (jnp.ones((1, 1)), state))


def softmax_gate(gate: Any, count: int, name: str) -> Module:
  """inputs -> softmax weights f[B, count]."""
  if count == 1:
    return no_gate()
  logits = logits_of(gate, count, name)

  def apply(params, state, x, *, train, key):
    z, state = logits.apply(params, state, x, train=train, key=key)
    return jax.nn.softmax(z, axis=-1), state

  return Module(logits.init, apply)


def gate_per_task(gates: Any, tasks) -> dict[str, Any]:
  """{task: gate} from None, one gate that every task gets its own copy of, or {task: gate}."""
  if isinstance(gates, Mapping):
    arrays.check_names('gates', gates, tasks)
    return dict(gates)
  return dict.fromkeys(tasks, gates)


def make_model(
  heads: Mapping[str, Module],
  trunk_walk: Callable[..., PyTree],
  head_walk: Callable[..., PyTree],
  stems: Mapping[str, Any] | None = None,
  penalties: tuple[Penalty, ...] = (),
) -> Model:
  """A `Model` of experts in the trunk, and of gates, own experts and a head in every task.

  Args:
    heads: {task: module}.
    trunk_walk: `(call, x, tasks) -> features`, with `call` as in `stages.composed`.
    head_walk: `(call, task, features, x) -> mixture` for the task's head. Gates and own experts read what the shared
      experts read: x is the task's inputs, or what its stem makes of them, which the trunk then hands on.
    stems: as in `hard`.
    penalties: of the architecture.
  """

  def trunk(call, x, *, tasks=()):
    features = trunk_walk(call, x, tasks)
    return features if stems is None else {'features': features, 'inputs': x}

  def own(task):
    def walk(call, features, *, inputs=None):
      if inputs is None:
        raise InputError(f"head of task {task!r}: inputs is None, expected the task's inputs, which its gate reads.")
      features, x = (features, inputs) if stems is None else (features['features'], features['inputs'])
      return call(('head',), heads[task], head_walk(call, task, features, x), inputs=inputs)

    return composed(walk)

  return hard(composed(trunk), {task: own(task) for task in heads}, stems)._replace(penalties=penalties)


def one_level(
  shared: Experts,
  own: Mapping[str, Experts] | None,
  heads: Mapping[str, Module],
  gates: Mapping[str, Module],
  name: str,
  stems: Mapping[str, Any] | None = None,
  penalties: tuple[Penalty, ...] = (),
) -> Model:
  """Shared experts in the trunk, features f[B, E, ...]; in every task a gate, perhaps own experts, and a head."""

  def trunk_walk(call, x, tasks):
    return call(('experts',), shared, x)

  def head_walk(call, task, features, x):
    if own is not None:
      features = join({f'own experts of {task!r}': call(('experts',), own[task], x), name: features})
    return mix(call(('gate',), gates[task], x), features)

  return make_model(heads, trunk_walk, head_walk, stems, penalties)


def positive(name: str, value: Any) -> float:
  """A number > 0, or an InputError."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
    raise InputError(f'{name}: found {value!r}, expected a number > 0.')
  return float(value)
