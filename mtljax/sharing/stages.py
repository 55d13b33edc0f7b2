"""A trunk cut into stages, modules made of modules, and one stream of stages per task side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model, PyTree
from mtljax.sharing import scopes
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, as_module, by_task, describe, explained, named_keywords


class Stages(NamedTuple):
  """A trunk as a chain of modules.

  Attributes:
    modules: name -> module, in the order in which they run.
    cuts: names of the stages after which an architecture acts, in that order too.
  """

  modules: Mapping[str, Module]
  cuts: tuple[str, ...]


def as_stages(trunk: Any, cuts: Sequence[str | int] | None = None, name: str = 'stages') -> Stages:
  """What the user gave as the argument `name`, as named stages: f = f_J ∘ ... ∘ f_1.

  Args:
    trunk: a trunk with the attribute `stages`, {name: module} in order, as those of `mtljax.trunks` have; such a
      dictionary; or a list of modules (linen, nnx, `(init, apply)`), whose names are '0', '1', .... A tuple of two
      functions is one module `(init, apply)`, so a list is the safer of the two.
    cuts: stages after which the architecture acts, by name or position, in any order; None is after every one.
    name: the argument, for errors.

  Returns:
    The stages as `Module`s.

  Raises:
    InputError: a trunk without stages, a stage that is no module, a cut point that the trunk does not have or that is
      given twice.

  >>> from mtljax import trunks
  >>> as_stages(trunks.LeNet((16, 32)), cuts=('conv_1',)).cuts
  ('conv_1',)
  >>> list(as_stages(trunks.MLP((64, 64))).modules)
  ['layer_0', 'layer_1']
  """
  parts = getattr(trunk, 'stages', trunk)
  if isinstance(parts, (list, tuple)) and not _is_pair(parts):
    parts = {str(index): part for index, part in enumerate(parts)}
  if not isinstance(parts, Mapping) or not parts:
    found = ' '.join(repr(trunk).split())  # linen modules print over many lines
    raise InputError(
      f'{name}: found {found[:80]}, expected a list of modules, a dictionary {{name: module}} or a trunk with the '
      'attribute `stages`.'
    )
  wrong = [part for part in parts if not isinstance(part, str) or not part or '/' in part]
  if wrong:
    raise InputError(f'{name}: found the names {wrong}, expected non-empty strings without "/".')
  modules = {part: as_module(module, f'{name}[{part!r}]') for part, module in parts.items()}
  return Stages(modules, _cuts(cuts, tuple(modules)))


def _cuts(cuts, names):
  if cuts is None:
    return names
  allowed = f'some of {list(names)}, or their positions 0 to {len(names) - 1}'
  if isinstance(cuts, str) or not isinstance(cuts, Sequence) or not cuts:
    raise InputError(f'cuts: found {cuts!r}, expected a sequence with {allowed}.')
  found = set()
  for cut in cuts:
    position = isinstance(cut, int) and not isinstance(cut, bool)
    if not (0 <= cut < len(names) if position else isinstance(cut, str) and cut in names):
      raise InputError(f'cuts: found {cut!r}, which the trunk does not have, expected {allowed}.')
    name = names[cut] if position else cut
    if name in found:
      raise InputError(f'cuts: found {name!r} twice in {cuts!r}, expected every stage once.')
    found.add(name)
  return tuple(part for part in names if part in found)


def _is_pair(parts) -> bool:
  two = isinstance(parts, tuple) and len(parts) == 2
  return two and all(callable(part) and not isinstance(part, nn.Module) for part in parts)


def composed(walk: Callable) -> Module:
  """A module made of modules: `walk` says once what initialising and applying do.

  Args:
    walk: `(call, *args) -> outputs`, which runs a part as `call(path, module, *xs, **offered)`; `path`, a tuple of
      strings, is where the part's parameters and state lie and what its key is drawn from. It may name the keywords
      `inputs`, which heads are offered, and `tasks`, which trunks are.

  Returns:
    A `Module`.
  """

  def offered_to_walk(args, inputs, tasks):
    return named_keywords(walk, 1 + len(args), {'inputs': inputs, 'tasks': tasks})

  def init(key, *args, inputs=None, tasks=()):
    params, state = {}, {}

    def call(path, module, *xs, **offered):
      with explained('/'.join(path), *xs):
        own_params, own_state = module.init(arrays.name_key(key, '/'.join(path)), *xs, **offered)
        outputs, _ = module.apply(own_params, own_state, *xs, train=False, key=None, **offered)
      _put(params, path, own_params)
      _put(state, path, own_state)
      return outputs

    walk(call, *args, **offered_to_walk(args, inputs, tasks))
    return params, state

  def apply(params, state, *args, train, key, inputs=None, tasks=()):
    new = {}

    def call(path, module, *xs, **offered):
      own_key = arrays.name_key(key, '/'.join(path))
      with scopes.part('/'.join(path), module):
        outputs, own = module.apply(_at(params, path), _at(state, path), *xs, train=train, key=own_key, **offered)
      _put(new, path, own)
      return outputs

    outputs = walk(call, *args, **offered_to_walk(args, inputs, tasks))
    return outputs, new

  return Module(init, apply)


class Chained(Module):
  """A module that runs stages one after another, and has them as its attribute `stages`."""

  stages: Mapping[str, Module]


def chained(trunk: Any) -> Module:
  """Stages as one trunk for every architecture: `hard` runs it whole, others cut it between its stages.

  Args:
    trunk: a trunk with stages, a list or a dictionary of modules, see `as_stages`; `ResNet.blocks`, of which every
      residual block is a stage.

  Returns:
    A `Module` with the parameters {stage: ...} and the attribute `stages`.

  Raises:
    InputError: as `as_stages`.

  >>> from mtljax import trunks
  >>> list(chained(trunks.ResNet(depths=(2,), width=8).blocks).stages)
  ['stem', 'stage1_block0', 'stage1_block1', 'pool']
  """
  modules = as_stages(trunk, name='trunk').modules

  def walk(call, x):
    for stage, module in modules.items():
      x = call((stage,), module, x)
    return x

  chain = Chained(*composed(walk))
  chain.stages = modules
  return chain


def streams(
  stages: Stages,
  heads: Mapping[str, Any],
  unit: Module,
  *,
  readout: Module | None = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """One stream of stages per task, x_t <- f_j^t(x_t), mixed by a unit after every cut: {x_t} <- u_j({x_t}).

  The streams are tied by the units, so any task's loss reaches all of them: they are in `params['shared']`, as
  `streams/<task>/<stage>` and `units/<cut>`, and so are they when a model is made for a subset of the tasks, whose
  numbers are then the same. Every stream runs on what the trunk is given, and head t reads z_t: with one input
  everything is computed once, in a multi-input batch once for every task's own inputs. (A stream's BatchNorm sees the
  inputs of all tasks then.)

  Args:
    stages: of every stream, drawn anew for each.
    heads: {task: module}.
    unit: {task: f[B, ..., C]} -> the same; of sequences {'x', 'mask'} it gets what 'x' holds.
    readout: {task: [outputs of every stage that is a cut or the last]} -> {task: z_t}; None takes the last.
    stems: as in `hard`.

  Returns:
    A `Model`.
  """
  heads = by_task(heads, 'heads')
  last = list(stages.modules)[-1]

  def walk(call, x):
    xs = dict.fromkeys(sorted(heads), x)
    layers = {task: [] for task in xs}
    for stage, module in stages.modules.items():
      xs = {task: call(('streams', task, stage), module, x) for task, x in xs.items()}
      inner, outer = {}, {}  # units mix arrays, and the mask of a sequence stays beside its own
      for task, x in xs.items():
        inner[task], outer[task] = array_of(x)
      if stage in stages.cuts:
        inner = call(('units', stage), unit, inner)
      if stage in stages.cuts or stage == last:
        layers = {task: [*layers[task], x] for task, x in inner.items()}
      xs = {task: outer[task](x) for task, x in inner.items()}
    if readout is None:
      return xs
    return {task: outer[task](x) for task, x in call(('readout',), readout, layers).items()}

  return hard(composed(walk), {task: reading(head, lambda z, t=task: z[t]) for task, head in heads.items()}, stems)


def array_of(x: PyTree) -> tuple[PyTree, Callable]:
  """The array that an architecture mixes, and a function that puts another in its place.

  It is x itself, or, of a sequence {'x': f[B, N, C], 'mask': bool[B, N]}, what 'x' holds.

  >>> x, put = array_of({'x': 3, 'mask': True})
  >>> put(x + 1)
  {'x': 4, 'mask': True}
  """
  if isinstance(x, Mapping) and 'x' in x:
    return x['x'], lambda y: {**x, 'x': y}
  return x, lambda y: y


def reading(head: Module, read: Callable) -> Module:
  """A head that gets `read(features)` instead of the features."""

  def init(key, features, *, inputs=None):
    return head.init(key, read(features), inputs=inputs)

  def apply(params, state, features, *, train, key, inputs=None):
    return head.apply(params, state, read(features), train=train, key=key, inputs=inputs)

  return Module(init, apply)


def no_features(handed_on: Mapping[str, Any]) -> dict[str, Any]:
  """What a trunk hands on that is not features of the batch only, such that `at='features'` refuses it.

  Parameters that happen to have B rows would pass for features of a batch: a scalar never does.
  """
  return {**handed_on, 'scalar': jnp.zeros(())}


def near_identity(size: int, own: float) -> np.ndarray:
  """f[size, size], `own` on the diagonal and the rest of 1 spread over the others: rows sum to one.

  >>> near_identity(2, 0.75).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """
  others = (1 - own) / max(size - 1, 1)
  return np.where(np.eye(size, dtype=bool), own if size > 1 else 1.0, others)


def check_fraction(argument: str, value) -> None:
  """Raises unless `value` is a number from 0 to 1."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise InputError(f'{argument}: found {value!r}, expected a number from 0 to 1.')


def check_flag(argument: str, value) -> None:
  """Raises unless `value` is True or False: a string from a command line would count as True."""
  if not isinstance(value, bool):
    raise InputError(f'{argument}: found {value!r}, expected True or False.')


def stack_streams(xs: Mapping[str, Array]) -> Array:
  """{task: f[B, ..., C]} -> f[T, B, ..., C], tasks in alphabetical order."""
  for task, x in xs.items():
    if not hasattr(x, 'shape') or x.ndim < 2:
      raise InputError(f'stages: the stream of {task!r} is {describe(x)} at a cut, expected one array [B, ..., C].')
  return jnp.stack([xs[task] for task in sorted(xs)])


def unstack_streams(xs: Mapping[str, Array], mixed: Array) -> dict[str, Array]:
  """f[T, B, ..., C] -> {task: f[B, ..., C]}; `xs` has the names."""
  return {task: mixed[index] for index, task in enumerate(sorted(xs))}


def _put(tree, path, value):
  for part in path[:-1]:
    tree = tree.setdefault(part, {})
  tree[path[-1]] = value


def _at(tree, path):
  for part in path:
    tree = tree[part]
  return tree
