"""`trunks.BatchNorm` sees the global batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mtljax import arrays, trunks

X = jax.random.normal(jax.random.key(0), (8, 3, 2)) * 2 + 1
WEIGHTS = jax.random.normal(jax.random.key(1), X.shape)


def moved(variables):
  """Scale and bias away from one and zero."""
  params = {'scale': jnp.array([0.5, 2.0]), 'bias': jnp.array([1.0, -1.0])}
  return {**variables, 'params': params}


def test_without_an_axis_it_is_a_plain_batch_norm():
  variables = moved(trunks.BatchNorm().init(jax.random.key(0), X))
  for train in (True, False):
    found = trunks.BatchNorm().apply(variables, X, train, mutable=['batch_stats'])
    plain = nn.BatchNorm(use_running_average=not train)
    expected = plain.apply(variables, X, mutable=['batch_stats'])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_on_four_devices_outputs_statistics_and_gradients_are_those_of_one():
  norm = trunks.BatchNorm()
  variables = moved(norm.init(jax.random.key(0), X))

  def run(variables, x, weights):
    def loss(params):
      y, state = norm.apply({**variables, 'params': params}, x, True, mutable=['batch_stats'])
      return jnp.sum(weights * y**2), (y, state)

    (_, (y, state)), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return y, state, arrays.psum(grads)

  def on_devices(variables, x, weights):
    with arrays.use_axis('d'):
      return run(variables, x, weights)

  mesh = jax.sharding.Mesh(jax.devices()[:4], ('d',))
  rows, all_of = PartitionSpec('d'), PartitionSpec()
  sharded = jax.shard_map(
    on_devices, mesh=mesh, in_specs=(all_of, rows, rows), out_specs=(rows, all_of, all_of), check_vma=False
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
    jax.jit(sharded)(variables, X, WEIGHTS),
    jax.jit(run)(variables, X, WEIGHTS),
  )


def test_gradients_through_the_statistics_are_those_of_one_device():
  """The inputs' gradient crosses devices: it goes through the mean and the variance of the whole batch."""
  norm = trunks.BatchNorm()
  variables = moved(norm.init(jax.random.key(0), X))
  loss = lambda x, w: jnp.sum(w * norm.apply(variables, x, True, mutable=['batch_stats'])[0] ** 2)

  def on_devices(x, w):
    with arrays.use_axis('d'):
      return jax.grad(loss)(x, w)

  parts = jax.jit(jax.vmap(on_devices, axis_name='d'))(X.reshape(4, 2, 3, 2), WEIGHTS.reshape(4, 2, 3, 2))
  expected = jax.jit(jax.grad(loss))(X, WEIGHTS)
  np.testing.assert_allclose(parts.reshape(X.shape), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_float32_parameters_and_statistics():
  norm = trunks.BatchNorm(dtype=jnp.bfloat16)
  variables = norm.init(jax.random.key(0), X)
  y, state = norm.apply(variables, X.astype(jnp.bfloat16), True, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, state))} == {jnp.dtype('float32')}
