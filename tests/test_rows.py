"""Rows of the Jacobian as factors: the same Gramian and the same sums as the rows themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import linalg
from mtljax.gradients import _rows
from mtljax.gradients._program import Program

T, B = 4, 6


class Experts(nn.Module):
  """A kernel for every expert: a product with a batch axis."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (3, x.shape[-1], 24))
    return jnp.einsum('ba,eac->bec', x, kernel)


class Tied(nn.Module):
  """A kernel that is used transposed, and one that is used twice."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (20, x.shape[-1]))
    return (
      jnp.tanh(x @ kernel.T) @ kernel + jnp.tanh(x @ self.param('one', nn.initializers.ones, (x.shape[-1], 16))).sum()
    )


class Attention(nn.Module):
  """Kernels f[16, heads, 8] and f[heads, 8, 16] over positions."""

  @nn.compact
  def __call__(self, x):
    x = x.reshape(2, 3, -1)
    return nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=64)(x)


NETS = {
  'dense': lambda: mtl.trunks.MLP((32, 24)),
  'bfloat16': lambda: mtl.trunks.MLP((32, 24), dtype=jnp.bfloat16),
  'experts': Experts,
  'tied': Tied,
  'attention': Attention,
  'convolution': lambda: nn.Sequential([lambda x: x.reshape(B, 4, 4, 1), nn.Conv(8, (3, 3)), jnp.tanh, nn.Dense(40)]),
}
FACTORED = {'dense': 2, 'bfloat16': 2, 'experts': 1, 'tied': 1, 'attention': 4, 'convolution': 0}


def pullback(net, scale=1.0):
  x = jax.random.normal(jax.random.key(0), (B, 16))
  params = net.init(jax.random.key(1), x)['params']
  z, pull = jax.jit(lambda p: jax.vjp(lambda p: net.apply({'params': p}, x), p))(params)
  cotangents = scale * jax.random.normal(jax.random.key(2), (T, *z.shape), z.dtype)
  return lambda c: pull(c)[0], cotangents


@pytest.mark.parametrize('name', NETS)
def test_gramian_and_sums_are_those_of_the_rows(name):
  lift, cotangents = pullback(NETS[name]())
  weights = jnp.array([0.5, -1.0, 0.0, 2.0])

  @jax.jit
  def factors(c):
    found = _rows.factored(lift, c)
    return found.gramian, found.combine(weights)

  @jax.jit
  def plainly(c):
    jacobian = jax.vmap(lift)(c)
    return linalg.gramian(jacobian), linalg.combine(weights, jacobian)

  (rows, together), (gramian, expected) = factors(cotangents), plainly(cotangents)
  tolerance = 2e-2 if name == 'bfloat16' else 1e-5  # rows are rounded to bfloat16, factors are not
  np.testing.assert_allclose(rows, gramian, atol=tolerance * float(jnp.max(gramian)))
  assert jax.tree.structure(together) == jax.tree.structure(expected)
  for found, leaf in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
    assert found.shape == leaf.shape and found.dtype == leaf.dtype
    np.testing.assert_allclose(found, leaf, atol=tolerance * np.abs(leaf).max())


@pytest.mark.parametrize('name', NETS)
def test_which_leaves_are_factored(name):
  lift, cotangents = pullback(NETS[name]())
  program = Program(jax.vmap(lift), cotangents)
  assert sum(_rows._plan(program, variable) is not None for variable in program.results) == FACTORED[name]


def test_rows_are_multiplied_out_where_the_batch_cancels():
  # cotangents orthogonal to the inputs up to 1e-4 of them: <dW_s, dW_t> is 1e-8 of its terms
  r = np.random.default_rng(0)
  x, d = r.normal(size=(24, 40)), r.normal(size=(T, 24, 40))
  x[:, 16:] = 0
  d -= np.einsum('na,am,tme->tne', x, np.linalg.pinv(x), d)
  d += 1e-4 * r.normal(size=d.shape)
  x, d = jnp.asarray(x, jnp.float32), jnp.asarray(d, jnp.float32)
  lift = lambda c: {'kernel': x.T @ c}
  wide = np.einsum('na,tne->tae', np.asarray(x, np.float64), np.asarray(d, np.float64)).reshape(T, -1)
  expected = wide @ wide.T
  error = lambda G: np.abs(np.asarray(G) - expected).max() / np.abs(expected).max()
  assert error(_rows._gramian(x[None], d[:, None])) > 1e-2  # what the factors would have said
  assert error(_rows.factored(lift, d).gramian) < 1e-3
  assert error(linalg.gramian(jax.vmap(lift)(d))) < 1e-3


def test_zero_and_broken_rows():
  lift, cotangents = pullback(NETS['dense']())
  zero = _rows.factored(lift, cotangents.at[1].set(0)).gramian
  np.testing.assert_array_equal(zero[1], np.zeros(T))
  assert float(zero[0, 0]) > 0
  broken = _rows.factored(lift, cotangents.at[1].set(jnp.nan)).gramian
  assert not np.isfinite(broken[1]).any() and np.isfinite(broken[0, 0])


def test_a_step_forms_no_rows_of_kernels():
  """Neither in memory nor in products: the program of a step grows by less than T kernels."""
  tasks = tuple(mtl.Task(f't{i}', loss=mtl.losses.squared_error) for i in range(8))
  model = mtl.sharing.hard(mtl.trunks.MLP((256, 256)), {task.name: nn.Dense(1) for task in tasks})
  x = jax.random.normal(jax.random.key(0), (16, 32))
  batch = {'inputs': x, 'labels': {task.name: x[:, :1] for task in tasks}}
  optimizer = mtl.task_optimizer(shared=optax.sgd(1e-2), tasks={task.name: optax.sgd(1e-2) for task in tasks})
  balancer = mtl.balancing.upgrad()
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  outs, sizes = {}, {}
  for chunk_size in (None, len(tasks)):  # a chunk asks for the rows themselves
    step = mtl.make_train_step(model, tasks, optimizer, balancer, chunk_size=chunk_size)
    compiled = jax.jit(step).lower(state, batch).compile()
    outs[chunk_size], sizes[chunk_size] = compiled(state, batch), compiled.memory_analysis().temp_size_in_bytes
  kernel = 4 * 256 * 256
  assert sizes[None] < 4 * kernel < len(tasks) * kernel < sizes[len(tasks)]
  (new, info), (expected, expected_info) = outs.values()
  np.testing.assert_allclose(info.gramian, expected_info.gramian, rtol=1e-5)
  np.testing.assert_allclose(info.weights, expected_info.weights, rtol=1e-4)
  for found, leaf in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_allclose(found, leaf, atol=1e-6)


def test_gradients_pass_through_the_step():
  """A step stays a function that can be differentiated."""
  lift, cotangents = pullback(NETS['dense']())
  value = lambda c: jnp.trace(_rows.factored(lift, c).gramian)
  expected = lambda c: jnp.trace(linalg.gramian(jax.vmap(lift)(c)))
  np.testing.assert_allclose(jax.grad(value)(cotangents), jax.grad(expected)(cotangents), rtol=1e-4, atol=1e-4)
