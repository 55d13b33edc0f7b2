"""Names of the parts of an architecture on its operations: profiles and HLO show them, `analysis` draws them.

A part is whatever an architecture calls as a module. Its operations are named 'trunk/streams/left/conv_0', so that a
trace says which part made which operation, whatever the part is inside.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterator
from typing import Any

import jax

# While an analysis traces, names are marked, so that they cannot be mistaken for those that flax gives its modules.
_MARKED: contextvars.ContextVar[bool] = contextvars.ContextVar('mtljax_marked', default=False)


def part(name: str, module: Any = None):
  """A context: the operations traced inside belong to the part `name`.

  Args:
    name: path within what runs the part, as 'streams/left/conv_0'.
    module: what runs; one that has a `count` is that many copies, run as one (experts).
  """
  count = getattr(module, 'count', 1)  # of a `Module`, a tuple, it is a method
  copies = count if isinstance(count, int) else 1
  return jax.named_scope(f'«{name}|{copies}»' if _MARKED.get() else name)


@contextlib.contextmanager
def marked() -> Iterator[None]:
  """While tracing inside, `parts_of` can read the parts."""
  token = _MARKED.set(True)
  try:
    yield
  finally:
    _MARKED.reset(token)


def parts_of(stack: str) -> tuple[tuple[str, int], ...]:
  """The parts on a name stack, outermost first, with their copies; flax's own names are left out.

  >>> parts_of('«trunk|1»/LeNet/vmap(«experts|4»/Dense_0)')
  (('trunk', 1), ('experts', 4))
  """
  return tuple((name, int(copies)) for name, copies in re.findall(r'«(.+?)\|(\d+)»', stack))
