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
from mtljax.sharing.modules import Module, as_module, describe, explained


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
  if not isinstance(number, numbers.Integral) or number < 1:
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


def flatten(x: PyTree) -> Array:
  """Inputs, any pytree, as real vectors f[B, D]: what a gate reads unless it is a module of the user's."""
  flat = [jnp.reshape(leaf, (jnp.shape(leaf)[0], -1)).astype(arrays.real_dtype()) for leaf in jax.tree.leaves(x)]
  return jnp.concatenate(flat, axis=1)


def logits_of(gate: Any, width: int, name: str, dense: nn.Module | None = None) -> Module:
  """A module of inputs -> logits f[B, width] in float32: a linear map of the flattened inputs, or the user's gate."""
  module = as_module(dense or nn.Dense(width) if gate is None else gate, name)
  read = flatten if gate is None else lambda x: x

  def apply(params, state, x, *, train, key):
    outputs, state = module.apply(params, state, read(x), train=train, key=key)
    expected = (jnp.shape(jax.tree.leaves(x)[0])[0], width)
    if jax.tree.map(jnp.shape, outputs) != expected:
      raise InputError(f'{name}: found outputs {describe(outputs)}, expected logits f{list(expected)}, one per expert.')
    return outputs.astype(arrays.real_dtype()), state

  return Module(lambda key, x: module.init(key, read(x)), apply)


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


class Run:
  """Parts by their path 'level1/shared': initialised where they are met (`init=True`), or applied.

  Attributes:
    params, state: nested dictionaries; after a pass, `state` is the new one.
  """

  def __init__(self, params=None, state=None, *, key, train=False, init=False):
    self.params = {} if init else params
    self.state = {} if init else jax.tree.map(lambda x: x, state)  # new dictionaries, the same leaves
    self.key, self.train, self.init = key, train, init

  def __call__(self, path: str, part: Module | Experts, x: PyTree, *, label: str, **offered) -> PyTree:
    """The outputs of a part; None after the initialisation of a head, whose outputs nobody reads."""
    *above, last = path.split('/')
    params, state = self.params, self.state
    for name in above:
      params, state = (tree.setdefault(name, {}) if self.init else tree[name] for tree in (params, state))
    key = arrays.name_key(self.key, path)
    if not self.init:
      outputs, state[last] = part.apply(params[last], state[last], x, train=self.train, key=key, **offered)
      return outputs
    with explained(label, x):
      params[last], state[last] = part.init(key, x, **offered)
      return None if path == 'head' else part.apply(params[last], state[last], x, train=False, key=None)[0]


def make_model(
  heads: Mapping[str, Module],
  trunk_pass: Callable[..., PyTree],
  head_pass: Callable[..., PyTree],
  penalties: tuple[Penalty, ...] = (),
) -> Model:
  """A `Model` from `trunk_pass(run, inputs, tasks) -> features` and `head_pass(run, task, features, inputs)`."""

  def init(key, inputs):
    missing = sorted(set(inputs) - set(heads))
    if missing or not inputs:
      raise InputError(f'heads: found {sorted(heads)}, inputs are for {sorted(inputs)}: no head for {missing}.')
    run = Run(key=arrays.name_key(key, 'shared'), init=True)
    shared, params, state = None, {}, {}
    features = {}  # by the identity of the inputs, as in `hard`: one array goes through the trunk once
    for task, x in inputs.items():
      same = tuple(id(leaf) for leaf in jax.tree.leaves(x))
      if same not in features:
        with explained(f'the experts (inputs of {task!r})', x):
          features[same] = trunk_pass(run if shared is None else Run(*shared, key=None), x, tuple(inputs)), x
      shared = run.params, run.state
      own = Run(key=arrays.name_key(key, task), init=True)
      head_pass(own, task, features[same][0], x)
      params[task], state[task] = own.params, own.state
    return {'shared': shared[0], 'tasks': params}, {'shared': shared[1], 'tasks': state}

  def trunk(params, state, inputs, *, tasks, train, key):
    run = Run(params, state, train=train, key=key)
    return trunk_pass(run, inputs, tasks), run.state

  def head(params, state, features, *, inputs=None, task, train, key):
    if inputs is None:
      raise InputError(f"head of task {task!r}: inputs is None, expected the task's inputs, which its gate reads.")
    run = Run(params, state, train=train, key=key)
    return head_pass(run, task, features, inputs), run.state

  return Model(init, trunk, head, None, penalties)


def one_level(
  shared: Experts,
  own: Mapping[str, Experts] | None,
  heads: Mapping[str, Module],
  gates: Mapping[str, Module],
  name: str,
  penalties: tuple[Penalty, ...] = (),
) -> Model:
  """Shared experts in the trunk, features f[B, E, ...]; in every task a gate, perhaps own experts, and a head."""

  def trunk_pass(run, x, tasks):
    return run('experts', shared, x, label=name)

  def head_pass(run, task, features, x):
    if own is not None:
      mine = run('experts', own[task], x, label=f'own experts of {task!r}')
      features = join({f'own experts of {task!r}': mine, name: features})
    weights = run('gate', gates[task], x, label=f'gate of {task!r}')
    return run('head', heads[task], mix(weights, features), inputs=x, label=f'heads[{task!r}]')

  return make_model(heads, trunk_pass, head_pass, penalties)


def positive(name: str, value: Any) -> float:
  """A number > 0, or an InputError."""
  if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
    raise InputError(f'{name}: found {value!r}, expected a number > 0.')
  return float(value)
