"""Variables of a linen module drawn by numpy: compiling an init costs seconds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_variables(module: nn.Module, *args, seed: int = 0):
  """What `module.init(key, *args)` returns, every leaf positive or negative at random around 0.1."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape) + 0.1, leaf.dtype), shapes)
