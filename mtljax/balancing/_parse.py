"""Balancers from text, for the command line."""

from typing import Any

import jax
import jax.numpy as jnp

from mtljax.base import Balancer, InputError
from mtljax.calls import parse_call, split_calls


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
  from mtljax.balancing import METHODS  # the registry imports this module

  name, values = parse_call(
    text, METHODS, 'balancer', 'cagrad(c=0.2)', context=context, nested=lambda name, values: METHODS[name](**values)
  )
  return METHODS[name](**values)


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

  names, others = split_calls(text), []
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
