"""Calls from text, for the command line: literals only, nothing is evaluated."""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mtljax.base import InputError


def parse_call(
  text: str,
  registry: Mapping[str, Callable],
  what: str,
  example: str,
  *,
  kind: str = 'method',
  context: Mapping[str, Any] | None = None,
  later: tuple[str, ...] = (),
  nested: Callable[[str, dict[str, Any]], Any] | None = None,
) -> tuple[str, dict[str, Any]]:
  """The name and the arguments of a call such as 'cagrad(c=0.2)', checked against the signature in the registry.

  Args:
    text: a name of the registry, or a call of one whose arguments are Python literals.
    registry: {name: function}.
    what, example, kind: for errors: the argument, a text that would do, what a name of the registry is.
    context: values for required parameters that the text does not give.
    later: parameters that the caller fills, so that the text may not.
    nested: `(name, arguments) -> value` of an argument that is a call again; None, such an argument is an error.

  Returns:
    The name, and {argument: value}.

  Raises:
    InputError: unknown name or argument, a required argument that nobody gives, text that is no such call.

  >>> parse_call('power(3, mod=5)', {'power': lambda base, exponent=2, *, mod=None: None}, 'call', 'power(2)')
  ('power', {'base': 3, 'mod': 5})
  """
  wrong = InputError(f'{what}: found {text!r}, expected a name or a call such as "{example}".')
  try:
    node = ast.parse(text.strip(), mode='eval').body
  except (SyntaxError, ValueError, AttributeError):
    raise wrong from None

  def call(node):
    node = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(node.func, ast.Name):
      raise wrong
    name = node.func.id
    if name not in registry:
      close = difflib.get_close_matches(name, registry, n=1)
      hint = f' Did you mean {close[0]!r}?' if close else ''
      raise InputError(f'{what}: found unknown {kind} {name!r}, expected one of {", ".join(registry)}.{hint}')
    parameters = {n: p for n, p in inspect.signature(registry[name]).parameters.items() if n not in later}
    return name, arguments(name, parameters, node)

  def arguments(name, parameters, node):
    positional = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if len(node.args) > len(positional):
      raise InputError(f'{name}: found {len(node.args)} positional arguments, expected at most {len(positional)}.')
    values = {}
    for argument, given in [*zip(positional, node.args), *((k.arg, k.value) for k in node.keywords)]:
      if argument not in parameters:
        accepted = ', '.join(parameters) or 'none'
        raise InputError(f'{name}: found unknown argument {argument!r}, expected one of: {accepted}.')
      if argument in values:
        raise InputError(f'{name}: found argument {argument!r} twice, expected it once.')
      values[argument] = value(given, name, argument)
    for parameter in parameters.values():
      if parameter.default is parameter.empty and parameter.name not in values:
        if parameter.name not in (context or {}):
          raise InputError(f'{name}: argument {parameter.name!r} is missing, expected {name}({parameter.name}=...).')
        values[parameter.name] = context[parameter.name]
    return values

  def value(node, name, argument):
    if nested is not None and isinstance(node, ast.Call | ast.Name):
      return nested(*call(node))
    try:
      return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
      expected = 'a literal' if nested is None else f'a literal or a {what}'
      raise InputError(f'{name}: argument {argument!r} is {ast.unparse(node)}, expected {expected}.') from None

  return call(node)


def split_calls(text: str) -> list[str]:
  """Names and calls at their commas, those within brackets and quotes left alone.

  >>> split_calls('equal, cagrad(c=0.2), tree(tree="(a, b)")')
  ['equal', 'cagrad(c=0.2)', 'tree(tree="(a, b)")']
  """
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and depth == 0 and not quote:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts if part.strip()]
