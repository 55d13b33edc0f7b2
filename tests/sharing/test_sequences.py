"""Architectures over a trunk for sequences with padding: its mask stays beside what they mix."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import forward, perturbed

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing import _gates

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
    with pytest.raises(InputError, match=r'gates.*: found tokens int32\[2, 6\], expected a module'):
      model.init(jax.random.key(0), dict.fromkeys(heads, inputs(1)))
    return
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


EXPERTS = ('cgc', 'dselect_k', 'mmoe', 'ple')  # `ple` in two levels
FRAMES = trunks.Recurrent((5, 4))


@pytest.mark.parametrize('name', EXPERTS)
def test_gates_read_sequences_of_any_length(name):
  """The mean over places that count: no padding, no targets, and every task may have its own length."""
  heads = {'short': mtl.heads.pooled(nn.Dense(2)), 'long': mtl.heads.pooled(nn.Dense(3))}
  model = sharing.parse(name)(FRAMES, heads)
  draw = np.random.default_rng(0)
  real = {task: jnp.asarray(draw.normal(size=(2, n, 3)), jnp.float32) for task, n in (('short', 4), ('long', 6))}

  def inputs(padding):
    masks = {task: jnp.arange(x.shape[1])[None] < jnp.array([[2], [4]]) for task, x in real.items()}
    padded = lambda x, mask: jnp.where(mask[..., None], x, padding)
    return {
      t: {'x': padded(x, masks[t]), 'mask': masks[t], 'targets': jnp.full((2,), padding)} for t, x in real.items()
    }

  params, state = model.init(jax.random.key(0), inputs(0.0))
  params = perturbed(params)

  @jax.jit
  def run(x):
    shared, outputs = params['shared'], {}
    for task in heads:
      z, _ = model.trunk(shared, state['shared'], x[task], tasks=(task,), train=False, key=None)
      own = (params['tasks'][task], state['tasks'][task])
      outputs[task], _ = model.head(*own, z, inputs=x[task], task=task, train=False, key=None)
    return outputs

  one, other = run(inputs(1.0)), run(inputs(-3.0))
  assert {task: y.shape for task, y in one.items()} == {'short': (2, 2), 'long': (2, 3)}
  for task in heads:
    np.testing.assert_allclose(one[task], other[task], rtol=1e-5, atol=1e-6)


def test_a_gate_reads_the_mean_over_the_places_that_count():
  x = jnp.array([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[1.0, 1.0], [7.0, 7.0], [7.0, 7.0]]])
  mask = jnp.array([[True, True, False], [False, False, False]])
  np.testing.assert_array_equal(_gates.read({'x': x, 'mask': mask, 'targets': x}, 'gates'), [[2, 4], [0, 0]])
  np.testing.assert_array_equal(_gates.read({'x': x[:1]}, 'gates'), x[:1].mean(axis=1))
  np.testing.assert_array_equal(_gates.read(x, 'gates'), x.reshape(2, 6))


def test_arrays_of_different_lengths_have_no_shared_gate():
  model = sharing.ple([nn.Dense(4)] * 2, [nn.Dense(4)] * 2, {'a': nn.Dense(2), 'b': nn.Dense(2)})
  with pytest.raises(InputError, match=r"^gates: found inputs float32\[2, 3, 5\], 15 numbers, expected 20 .*'mask'}"):
    model.init(jax.random.key(0), {'a': jnp.ones((2, 4, 5)), 'b': jnp.ones((2, 3, 5))})
