"""`trunks.Conv` is `nn.Conv`, `trunks.max_pool` is `nn.max_pool`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import trunks
from mtljax.base import InputError

LAYOUTS = [  # shape, kernel, strides, padding, dilation
  ((2, 7, 6, 3), (3, 3), 1, 'SAME', 1),
  ((2, 7, 6, 3), (3, 2), (2, 3), 'SAME', 1),
  ((2, 7, 6, 3), (5, 4), (1, 2), 'VALID', 1),
  ((2, 7, 6, 3), (2, 3), (3, 1), ((1, 0), (2, 1)), 1),
  ((2, 9, 3), (4,), 2, 'SAME', 1),
  ((2, 7, 6, 3), (3, 3), 1, 'SAME', 2),
  ((2, 9, 8, 3), (3, 2), (2, 1), 'VALID', (3, 4)),
  ((2, 7, 6, 3), (3, 2), (1, 2), ((2, 3), (0, 4)), (2, 5)),
  ((2, 9, 3), (4,), 2, 'SAME', 3),
]


@pytest.mark.parametrize('shape, size, strides, padding, dilation', LAYOUTS)
def test_it_is_nn_conv_with_gradients(shape, size, strides, padding, dilation):
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(size=shape), jnp.float32)
  options = dict(strides=strides, padding=padding)
  theirs = nn.Conv(4, size, kernel_dilation=dilation, **options)
  ours = [trunks.Conv(4, size, dilation=dilation, impl=impl, **options) for impl in ('lax', 'im2col')]
  variables = random_variables(theirs, x)
  weights = jnp.asarray(draw.normal(size=jax.eval_shape(theirs.apply, variables, x).shape), jnp.float32)

  @jax.jit
  def run(variables, x):
    pulled = [jax.vjp(conv.apply, variables, x) for conv in (theirs, *ours)]
    return [(y, pullback(weights)) for y, pullback in pulled]

  expected, *found = run(variables, x)
  for result in found:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, expected)


def test_its_initial_parameters_are_those_of_nn_conv():
  x = jnp.ones((1, 4, 4, 2))
  ours, theirs = (conv(3, (3, 2)).init(jax.random.key(1), x) for conv in (trunks.Conv, nn.Conv))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_auto_is_im2col_on_the_cpu():
  x = jnp.ones((1, 4, 4, 1))
  primitives = lambda impl: {
    eqn.primitive.name for eqn in jax.make_jaxpr(trunks.Conv(2, (3, 3), impl=impl).apply)(variables, x).eqns
  }
  variables = random_variables(trunks.Conv(2, (3, 3)), x)
  assert 'conv_general_dilated' in primitives('lax')
  assert 'conv_general_dilated' not in primitives('im2col')
  assert primitives('auto') == primitives('im2col' if jax.default_backend() == 'cpu' else 'lax')


@pytest.mark.parametrize('impl', ['lax', 'im2col'])
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(impl):
  conv = trunks.Conv(4, (3, 3), impl=impl, dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
  variables = random_variables(conv, x)
  y = conv.apply(variables, x)
  assert y.dtype == jnp.bfloat16 and {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(y.astype(jnp.float32), trunks.Conv(4, (3, 3)).apply(variables, x), atol=0.05)


def test_without_bias():
  variables = random_variables(trunks.Conv(4, (3, 3), use_bias=False), jnp.ones((1, 4, 4, 1)))
  assert set(variables['params']) == {'kernel'}


@pytest.mark.parametrize('size, window', [((6, 4), 2), ((7, 5), 2), ((8, 7), 3)])
def test_max_pool_is_nn_max_pool_with_gradients(size, window):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  theirs = lambda x: nn.max_pool(x, (window, window), (window, window))
  np.testing.assert_array_equal(trunks.max_pool(x, window), theirs(x))
  ours, theirs = jax.jit(
    lambda x: (
      jax.grad(lambda x: jnp.sum(trunks.max_pool(x, window) ** 2))(x),
      jax.grad(lambda x: jnp.sum(theirs(x) ** 2))(x),
    )
  )(x)
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_bad_arguments_are_named():
  x = jnp.ones((1, 4, 4, 1))
  with pytest.raises(InputError, match=r"impl is 'fft', expected one of \('auto', 'lax', 'im2col'\)"):
    trunks.Conv(2, (3, 3), impl='fft').init(jax.random.key(0), x)
  with pytest.raises(InputError, match='kernel_size is 3, expected a sequence'):
    trunks.Conv(2, 3).init(jax.random.key(0), x)
  with pytest.raises(InputError, match=r'inputs have shape \(4, 4, 1\)'):
    trunks.Conv(2, (3, 3)).init(jax.random.key(0), x[0])
  for impl in ('lax', 'im2col'):
    with pytest.raises(InputError, match=r'inputs have shape \(1, 4, 4, 1\).* no window of \(5, 5\) fits'):
      trunks.Conv(2, (3, 3), 2, 'VALID', dilation=2, impl=impl).init(jax.random.key(0), x)
