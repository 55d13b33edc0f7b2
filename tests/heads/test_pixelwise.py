"""The pixelwise head: bilinear by hand, sizes, dtypes, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import heads, losses, sharing, trunks
from mtljax.base import InputError

KEY = jax.random.key(0)
FEATURES = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)


def test_enlarged_bilinearly_by_hand():
  head = heads.pixelwise(size=(1, 4))
  params = {'Dense_0': {'kernel': jnp.full((1, 1), 2.0), 'bias': jnp.ones(1)}}
  y = head.apply({'params': params}, jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1))
  np.testing.assert_allclose(y, [[[1, 3, 7, 9]]], rtol=1e-6)  # 2x + 1 of 0, 1, 3, 4


@pytest.mark.parametrize('outputs, shape', [(5, (2, 6, 7, 5)), (1, (2, 6, 7, 1)), (None, (2, 6, 7))])
@pytest.mark.parametrize('inputs', [(2, 6, 7), (2, 6, 7, 3)])
def test_outputs_have_the_size_of_the_inputs(outputs, shape, inputs):
  head = heads.pixelwise(outputs)
  inputs = jnp.zeros(inputs)
  y, variables = jax.eval_shape(lambda: head.init_with_output(KEY, FEATURES.astype(jnp.bfloat16), inputs=inputs))
  assert y.shape == shape and y.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}


def test_at_the_size_of_the_features_nothing_is_interpolated():
  head = heads.pixelwise(3, size=(2, 3))
  variables = random_variables(head, FEATURES)
  layer = jax.tree.map(np.asarray, variables['params']['Dense_0'])
  expected = FEATURES @ layer['kernel'] + layer['bias']
  np.testing.assert_allclose(head.apply(variables, FEATURES), expected, rtol=1e-4, atol=1e-5)


def test_an_architecture_hands_it_the_inputs():
  trunk = trunks.DilatedResNet((1, 1), width=2, features=4, rates=(1,), groups=2, entry='cifar')
  model = sharing.hard(trunk, {'classes': heads.pixelwise(3), 'depth': heads.pixelwise()})
  images = jnp.zeros((2, 7, 10, 3))

  def outputs():
    params, state = model.init(KEY, {'classes': images, 'depth': images})
    z, _ = model.trunk(params['shared'], state['shared'], images, tasks=('classes', 'depth'), train=False, key=None)
    mode = dict(inputs=images, train=False, key=None)
    y = {t: model.head(params['tasks'][t], state['tasks'][t], z, task=t, **mode)[0] for t in ('classes', 'depth')}
    return y, losses.softmax_cross_entropy(y['classes'], jnp.zeros((2, 7, 10), int))

  y, loss = jax.eval_shape(outputs)
  assert y['classes'].shape == (2, 7, 10, 3) and y['depth'].shape == loss.shape == (2, 7, 10)


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^heads.pixelwise: outputs is 0, expected a whole number of at least 1'):
    heads.pixelwise(0)
  with pytest.raises(InputError, match=r'^heads.pixelwise: size is 8, expected \(height, width\)'):
    heads.pixelwise(2, size=8)
  with pytest.raises(InputError, match=r'^heads.pixelwise: size is 2.5, '):
    heads.pixelwise(2, size=(2.5, 3))
  with pytest.raises(InputError, match=r'^Pixelwise: features have shape \(2, 3, 4\), expected \[B, h, w, C\]'):
    heads.pixelwise(2, size=(4, 4)).init(KEY, FEATURES[0])
  with pytest.raises(InputError, match=r'^Pixelwise: features are a dict, expected \[B, h, w, C\]'):
    heads.pixelwise(2, size=(4, 4)).init(KEY, {'x': FEATURES})
  with pytest.raises(InputError, match=r'^Pixelwise: inputs are of type NoneType, expected images .* or give `size`'):
    heads.pixelwise(2).init(KEY, FEATURES)
  with pytest.raises(InputError, match=r'^Pixelwise: inputs have shape \(2, 9\), expected images'):
    heads.pixelwise(2).init(KEY, FEATURES, inputs=jnp.zeros((2, 9)))
