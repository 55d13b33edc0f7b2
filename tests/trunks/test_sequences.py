"""Properties of every trunk for sequences: padding, stages, gradients, dtypes, dropout, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks
from mtljax.base import InputError
from mtljax.sharing.stages import chained

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
LENGTHS = (6, 9)
MASK = np.arange(9)[None] < np.array(LENGTHS)[:, None]
FLOATS = DRAW.normal(size=(2, 9, 5)).astype(np.float32)
TOKENS = DRAW.integers(0, 7, size=(2, 9))
BLOCKS = dict(heads=2, hidden=6)
CASES = {  # trunk, inputs, and how many frames become one
  'transformer-learned': (trunks.Transformer(4, 1, positions='learned', vocabulary=7, **BLOCKS), TOKENS, 1),
  'transformer-sinusoidal-deep': (trunks.Transformer(4, 2, **BLOCKS), FLOATS, 1),
  'transformer-rotary-causal': (trunks.Transformer(4, 1, positions='rotary', causal=True, **BLOCKS), FLOATS, 1),
  'gru-both-ways': (trunks.Recurrent((4,), bidirectional=True, vocabulary=7, embedding=5), TOKENS, 1),
  'lstm-both-ways-deep': (trunks.Recurrent((4, 3), 'lstm', bidirectional=True), FLOATS, 1),
  'conformer': (trunks.Conformer(4, depth=1, heads=2, hidden=6, kernel_size=5, channels=3), FLOATS, 4),
}
# A case's program takes seconds to compile: some by default, the others with -m full; all where nothing is computed.
COMPILED = ('transformer-rotary-causal', 'gru-both-ways', 'conformer')
compiled_case = pytest.mark.parametrize(
  'name', [name if name in COMPILED else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
every_case = pytest.mark.parametrize('name', CASES)


def sequence(x, garbage):
  """With other values where the mask is False."""
  mask = MASK.reshape(MASK.shape + (1,) * (x.ndim - 2))
  return {'x': np.where(mask, x, np.asarray(garbage, x.dtype)), 'mask': MASK}


@functools.cache
def results(name):
  """Everything that a case's tests look at, in two programs."""
  trunk, x, _ = CASES[name]
  variables = random_variables(trunk, x)
  weights = DRAW.normal(size=jax.eval_shape(trunk.apply, variables, x).shape).astype(np.float32)
  apply = lambda trunk, params, inputs: trunk.apply({'params': params}, inputs)

  @jax.jit
  def run(params, inputs):
    whole = lambda params: tuple(apply(trunk, params, inputs)[name] for name in ('x', 'mask'))
    y, pullback, mask = jax.vjp(whole, params, has_aux=True)
    return {'features': y, 'mask': mask, 'gradients': pullback(weights)[0]}

  @jax.jit
  def compared(params, inputs):
    stages = chained(trunk).apply(params, dict.fromkeys(trunk.stages, {}), inputs, train=False, key=None)[0]
    return {
      'stages': stages['x'],
      'alone': apply(trunk, params, x[:1, : LENGTHS[0]])[0],
      'half': apply(trunk.clone(dtype=jnp.bfloat16), params, inputs)['x'],
    }

  garbage = (6, -1) if x is TOKENS else (1e6, np.nan)
  inputs = [sequence(x, value) for value in garbage]
  return [jax.tree.map(np.asarray, {**run(variables['params'], z), **compared(variables['params'], z)}) for z in inputs]


@compiled_case
def test_padding_has_no_influence(name):
  one, other = results(name)
  jax.tree.map(np.testing.assert_array_equal, one, other)  # gradients too
  _, _, stride = CASES[name]
  np.testing.assert_array_equal(one['mask'], MASK[:, ::stride])
  assert not one['features'][~one['mask']].any()
  frames = -(-LENGTHS[0] // stride)
  assert one['alone'].shape[0] == frames == one['mask'][0].sum() < one['features'].shape[1]
  np.testing.assert_allclose(one['features'][0, :frames], one['alone'], rtol=1e-4, atol=1e-5)


@compiled_case
def test_stages_one_after_another_are_the_trunk(name):
  found = results(name)[0]
  np.testing.assert_allclose(found['stages'], found['features'], rtol=1e-5, atol=1e-6)
  assert set(CASES[name][0].stages) == set(found['gradients'])


@compiled_case
def test_every_parameter_has_a_gradient(name):
  for path, leaf in jax.tree_util.tree_leaves_with_path(results(name)[0]['gradients']):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)


@compiled_case
def test_bfloat16_is_close(name):
  found = results(name)[0]
  assert found['half'].dtype == jnp.bfloat16 and found['features'].dtype == np.float32
  scale = np.abs(found['features']).max()
  np.testing.assert_allclose(found['half'].astype(np.float32), found['features'], atol=0.05 * scale)


@every_case
def test_dropout_acts_while_training(name):
  trunk, x, _ = CASES[name]
  variables = jax.eval_shape(trunk.init, KEY, x)
  noisy = trunk.clone(dropout=0.5)
  apply = lambda train, trunk=noisy: str(
    jax.make_jaxpr(lambda v, key: trunk.apply(v, x, train=train, rngs={'dropout': key}))(variables, KEY)
  )
  assert 'random_bits' in apply(True)
  assert apply(False) == apply(True, trunk)  # neither draws


@every_case
def test_parameters_are_float32_and_double_precision_stays(name):
  trunk, x, _ = CASES[name]
  half = jax.eval_shape(lambda: trunk.clone(dtype=jnp.bfloat16).init(KEY, x))
  assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype('float32')}
  with jax.enable_x64(True):
    variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), half)
    x = x if x is TOKENS else x.astype(np.float64)
    assert jax.eval_shape(trunk.apply, variables, x).dtype == np.float64


@every_case
def test_bad_sequences_are_named(name):
  trunk, x, _ = CASES[name]
  other = FLOATS if x is TOKENS else TOKENS
  found, kind = (r'float32\[2, 9, 5\]', 'integers') if x is TOKENS else (r'int32\[2, 9\]', 'floats')
  with pytest.raises(InputError, match=rf'inputs are {found}, expected \[B, N.* {kind}'):
    trunk.init(KEY, other)
  with pytest.raises(InputError, match=r"inputs have the keys \['mask', 'tokens'\], expected \[B, N.*\(optional\)"):
    trunk.init(KEY, {'tokens': x, 'mask': MASK})
  with pytest.raises(InputError, match=r"inputs\['mask'\] is bool\[2, 8\], expected bool\[2, 9\]"):
    trunk.init(KEY, {'x': x, 'mask': MASK[:, 1:]})
  with pytest.raises(InputError, match=r"inputs\['mask'\] is float32\[2, 9\]"):
    trunk.init(KEY, {'x': x, 'mask': MASK.astype(np.float32)})


@every_case
def test_other_entries_are_for_others(name):
  """The targets of a decoder, and a mask of None, leave the plain array."""
  trunk, x, _ = CASES[name]
  variables = jax.eval_shape(trunk.init, KEY, x)
  lowered = lambda inputs: str(jax.make_jaxpr(lambda v, x: trunk.apply(v, {**inputs, 'x': x}))(variables, x))
  plain = str(jax.make_jaxpr(trunk.apply)(variables, x))
  assert lowered({'targets': TOKENS}) == lowered({'mask': None}) == plain


def test_pretrained_rows_are_the_first_embedding():
  table = DRAW.normal(size=(7, 5)).astype(np.float32)
  trunk = trunks.Recurrent((3,), vocabulary=7, embedding=5, table=trunks.pretrained(table))
  params = trunk.stages['embed'].init(KEY, TOKENS)
  np.testing.assert_array_equal(trunk.stages['embed'].apply(params, TOKENS), table[TOKENS])
  with pytest.raises(InputError, match=r'^table: found shape \(7, 5\), expected \(7, 4\)'):
    trunk.clone(embedding=4).init(KEY, TOKENS)


@pytest.mark.parametrize(
  'trunk, message',
  [
    (trunks.Transformer(6, heads=4), r'^Transformer: heads is 4, expected a divisor of features=6, such as 2'),
    (trunks.Transformer(6, heads=2, positions='rotary'), r'^Transformer: heads is 2, .* of an even size'),
    (trunks.Transformer(8, positions='relative'), r"^Transformer: positions is 'relative', expected one of"),
    (trunks.Transformer(8, depth=0), r'^Transformer: depth is 0, expected a positive whole number'),
    (trunks.Transformer(8, hidden=2.5), r'^Transformer: hidden is 2.5'),
    (trunks.Transformer(8, positions='learned', max_length=8), r'^Embed: inputs have 9 places.*max_length=8'),
    (trunks.Recurrent(8), r'^Recurrent: hidden is 8, expected a sequence'),
    (trunks.Recurrent((8,), 'rnn'), r"^Recurrent: cell is 'rnn', expected one of \('gru', 'lstm'\)"),
    (trunks.Recurrent((8,), vocabulary=True), r'^Recurrent: vocabulary is True'),
    (trunks.Conformer(8, heads=4, kernel_size=4), r'^Conformer: kernel_size is 4, expected an odd number'),
    (trunks.Conformer(8, channels=0), r'^Conformer: channels is 0'),
  ],
)
def test_bad_arguments_are_named(trunk, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(trunk.init, KEY, FLOATS)
