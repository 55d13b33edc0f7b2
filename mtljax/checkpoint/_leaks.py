"""What orbax asks tensorstore for in a save and is never freed, and how it is told without.

Tensorstore (0.1.86, the newest) keeps a reference to every key and value of an object that it hands to Python as JSON:
python/tensorstore/json_type_caster.cc gives `PyDict_SetItem` references that it does not take. Orbax asks for such
objects twice in a save, to report how many bytes were written, and once for every leaf, for what its folder is called:
with 24 leaves 33 kB in every save.
"""

import ast
import functools
import sys


def keeps() -> bool:
  """Whether this tensorstore does so."""
  import tensorstore

  path = tensorstore.KvStore.Spec({'driver': 'memory', 'path': 'of its own/'}).to_json()['path']
  return sys.getrefcount(path) > 2  # this name and the argument


@functools.cache
def avoid() -> None:
  """Has orbax report no bytes, and tensorstore describe folders as text, where it would keep what it says.

  Not folders with letters beyond ASCII, whose text is wrong: of these it still keeps 0.3 kB for every leaf.
  """
  if not keeps():
    return
  import tensorstore
  from orbax.checkpoint._src.serialization import tensorstore_utils

  to_json = tensorstore.KvStore.Spec.to_json

  def from_text(spec, *args, **kwargs):
    text = repr(spec)  # KvStore.Spec({...})
    if args or kwargs or '\\' in text:
      return to_json(spec, *args, **kwargs)
    return ast.literal_eval(text.partition('(')[2][:-1])

  tensorstore.KvStore.Spec.to_json = from_text
  tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0
