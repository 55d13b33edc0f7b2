"""Whatever a user calls a module, as one pair of pure functions: linen, nnx, `(init, apply)` or a `Module`."""

import contextlib
import contextvars
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import errors as flax_errors

from mtljax import arrays
from mtljax.base import InputError, PyTree


class Module(NamedTuple):
  """A part of an architecture (trunk, head, stem, expert) as two pure functions.

  Attributes:
    init: `(key, *args) -> (params, state)`.
    apply: `(params, state, *args, train, key) -> (outputs, state)`; `key` may be None when not `train`. The state that
      comes back has the structure of the one that went in.

  Either may name further keywords that the architecture offers (heads: `inputs`, trunks: `tasks`); others are not
  passed.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[PyTree, PyTree]]


def as_module(x: Any, name: str) -> Module:
  """What the user gave as the argument `name`, as a `Module`.

  Args:
    x: a flax linen module; a function `rngs -> nnx.Module`, drawn from the key; an nnx module, which keeps its own
      values; a pair of pure functions `init(key, x) -> params` and `apply(params, x) -> y`, whose keywords `train` and
      `key` are optional; or a `Module`.
    name: the argument, for errors and warnings.

  Returns:
    A `Module` that takes, and drops where they are not named, the keywords that an architecture offers.

  Raises:
    InputError: `x` is none of these.
  """
  if isinstance(x, Module):
    return _from_module(x)
  if isinstance(x, nn.Module) and callable(x):
    return _from_linen(x, name)
  if isinstance(x, tuple) and len(x) == 2 and all(callable(part) and not _is_linen(part) for part in x):
    return _from_pair(*x)
  if callable(x) and not _is_linen(x):
    from mtljax.sharing import nnx_modules  # costs half a second, which only users of nnx should pay

    return nnx_modules.from_nnx(x, name)
  found = ' '.join(repr(x).split())  # linen modules print over many lines
  raise InputError(
    f'{name}: found {found[:80]}, expected a flax linen module (an instance), an nnx module, a function '
    'rngs -> nnx.Module, or a pair (init, apply) of functions.'
  )


def by_task(modules: Mapping[str, Any], name: str) -> dict[str, Module]:
  """{task: module} as `Module`s; raises an InputError on anything else."""
  if not isinstance(modules, Mapping) or not modules:
    raise InputError(f'{name}: found {modules!r}, expected a non-empty dictionary {{task: module}}.')
  for task in modules:
    if not isinstance(task, str) or not task or '/' in task:  # what `Task` takes
      raise InputError(f'{name}: found the task {task!r}, expected a non-empty string without "/".')
  return {task: as_module(module, f'{name}[{task!r}]') for task, module in modules.items()}


def named_keywords(function: Callable, positional: int, offered: Mapping[str, Any]) -> dict[str, Any]:
  """Those of the offered keywords that `function` names, apart from the ones its positional arguments fill."""
  kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  parameters = list(inspect.signature(function).parameters.values())
  by_position = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
  names = {p.name for p in parameters if p.kind in kinds} - set(by_position[:positional])
  return {name: value for name, value in offered.items() if name in names}


def mode_keywords(train: bool) -> dict[str, bool]:
  """The names under which flax modules are told whether they train."""
  return {'train': train, 'training': train, 'deterministic': not train, 'use_running_average': not train}


@contextlib.contextmanager
def explained(name: str, *args: PyTree) -> Iterator[None]:
  """While a part is initialised: an error of its own becomes an `InputError` that names the part and its input."""
  try:
    yield
  except InputError:
    raise
  except (TypeError, ValueError, AttributeError, IndexError, KeyError, flax_errors.FlaxError) as error:
    shapes = ', '.join(describe(x) for x in args)
    raise InputError(f'{name} cannot take {shapes}: {type(error).__name__}: {error}') from error


def describe(tree: PyTree) -> str:
  """Dtypes and shapes, for messages."""

  def text(x):
    return f'{x.dtype}{list(x.shape)}' if hasattr(x, 'dtype') and hasattr(x, 'shape') else repr(x)

  return str(jax.tree.map(text, tree)).replace("'", '')


# Parts that keep their own values note their name here while `keeps_own_values` traces an init: so no architecture has
# to pass the news on.
_KEPT: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar('mtljax_kept', default=None)


def note_own_values(name: str) -> None:
  """Said by a part whose init ignores the key."""
  if _KEPT.get() is not None:
    _KEPT.get().append(name)


def keeps_own_values(model, inputs: Mapping[str, PyTree]) -> tuple[str, ...]:
  """The parts of a model that are the same whatever the seed (nnx instances): a comparison over seeds refuses them.

  Args:
    model: an `mtljax.Model`.
    inputs: {task: inputs}, as for `model.init`; only shapes and dtypes are used.

  Returns:
    Names of the arguments, `()` when all is drawn from the key.
  """
  token = _KEPT.set([])
  try:
    jax.eval_shape(lambda key, x: model.init(key, x), jax.eval_shape(lambda: jax.random.key(0)), inputs)
    return tuple(sorted(set(_KEPT.get())))
  finally:
    _KEPT.reset(token)


def warn_local_batch_norm(name: str, module: str) -> None:
  """Said while tracing when a plain BatchNorm would see the rows of one device only."""
  warnings.warn(
    f"{name}: {module} normalises every device's part of the batch on its own, so the result depends on the number of "
    'devices; use mtljax.trunks.BatchNorm, which sees the whole batch.',
    UserWarning,
    stacklevel=3,
  )


def _is_linen(x) -> bool:
  return isinstance(x, nn.Module) or (isinstance(x, type) and issubclass(x, nn.Module))


def _from_module(x: Module) -> Module:
  def keywords(function, positional, offered):
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    # `**offered`, as here: it drops what it does not name itself
    every = inspect.Parameter.VAR_KEYWORD in kinds
    return offered if every else named_keywords(function, positional, offered)

  def init(key, *args, **offered):
    return x.init(key, *args, **keywords(x.init, 1 + len(args), offered))

  def apply(params, state, *args, train, key, **offered):
    return x.apply(params, state, *args, train=train, key=key, **keywords(x.apply, 2 + len(args), offered))

  return Module(init, apply)


def _from_pair(user_init: Callable, user_apply: Callable) -> Module:
  def init(key, *args, **offered):
    return user_init(key, *args, **named_keywords(user_init, 1 + len(args), offered)), {}

  def apply(params, state, *args, train, key, **offered):
    offered = {'train': train, 'key': key, **offered}
    return user_apply(params, *args, **named_keywords(user_apply, 1 + len(args), offered)), state

  return Module(init, apply)


def _from_linen(x: nn.Module, name: str) -> Module:
  # A mode that is a field of the module (nn.Dropout(0.5, deterministic=True)) was chosen by the user: not passed again.
  chosen = [mode for mode in ('deterministic', 'use_running_average') if getattr(x, mode, None) is not None]

  def keywords(args, train, offered):
    modes = {mode: value for mode, value in mode_keywords(train).items() if mode not in chosen}
    return named_keywords(x.__call__, len(args), {**modes, **offered})

  def rngs(key):
    # 'params' is what linen falls back to for a stream of another name.
    return {} if key is None else {stream: arrays.name_key(key, stream) for stream in ('params', 'dropout')}

  def init(key, *args, **offered):
    variables = dict(nn.meta.unbox(x.init(rngs(key), *args, **keywords(args, False, offered))))
    params = variables.pop('params', {})
    return params, variables

  def apply(params, state, *args, train, key, **offered):
    # Only collections that init made are kept: a sown value does not change the structure of the state.
    mutable = list(state) if train else False
    with nn.intercept_methods(_batch_norm_check(name)) if train and arrays.axis() else contextlib.nullcontext():
      result = x.apply(
        {'params': params, **state}, *args, rngs=rngs(key), mutable=mutable, **keywords(args, train, offered)
      )
    if mutable is False:
      return result, state
    outputs, changed = result
    return outputs, {**state, **changed}

  return Module(init, apply)


def _batch_norm_check(name: str):
  def interceptor(method, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == '__call__' and module.axis_name is None:
      frozen = args[1] if len(args) > 1 else kwargs.get('use_running_average')
      if not (module.use_running_average if frozen is None else frozen):
        warn_local_batch_norm(name, f'nn.BatchNorm {"/".join(module.path)!r}')
    return method(*args, **kwargs)

  return interceptor
