"""The leaves of a tree under their path labels."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.arrays import path_label
from mtljax.base import InputError, PyTree


def flatten(tree: PyTree) -> dict[str, jax.Array]:
  """{path label: leaf}."""
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  flat = {path_label(path): leaf for path, leaf in pairs}
  if len(flat) < len(pairs):
    raise InputError('checkpoint: two leaves of the state have the same path; names must not contain "/".')
  return flat


def describe(tree: PyTree) -> dict[str, list]:
  """{path label: [shape, dtype]}: what the manifest holds of a tree.

  >>> describe({'shared': {'w': jnp.ones((2, 3))}})
  {'shared/w': [[2, 3], 'float32']}
  """
  return {name: [list(jnp.shape(x)), str(getattr(x, 'dtype', jnp.result_type(x)))] for name, x in flatten(tree).items()}


def params_sha256(params: PyTree) -> str:
  """Digest of a tree: path, shape, dtype and bytes of every leaf, sorted by path. Same digest = same bits."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flatten(params).items()):
    value = np.asarray(raw(leaf))
    digest.update(f'{name} {value.shape} {value.dtype}\n'.encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()


def stored(leaf) -> bool:
  """Orbax refuses arrays of size zero."""
  return 0 not in jnp.shape(leaf)


def raw(leaf):
  return jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else leaf
