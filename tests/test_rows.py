"""Rows of the Jacobian as factors: the same Gramian and the same sums as the rows themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import linalg
from mtljax.gradients import _feature_rows, _rows
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
  for chunk_size in (len(tasks), len(tasks) - 1):  # only all of them at once need not be formed
    step = mtl.make_train_step(model, tasks, optimizer, balancer, chunk_size=chunk_size)
    compiled = jax.jit(step).lower(state, batch).compile()
    outs[chunk_size], sizes[chunk_size] = compiled(state, batch), compiled.memory_analysis().temp_size_in_bytes
  kernel = 4 * 256 * 256
  assert sizes[len(tasks)] < 5 * kernel < len(tasks) * kernel < sizes[len(tasks) - 1]
  (new, info), (expected, expected_info) = outs.values()
  np.testing.assert_allclose(info.gramian, expected_info.gramian, rtol=1e-5)
  np.testing.assert_allclose(info.weights, expected_info.weights, rtol=1e-4)
  for found, leaf in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_allclose(found, leaf, atol=1e-6)


# Heads on features f[6, 16], or f[6, 3, 16] of a sequence: are their rows kept as factors?
ON_FEATURES = {
  'dense': ([nn.Dense(2)] * T, True),
  'classes': ([nn.Dense(n) for n in (1, 2, 2, 1)], True),
  'bfloat16': ([nn.Dense(2, dtype=jnp.bfloat16)] * T, True),
  'deep': ([nn.Sequential([nn.Dense(2), jnp.tanh, nn.Dense(5)])] * T, True),
  'sequence': ([nn.Dense(2)] * T, True),
  'wide': ([nn.Dense(30)] * T, False),
  'squared': ([nn.Sequential([jnp.square, nn.Dense(2)])] * T, False),
  'mixed': ([nn.Dense(2), nn.Sequential([jnp.square, nn.Dense(2)])] * 2, False),
}


def pull_of(name):
  heads, _ = ON_FEATURES[name]
  z = jax.random.normal(jax.random.key(0), (B, 3, 16) if name == 'sequence' else (B, 16))
  z = z.astype(jnp.bfloat16) if name == 'bfloat16' else z
  pulls = {}
  for t, head in enumerate(heads):
    params = head.init(jax.random.key(t), z)
    y, pulls[f't{t}'] = jax.vjp(head.apply, params, z)
    cotangent = jax.random.normal(jax.random.fold_in(jax.random.key(9), t), y.shape, y.dtype)
    pulls[f't{t}'] = lambda c, pull=pulls[f't{t}'], d=cotangent: pull((c * d).astype(d.dtype))

  def pull(coefficients):
    pairs = [pull(c) for c, pull in zip(coefficients, pulls.values())]
    return dict(zip(pulls, [head for head, _ in pairs])), [row for _, row in pairs]

  return pull


@pytest.mark.parametrize('name', ON_FEATURES)
def test_rows_of_features_are_those_of_the_heads(name):
  pull, coefficients = pull_of(name), jnp.array([1.0, 0.5, 2.0, 1.0])
  present, weights = jnp.array([True, True, False, True]), jnp.array([0.5, -1.0, 0.0, 2.0])

  def run(coefficients, present):
    heads, rows = _feature_rows.of_features(pull, coefficients, present)
    return heads, rows.gramian, rows.combine(weights)

  heads, gramian, together = jax.jit(run)(coefficients, present)
  expected, rows = pull(coefficients)
  rows = jnp.stack(rows) * present.reshape(-1, *[1] * rows[0].ndim).astype(rows[0].dtype)
  tolerance = 2e-2 if name == 'bfloat16' else 1e-5
  G = linalg.gramian(rows)
  np.testing.assert_allclose(gramian, G, atol=tolerance * float(G.max()))
  sum_of_rows = linalg.combine(weights, rows)
  assert together.dtype == rows.dtype and together.shape == rows.shape[1:]
  np.testing.assert_allclose(
    np.asarray(together, np.float32), np.asarray(sum_of_rows, np.float32), atol=tolerance * float(jnp.abs(rows).max())
  )
  expected['t2'] = jax.tree.map(jnp.zeros_like, expected['t2'])
  for found, leaf in zip(jax.tree.leaves(heads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(leaf, np.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ON_FEATURES)
def test_which_heads_are_factored(name):
  program = Program(pull_of(name), jnp.ones(T))
  plan = _feature_rows._plan(program, program.results[-T:])
  assert (plan is not None) == ON_FEATURES[name][1]


def test_rows_of_features_are_formed_where_columns_cancel():
  """d_t [1, -1] against a W_t whose two columns agree to 1e-4: the row is 1e-4 of its terms."""
  r = np.random.default_rng(0)
  d = r.normal(size=(T, B, 1)) * np.array([1.0, -1.0])
  W = r.normal(size=(T, 16, 1)) + 1e-4 * r.normal(size=(T, 16, 2))
  d, W = jnp.asarray(d, jnp.float32), jnp.asarray(W, jnp.float32)
  wide = np.einsum('tne,tae->tna', np.asarray(d, np.float64), np.asarray(W, np.float64)).reshape(T, -1)
  found = _feature_rows.of_features(
    lambda c: ({t: () for t in range(T)}, [c[t] * d[t] @ W[t].T for t in range(T)]), jnp.ones(T), jnp.ones(T, bool)
  )[1]
  expected = wide @ wide.T
  assert np.abs(found.gramian - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_broken_head_stays_in_its_row():
  pull = pull_of('dense')
  coefficients = jnp.ones(T).at[1].set(jnp.nan)
  gramian = _feature_rows.of_features(pull, coefficients, jnp.ones(T, bool))[1].gramian
  assert not np.isfinite(gramian[1]).any() and np.isfinite(gramian[0, 0]) and np.isfinite(gramian[2:, 2:]).all()
  heads, rows = _feature_rows.of_features(pull, coefficients, jnp.ones(T, bool).at[1].set(False))
  assert np.isfinite(rows.gramian).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(heads))


def test_gradients_pass_through_the_step():
  """A step stays a function that can be differentiated."""
  lift, cotangents = pullback(NETS['dense']())
  value = lambda c: jnp.trace(_rows.factored(lift, c).gramian)
  expected = lambda c: jnp.trace(linalg.gramian(jax.vmap(lift)(c)))
  np.testing.assert_allclose(jax.grad(value)(cotangents), jax.grad(expected)(cotangents), rtol=1e-4, atol=1e-4)
