"""Architectures from text, over one trunk: what a comparison of architectures needs."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mtljax.base import InputError, Model
from mtljax.calls import parse_call
from mtljax.sharing.cgc import cgc
from mtljax.sharing.ple import ple
from mtljax.sharing.stages import as_stages


def parse(text: str) -> Callable[[Any, Mapping[str, Any]], Model]:
  """A function `(trunk, heads) -> Model` from the name of an architecture or a call, such as 'mmoe(num_experts=3)'.

  One trunk makes them all: it is the expert of `mmoe`, `cgc` and `dselect_k`, its stages are the levels of `ple` and
  the streams of `cross_stitch`. So a comparison varies the architecture and nothing else.

  Args:
    text: a name of `ARCHITECTURES`, or a call of one whose arguments are Python literals.

  Returns:
    `(trunk, heads, **more) -> Model`; `more` are further arguments that no literal can say (`stems`).

  Raises:
    InputError: unknown architecture or argument, a required argument that is missing, text that is no such call.

  >>> import flax.linen as nn
  >>> from mtljax import trunks
  >>> heads = {'digit': nn.Dense(10), 'parity': nn.Dense(2)}
  >>> parse('cross_stitch(own=0.8)')(trunks.MLP((8, 8)), heads).stem is None
  True
  """
  from mtljax.sharing import ARCHITECTURES  # the registry imports this module

  registry = {**ARCHITECTURES, **OVER_A_TRUNK}
  name = text.partition('(')[0].strip() if isinstance(text, str) else ''
  parts = tuple(inspect.signature(registry[name]).parameters)[:2] if name in registry else ()
  name, values = parse_call(text, registry, 'architecture', 'mmoe(num_experts=3)', kind='name', later=parts)

  @functools.wraps(registry[name])
  def build(trunk, heads, **more):
    twice = sorted(set(more) & set(values))
    if twice:
      raise InputError(f'{name}: found argument {twice[0]!r} twice, in {text!r} and beside it, expected it once.')
    return registry[name](trunk, heads, **values, **more)

  return build


def _cgc(trunk, heads, *, num_shared: int = 2, num_own: int = 1, stems=None):
  """Shared and own experts are copies of the trunk."""
  return cgc(trunk, trunk, heads, num_shared, num_own, stems=stems)


def _ple(trunk, heads, *, num_shared: int = 1, num_own: int = 1, stems=None):
  """Every stage of the trunk is a level: its copies are the level's experts, shared and own."""
  levels = list(as_stages(trunk, name='trunk').modules.values())
  return ple(levels, levels, heads, num_shared, num_own, stems=stems)


# Those whose arguments are not a trunk and heads: how one trunk makes them.
OVER_A_TRUNK: dict[str, Callable] = {'cgc': _cgc, 'ple': _ple}
