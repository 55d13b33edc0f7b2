"""Balancers from text, for the command line: literals only, nothing is evaluated."""

import ast
import difflib
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from mtljax.base import Balancer, InputError


def parse(text: str, **context: Any) -> Balancer:
  """A balancer from its name or a call, such as 'cagrad(c=0.2)' or 'ema(upgrad(), decay=0.9)'.

  Args:
    text: a name of `METHODS`, or a call of one whose arguments are Python literals or again such text.
    **context: values for required parameters that the text does not give (`steps_per_epoch` of `dwa`).

  Returns:
    The balancer.

  Raises:
    InputError: unknown method or argument, a required argument that nobody gives, text that is no such call.

  >>> parse('cagrad(c=0.2)').level
  'gramian'
  """
  try:
    node = ast.parse(text.strip(), mode='eval').body
  except (SyntaxError, ValueError, AttributeError):
    raise InputError(f'balancer: found {text!r}, expected a name or a call such as "cagrad(c=0.2)".') from None
  return _build(node, text, context)


def parse_names(text: str, tasks: int, at: str = 'params', **context: Any) -> tuple[list[str], list[str]]:
  """Balancers in a list separated by commas; 'all' stands for every method that can be called by its name alone.

  Args:
    text: names and calls as for `parse`, and 'all'.
    tasks: T; a method that is not defined for so many is not among 'all'.
    at: with 'features', 'all' has methods of level losses and gramian only.
    **context: as for `parse`.

  Returns:
    What `parse` takes, and a sentence for each method that 'all' left out.

  >>> parse_names('equal, cagrad(c=0.2), ema(mgda(), decay=0.5)', 2)[0]
  ['equal', 'cagrad(c=0.2)', 'ema(mgda(), decay=0.5)']
  """
  from mtljax.balancing import METHODS, aggregate

  parts, depth, others = [''], 0, []
  for letter in text:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and depth == 0:
      parts.append('')
    else:
      parts[-1] += letter
  names = [part.strip() for part in parts if part.strip()]
  if 'all' not in names:
    return names, others
  fits = []
  for name in METHODS:
    try:
      balancer = parse(name, **context)
      if at == 'features' and balancer.level not in ('losses', 'gramian'):
        raise InputError(f"{name}: found level {balancer.level!r}, expected 'losses' or 'gramian' at the features.")
      jax.eval_shape(lambda J, b=balancer: aggregate(b, J).direction, jax.ShapeDtypeStruct((tasks, 3), jnp.float32))
      fits.append(name)
    except InputError as error:
      others.append(str(error))
  where = names.index('all')
  return list(dict.fromkeys([*names[:where], *fits, *names[where + 1 :]])), others


def _build(node: ast.expr, text: str, context: dict[str, Any]) -> Balancer:
  from mtljax.balancing import METHODS  # the registry imports this module

  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  if not isinstance(call.func, ast.Name):
    raise InputError(f'balancer: found {text!r}, expected a name or a call such as "cagrad(c=0.2)".')
  name = call.func.id
  if name not in METHODS:
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise InputError(f'balancer: found unknown method {name!r}, expected one of {", ".join(METHODS)}.{hint}')
  parameters = inspect.signature(METHODS[name]).parameters
  positional = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
  if len(call.args) > len(positional):
    raise InputError(f'{name}: found {len(call.args)} positional arguments, expected at most {len(positional)}.')
  arguments = [*zip(positional, call.args), *((k.arg, k.value) for k in call.keywords)]
  values = {}
  for argument, value in arguments:
    if argument not in parameters:
      accepted = ', '.join(parameters) or 'none'
      raise InputError(f'{name}: found unknown argument {argument!r}, expected one of: {accepted}.')
    if argument in values:
      raise InputError(f'{name}: found argument {argument!r} twice, expected it once.')
    values[argument] = _value(value, name, argument, text, context)
  for parameter in parameters.values():
    if parameter.default is parameter.empty and parameter.name not in values:
      if parameter.name not in context:
        raise InputError(f'{name}: argument {parameter.name!r} is missing, expected {name}({parameter.name}=...).')
      values[parameter.name] = context[parameter.name]
  return METHODS[name](**values)


def _value(node: ast.expr, name: str, argument: str, text: str, context: dict[str, Any]) -> Any:
  if isinstance(node, ast.Call | ast.Name):
    return _build(node, text, context)
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    found = ast.unparse(node)
    raise InputError(f'{name}: argument {argument!r} is {found}, expected a literal or a balancer.') from None
