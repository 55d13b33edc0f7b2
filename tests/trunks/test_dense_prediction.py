"""The dilated ResNet: sizes, dilations, stages, gradients, what it refuses."""

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
IMAGES = np.random.default_rng(4).normal(size=(2, 5, 6, 2)).astype(np.float32)
TINY = functools.partial(  # im2col compiles slowly
  trunks.DilatedResNet, (1, 1, 1), width=2, features=4, rates=(1, 2), groups=2, entry='cifar', impl='lax'
)


@pytest.mark.parametrize('entry, size', [('imagenet', (6, 9)), ('cifar', (24, 33))])
def test_the_image_shrinks_by_eight_or_two(entry, size):
  x = jax.ShapeDtypeStruct((2, 48, 66, 3), np.float32)
  trunk = trunks.DilatedResNet(width=4, features=10, entry=entry, impl='lax')
  shapes = {}
  for name, stage in trunk.stages.items():
    x, _ = jax.eval_shape(lambda x, stage=stage: stage.init_with_output(KEY, x), x)
    shapes[name] = x.shape[1:]
  assert shapes['stage2'] == (*size, 8) and shapes['stage4'] == (*size, 32)
  assert shapes['pyramid'] == shapes['decoder'] == (*size, 10)


def test_later_stages_dilate():
  trunk = trunks.DilatedResNet((1, 1, 1, 1), width=4, entry='cifar', rates=(3, 5), features=4, impl='lax')
  x = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
  variables = jax.eval_shape(trunk.init, KEY, x)
  eqns = jax.make_jaxpr(trunk.apply)(variables, x).eqns
  found = [eqn.params['rhs_dilation'][0] for eqn in eqns if eqn.primitive.name == 'conv_general_dilated']
  # stem; stage 1; stages 2 to 4 with a 1x1 shortcut each; 1x1, two rates and 1x1 of the pyramid; decoder
  assert found == [1, 1, 1, 1, 1, 1, 2, 2, 1, 4, 4, 1, 1, 3, 5, 1, 1]


def test_a_dilated_block_sees_every_other_pixel():
  block = trunks.resnet.Block(channels=1, norm='batch', dilation=2)
  x = jnp.ones((1, 9, 9, 1))
  variables = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, random_variables(block, x))
  seen = jax.jit(jax.grad(lambda x: block.apply(variables, x)[0, 4, 4, 0]))(x)[0, :, :, 0] != 0
  even = np.arange(9) % 2 == 0
  np.testing.assert_array_equal(seen, even[:, None] & even[None])


def test_stages_are_the_trunk_and_every_parameter_has_a_gradient():
  trunk = TINY()
  params = random_variables(trunk, IMAGES)['params']
  weights = np.random.default_rng(5).normal(size=(2, 3, 3, 4)).astype(np.float32)

  @jax.jit
  def run(params):
    y, pullback = jax.vjp(lambda p: trunk.apply({'params': p}, IMAGES), params)
    stages = chained(trunk).apply(params, dict.fromkeys(trunk.stages, {}), IMAGES, train=True, key=KEY)[0]
    return y, stages, pullback(jnp.asarray(weights))[0]

  y, stages, gradients = run(params)
  np.testing.assert_allclose(stages, y, rtol=1e-4, atol=1e-5)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_compute_may_be_bfloat16():
  y, variables = jax.eval_shape(lambda: TINY(dtype=jnp.bfloat16).init_with_output(KEY, IMAGES))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}


def test_batch_norm_everywhere_when_asked():
  variables = jax.eval_shape(TINY(norm='batch').init, KEY, IMAGES)
  assert set(variables['batch_stats']) == {'stem', 'stage1', 'stage2', 'stage3', 'pyramid', 'decoder'}
  assert 'GroupNorm' not in str(jax.tree_util.tree_structure(variables))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'depths': 3}, r'^DilatedResNet: depths is 3, expected a sequence'),
    ({'rates': (0,)}, r'^DilatedResNet: rates is \(0,\)'),
    ({'features': 0}, r'^DilatedResNet: features is 0, expected a positive whole number'),
    ({'norm': 'layer'}, r"^DilatedResNet: norm is 'layer', expected one of"),
    ({'entry': 'mnist'}, r"^DilatedResNet: entry is 'mnist'"),
  ],
)
def test_bad_arguments_are_named(options, message):
  with pytest.raises(InputError, match=message):
    trunks.DilatedResNet(**options).init(KEY, IMAGES)
