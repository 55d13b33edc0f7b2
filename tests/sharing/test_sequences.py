"""Architectures over a trunk for sequences with padding: its mask stays beside what they mix."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import forward, perturbed

import mtljax as mtl
from mtljax import sharing
from mtljax.base import InputError

MASK = jnp.arange(6)[None] < jnp.array([[4], [6]])
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 11, (2, 6)))
TRUNK = mtl.trunks.Transformer(features=8, depth=1, heads=2, vocabulary=11)
# One of every kind of mixing by default; the others with -m full. A gate that reads tokens is the user's.
DRAWN = ('adashare', 'cross_stitch', 'knowledge', 'learning_to_branch', 'mtan', 'residual_adapters', 'sluice')
NAMES = [name if name in DRAWN else pytest.param(name, marks=pytest.mark.full) for name in sharing.ARCHITECTURES]


@pytest.mark.parametrize('name', NAMES)
def test_padding_has_no_influence(name):
  heads = {'tags': mtl.heads.tagging(3), 'class': mtl.heads.pooled(nn.Dense(2))}
  model = sharing.parse(name)(TRUNK, heads)
  inputs = lambda padding: {'x': jnp.where(MASK, TOKENS, padding), 'mask': MASK}
  if name in ('cgc', 'dselect_k', 'mmoe', 'ple'):
    pytest.skip('its gates read the flattened inputs, padding too, unless they are modules of the user')
  params, state = model.init(jax.random.key(0), dict.fromkeys(heads, inputs(1)))
  run = jax.jit(lambda params, x: forward(model, params, state, dict.fromkeys(heads, x))[0])
  params = perturbed(params)
  one, other = (run(params, inputs(padding)) for padding in (2, 7))
  assert one['tags'].shape == (2, 6, 3) and one['class'].shape == (2, 2)
  np.testing.assert_allclose(one['class'], other['class'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(*(jnp.where(MASK[..., None], y['tags'], 0) for y in (one, other)), rtol=1e-5, atol=1e-6)


def test_a_stream_that_is_no_array_and_no_sequence_is_named():
  split = lambda x: {'first': x[:, :1], 'rest': x[:, 1:]}
  model = sharing.cross_stitch([(lambda key, x: {}, lambda params, x: split(x))], {'a': nn.Dense(2), 'b': nn.Dense(2)})
  with pytest.raises(InputError, match=r"the stream of 'a' is \{first: .*\} at a cut, expected one array"):
    model.init(jax.random.key(0), dict.fromkeys('ab', jnp.ones((2, 3))))
