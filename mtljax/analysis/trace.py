"""A model's forward pass as a flat list of operations: what costs and figures are read from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import InputError, Model, PyTree
from mtljax.sharing import scopes

CALLS = {'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call'}
CALLS |= {'custom_vjp_call', 'custom_vjp_call_jaxpr', 'custom_lin'}


class Op(NamedTuple):
  """An operation; values are numbered, None stands for a constant.

  Attributes:
    equation: of the jaxpr, for shapes and parameters.
    inputs, outputs: numbers of its values.
    task: the task whose head or stem it belongs to, or None.
    parts: (name, copies) of the parts that it belongs to, outermost first.
    times: how often it runs, in loops that have parts inside.
    carried: numbers of what such loops hand from one turn to the next: who needs one of them needs all.
  """

  equation: Any
  inputs: tuple[int | None, ...]
  outputs: tuple[int, ...]
  task: str | None
  parts: tuple[tuple[str, int], ...]
  times: int = 1
  carried: frozenset[int] = frozenset()


class Leaf(NamedTuple):
  """An argument of the forward pass: `kind` is 'inputs', 'params' or 'state', `path` where it is in that tree."""

  kind: str
  path: tuple[str, ...]
  size: int
  floating: bool


class Trace(NamedTuple):
  """The forward pass of all tasks on one example, without training.

  Attributes:
    leaves: {number of a value: argument}.
    ops: in the order in which they run.
    outputs: {task: numbers of the values of its outputs}.
    shared_input: whether one input is read by all tasks.
  """

  leaves: dict[int, Leaf]
  ops: list[Op]
  outputs: dict[str, tuple[int | None, ...]]
  shared_input: bool


def trace(model: Model, inputs: Mapping[str, PyTree]) -> Trace:
  """Traces a model abstractly: nothing is computed.

  Args:
    model: of any architecture.
    inputs: {task: inputs f[B, ...]} of all its tasks, the same arrays for all if they read one input; only shapes and
      dtypes are used, and one example of them.

  Raises:
    InputError: inputs that are no dictionary; whatever the model's init raises.
  """
  if not isinstance(inputs, Mapping) or not inputs:
    raise InputError(f'inputs: found {type(inputs).__name__}, expected a non-empty dictionary {{task: inputs}}.')
  names = tuple(inputs)
  ids = {tuple(map(id, jax.tree.leaves(x))) for x in inputs.values()}
  single = len(ids) == 1 and model.stem is None
  examples = {task: jax.tree.map(_one_example, x) for task, x in inputs.items()}
  if single:  # one tracer, which the init recognises
    first = next(iter(examples.values()))
    init = lambda key, x: model.init(key, dict.fromkeys(inputs, x))
    variables = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), first)
    given = first
  else:
    variables = jax.eval_shape(lambda key, x: model.init(key, x), jax.eval_shape(lambda: jax.random.key(0)), examples)
    given = examples
  params, state = variables
  arguments = {'inputs': given, 'params': params, 'state': state}
  with scopes.marked():
    closed, shapes = jax.make_jaxpr(lambda a: _forward(model, names, single, a), return_shape=True)(arguments)

  flat = _Flat()
  numbers = [flat.new() for _ in closed.jaxpr.invars]
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(arguments)]
  leaves = {}
  for number, path, var in zip(numbers, paths, closed.jaxpr.invars, strict=True):
    kind, *rest = (arrays.path_label((entry,)) for entry in path)  # names may have slashes
    leaves[number] = Leaf(kind, tuple(rest), int(np.prod(var.aval.shape)), arrays.is_float(var.aval))
  outputs = flat.run(closed.jaxpr, numbers, '')
  by_task, start = {}, 0
  for task in names:
    stop = start + len(jax.tree.leaves(shapes[task]))
    by_task[task], start = tuple(outputs[start:stop]), stop
  return Trace(leaves, flat.ops, by_task, single)


def live(traced: Trace, tasks: Sequence[str]) -> tuple[list[Op], set[int]]:
  """The operations that the outputs of some tasks depend on, and the numbers of the values that they read."""
  needed = {value for task in tasks for value in traced.outputs[task] if value is not None}
  ops = []
  for op in reversed(traced.ops):
    if not needed.isdisjoint(op.carried):
      needed |= op.carried
    if not needed.isdisjoint(op.outputs):
      needed.update(value for value in op.inputs if value is not None)
      ops.append(op)
  return ops[::-1], needed


def inner(equation) -> list:
  """The jaxprs inside an equation."""
  found = []
  for value in equation.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        found.append(part)
  return found


def _one_example(x):
  shape = (1, *jnp.shape(x)[1:]) if jnp.ndim(x) else ()
  return jax.ShapeDtypeStruct(shape, x.dtype if hasattr(x, 'dtype') else jnp.result_type(x))


def _forward(model, names, single, arguments):
  """{task: outputs}, tasks in the order of `names`: a dictionary would come back sorted, so its leaves are listed."""
  params, state, given = arguments['params'], arguments['state'], arguments['inputs']
  mode, outputs = dict(train=False, key=None), []
  if single:
    shared, _ = model.trunk(params['shared'], state['shared'], given, tasks=names, **mode)
  for task in names:
    x = given if single else given[task]
    own, features = (params['tasks'][task], state['tasks'][task]), None
    if not single:
      z = x
      if model.stem is not None:
        with scopes.part(f'@{task}'):
          z, _ = model.stem(*own, x, task=task, **mode)
      features, _ = model.trunk(params['shared'], state['shared'], z, tasks=(task,), **mode)
    with scopes.part(f'@{task}'):
      y, _ = model.head(*own, shared if single else features, inputs=x, task=task, **mode)
    outputs.append(y)
  return _Outputs(names, outputs)


@jax.tree_util.register_pytree_node_class
class _Outputs:
  """Outputs of tasks in their order."""

  def __init__(self, names, values):
    self.names, self.values = names, values

  def __getitem__(self, task):
    return self.values[self.names.index(task)]

  def tree_flatten(self):
    return self.values, self.names

  @classmethod
  def tree_unflatten(cls, names, values):
    return cls(names, list(values))


class _Flat:
  """Numbers values and lists operations, going into calls; into loops and branches only where parts are inside."""

  def __init__(self):
    self.ops, self.count = [], 0

  def new(self) -> int:
    self.count += 1
    return self.count

  def run(self, jaxpr, inputs, stack) -> list[int | None]:
    """Lists what is in `jaxpr`, called with `inputs` under the name `stack`, and returns its outputs."""
    numbers = dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda var: None if hasattr(var, 'val') else numbers.get(var)  # literals, constants that were closed over
    for equation in jaxpr.eqns:
      here = f'{stack}/{equation.source_info.name_stack}'
      given, name = [read(var) for var in equation.invars], equation.primitive.name
      bodies = inner(equation)
      if name in CALLS and len(bodies) >= 1:
        outputs = self.run(bodies[0], given[len(given) - len(bodies[0].invars) :], here)
      elif any(map(_has_parts, bodies)):
        skipped = {'cond': 1, 'while': equation.params.get('cond_nconsts', 0)}.get(name, 0)
        start = len(self.ops)
        outputs = self.run(bodies[-1], given[skipped:], here)  # of branches the last one
        if name in ('scan', 'while'):
          carried, times = frozenset(outputs[: equation.params.get('num_carry')]), equation.params.get('length', 1)
          self.ops[start:] = [
            op._replace(times=op.times * times, carried=op.carried | carried - {None}) for op in self.ops[start:]
          ]
        outputs = outputs if len(outputs) == len(equation.outvars) else [None] * len(equation.outvars)
      else:
        outputs = [self.new() for _ in equation.outvars]
        parts = scopes.parts_of(here)
        task = next((part[1:] for part, _ in parts if part.startswith('@')), None)
        parts = tuple(part for part in parts if not part[0].startswith('@'))
        self.ops.append(Op(equation, tuple(given), tuple(outputs), task, parts))
      numbers.update(zip(equation.outvars, outputs))
    return [read(var) for var in jaxpr.outvars]


def _has_parts(jaxpr) -> bool:
  return any(
    scopes.parts_of(str(equation.source_info.name_stack)) or any(map(_has_parts, inner(equation)))
    for equation in jaxpr.eqns
  )
