"""ResNets: parameters counted, stages one after another, options, what they refuse."""

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
IMAGES = jax.random.normal(KEY, (3, 6, 6, 2))
TINY = functools.partial(trunks.ResNet, width=4, groups=2)


def separate(variables):
  """linen's {collection: {stage: ...}} as parameters and {stage: {collection: ...}}, every stage with both."""
  names = ('stem', 'stage1', 'stage2', 'pool')
  stats = variables.get('batch_stats', {})
  state = {name: {'batch_stats': stats[name]} if name in stats else {} for name in names}
  return {name: variables['params'].get(name, {}) for name in names}, state


@pytest.mark.parametrize(
  'make, parameters, features',
  [  # of torchvision's nets without their last layer
    (trunks.resnet18, 11_176_512, 512),
    (trunks.resnet34, 21_284_672, 512),
    (trunks.resnet50, 23_508_032, 2048),
  ],
)
def test_imagenet_nets_have_the_published_number_of_parameters(make, parameters, features):
  net = make(entry='imagenet', impl='lax')
  images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  y, variables = jax.eval_shape(lambda x: net.init_with_output(KEY, x), images)
  assert y.shape == (2, features)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == parameters


def test_every_stage_but_the_first_halves_the_image():
  shapes = {}
  for entry in ('cifar', 'imagenet'):
    x = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    shapes[entry] = []
    for stage in trunks.resnet18(entry=entry, width=4, impl='lax').stages.values():
      x, _ = jax.eval_shape(lambda x, stage=stage: stage.init_with_output(KEY, x), x)
      shapes[entry].append(x.shape[1:])
  assert shapes['cifar'] == [(64, 96, 4), (64, 96, 4), (32, 48, 8), (16, 24, 16), (8, 12, 32), (32,)]
  assert shapes['imagenet'] == [(16, 24, 4), (16, 24, 4), (8, 12, 8), (4, 6, 16), (2, 3, 32), (32,)]


@pytest.mark.parametrize('options', [{'norm': 'batch'}, {'bottleneck': True}], ids=str)
def test_stages_one_after_another_are_the_trunk(options):
  net = TINY((1, 1), **options)
  variables = random_variables(net, IMAGES)
  variables = jax.tree.map(jnp.abs, variables)  # variances are positive
  mutable = ['batch_stats']
  expected, changed = jax.jit(lambda v: net.apply(v, IMAGES, train=True, mutable=mutable))(variables)
  params, state = separate(variables)
  module = chained(net)
  found, new = jax.jit(lambda p, s: module.apply(p, s, IMAGES, train=True, key=KEY))(params, state)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  _, expected_state = separate({'params': {}, **changed})
  assert jax.tree.structure(new) == jax.tree.structure(expected_state)
  for a, b in zip(*map(jax.tree.leaves, (new, expected_state))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert bool(jax.tree.leaves(new)) == (options == {'norm': 'batch'})


def test_blocks_are_the_stages_cut_finer():
  net = TINY((1, 2))
  assert list(net.blocks) == ['stem', 'stage1_block0', 'stage2_block0', 'stage2_block1', 'pool']
  params, state = separate(random_variables(net, IMAGES))
  fine = {'stem': params['stem'], 'pool': {}, 'stage1_block0': params['stage1']['block0']}
  fine |= {f'stage2_block{i}': params['stage2'][f'block{i}'] for i in range(2)}
  mode = dict(train=False, key=None)
  expected, _ = jax.jit(lambda p: chained(net).apply(p, state, IMAGES, **mode))(params)
  found, _ = jax.jit(lambda p: chained(net.blocks).apply(p, dict.fromkeys(fine, {}), IMAGES, **mode))(fine)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_block_by_hand():
  """One pixel, one channel, BatchNorm at its running statistics: relu(x + w2 relu(w1 x)), w at the kernels' centres."""
  net = trunks.ResNet((1,), width=1, norm='batch')
  block = net.blocks['stage1_block0']
  x = jnp.full((1, 1, 1, 1), 3.0)
  variables = jax.eval_shape(lambda: block.init(KEY, x))
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables['params'])
  for index, weight in enumerate((2.0, -0.25)):
    params[f'Conv_{index}']['kernel'] = params[f'Conv_{index}']['kernel'].at[1, 1].set(weight)
    params[f'BatchNorm_{index}']['scale'] = jnp.full(1, np.sqrt(1 + 1e-5))
  stats = {f'BatchNorm_{index}': {'mean': jnp.zeros(1), 'var': jnp.ones(1)} for index in range(2)}
  y = block.apply({'params': params, 'batch_stats': stats}, x)
  np.testing.assert_allclose(y.squeeze(), 3 - 0.25 * 6, rtol=1e-5)


def test_compute_may_be_bfloat16():
  net = TINY((1,), dtype=jnp.bfloat16)
  y, variables = jax.eval_shape(lambda: net.init_with_output(KEY, IMAGES))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}


@pytest.mark.parametrize(
  'options, x, message',
  [
    ({'depths': 3}, IMAGES, r'^ResNet: depths is 3, expected a sequence of positive whole numbers'),
    ({'width': 0}, IMAGES, r'^ResNet: width is 0, expected a positive whole number'),
    ({'groups': 1.5}, IMAGES, r'^ResNet: groups is 1.5'),
    ({'norm': 'layer'}, IMAGES, r"^ResNet: norm is 'layer', expected one of \('group', 'batch'\)"),
    ({'entry': 'mnist'}, IMAGES, r"^ResNet: entry is 'mnist', expected one of \('cifar', 'imagenet'\)"),
    ({}, IMAGES[0, 0], r'^ResNet: inputs are float32\[6, 2\], expected floats \[B, H, W\]'),
    ({}, IMAGES.astype(jnp.uint8), r'^ResNet: inputs are uint8'),
  ],
)
def test_bad_arguments_are_named(options, x, message):
  with pytest.raises(InputError, match=message):
    trunks.ResNet(**options).init(KEY, x)
