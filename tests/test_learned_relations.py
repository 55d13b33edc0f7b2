"""Penalties that learn relations: closed forms by hand, gradients, degenerate parameters, a step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import learned_relations as relations


def params_of(rows, names=None):
  """Every task has a kernel f[P] and a bias that the default pattern leaves out."""
  names = names or 'abcdefgh'[: len(rows)]
  leaves = {name: {'kernel': jnp.asarray(row, float), 'bias': jnp.ones(1)} for name, row in zip(names, rows)}
  return {'shared': {'kernel': jnp.full(3, 7.0)}, 'tasks': leaves}


def rows_of(params):
  return np.stack([params['tasks'][name]['kernel'] for name in sorted(params['tasks'])])


def random_rows(tasks=4, size=6, seed=0):
  return np.random.default_rng(seed).normal(size=(tasks, size))


# MTRL


def test_covariance_of_two_tasks_by_hand():
  """M = W W' = [[5, 4], [4, 5]] has sqrt [[2, 1], [1, 2]] (squared: 4 + 1, 2 + 2), whose trace is 4."""
  rows = [[1.0, 2.0], [2.0, 1.0]]
  np.testing.assert_allclose(relations.task_covariance(params_of(rows)), [[0.5, 0.25], [0.25, 0.5]], atol=1e-6)
  np.testing.assert_allclose(relations.task_correlation(params_of(rows)), [[1, 0.5], [0.5, 1]], atol=1e-5)
  # 1/2 (tr sqrt M)^2; Omega^-1 W = 4 (sqrt M)^-1 W = 4/3 [[2, -1], [-1, 2]] W
  value, grads = jax.jit(jax.value_and_grad(relations.mtrl(1.0).value))(params_of(rows))
  np.testing.assert_allclose(value, 8, rtol=1e-5)
  np.testing.assert_allclose(rows_of(grads), [[0, 4], [4, 0]], atol=1e-4)
  assert not grads['shared']['kernel'].any() and not grads['tasks']['a']['bias'].any()


def test_opposite_tasks_have_negative_covariance(x64):
  found = relations.task_covariance(params_of([[3.0, 0.0], [-3.0, 0.0]]), eps=1e-12)
  np.testing.assert_allclose(found, [[0.5, -0.5], [-0.5, 0.5]], atol=1e-5)


@pytest.mark.parametrize('tasks, size', [(4, 6), (5, 2), (1, 3)])
def test_covariance_is_the_minimiser(x64, tasks, size):
  """tr(Omega)=1, positive, and no other such matrix has a smaller value; the minimum is half the squared trace norm."""
  rows = random_rows(tasks, size)
  params = params_of(rows)
  omega = np.asarray(relations.task_covariance(params))
  M = rows @ rows.T
  M = M + relations.EPS * np.trace(M) * np.eye(tasks)
  value = lambda omega: 0.5 * np.trace(np.linalg.solve(omega, M))
  assert np.trace(omega) == pytest.approx(1) and np.linalg.eigvalsh(omega).min() > 0
  assert relations.mtrl(1.0).value(params) == pytest.approx(value(omega), rel=1e-9)
  assert value(omega) == pytest.approx(0.5 * np.linalg.svd(rows, compute_uv=False).sum() ** 2, rel=1e-2)
  random = np.random.default_rng(1)
  for scale in (1e-3, 0.1, 1.0):
    change = random.normal(size=(tasks, tasks)) * scale
    other = (np.eye(tasks) + change) @ omega @ (np.eye(tasks) + change).T
    assert value(other / np.trace(other)) >= value(omega) * (1 - 1e-12)


def objectives():
  """Each penalty and, in numpy, its objective minimised over the relations."""

  def mtrl(rows):
    M = rows @ rows.T
    values = np.linalg.eigvalsh(M + relations.EPS * np.trace(M) * np.eye(len(M)))
    return 0.5 * np.sqrt(values).sum() ** 2

  def graph(rows, temperature=0.7):
    d = 0.5 * ((rows[:, None] - rows) ** 2).sum(axis=-1)
    return -temperature * np.log(np.exp(-d / temperature).mean(axis=1)).sum()

  return {'mtrl': (relations.mtrl(1.0), mtrl), 'graph': (relations.adaptive_graph(1.0, 0.7), graph)}


@pytest.mark.parametrize('name', ['mtrl', 'graph'])
def test_gradient_is_that_of_the_minimised_objective(x64, name):
  penalty, objective = objectives()[name]
  rows = random_rows(4, 3) * 0.6
  value, grads = jax.jit(jax.value_and_grad(penalty.value))(params_of(rows))
  assert value == pytest.approx(objective(rows), rel=1e-9)
  numeric = np.zeros_like(rows)
  for place in np.ndindex(rows.shape):
    step = np.zeros_like(rows)
    step[place] = 1e-6
    numeric[place] = (objective(rows + step) - objective(rows - step)) / 2e-6
  np.testing.assert_allclose(rows_of(grads), numeric, rtol=1e-5, atol=1e-7)
  assert np.abs(numeric).max() > 0.1


@pytest.mark.parametrize(
  'rows', [np.zeros((3, 4)), np.eye(3, 4) * [[0], [1], [1]], np.ones((3, 4)), np.eye(3, 4) * 1e-15]
)
@pytest.mark.parametrize('name', ['mtrl', 'graph'])
def test_degenerate_parameters_are_finite(name, rows):
  penalty, _ = objectives()[name]
  value, grads = jax.jit(jax.value_and_grad(penalty.value))(params_of(rows))
  assert np.isfinite(value) and np.isfinite(rows_of(grads)).all()
  if not rows.any():
    assert value == pytest.approx(0, abs=1e-6) and not rows_of(grads).any()
    np.testing.assert_allclose(relations.task_covariance(params_of(rows)), np.eye(3) / 3, atol=1e-6)


def test_gradients_stay_bounded_where_tasks_are_nearly_the_same():
  """|Omega^-1 W| <= tr(sqrt M) for the spectral norm: rounding in float32 must not blow it up."""
  rows = np.ones((16, 300)) + 1e-4 * random_rows(16, 300)
  grads = jax.jit(jax.grad(relations.mtrl(1.0).value))(params_of(rows, 'abcdefghijklmnop'))
  norm = np.linalg.svd(rows, compute_uv=False)
  assert np.linalg.norm(rows_of(grads), ord=2) <= 1.05 * (norm.sum() + 16 * math.sqrt(1e-6) * np.linalg.norm(rows))


def test_covariance_does_not_see_the_scale_nor_the_order():
  rows = random_rows()
  found = relations.task_covariance(params_of(rows))
  np.testing.assert_allclose(relations.task_covariance(params_of(1e4 * rows)), found, atol=1e-5)
  turned = relations.task_covariance(params_of(rows), names=('c', 'a', 'd', 'b'))
  np.testing.assert_allclose(turned, found[jnp.array([2, 0, 3, 1])][:, jnp.array([2, 0, 3, 1])], atol=1e-6)


# learned graph


def test_adjacency_by_hand():
  """Distances 1/2 |w_s - w_t|^2: a-b 2, a-c 50, b-c 32; c is far from both and is left alone."""
  params = params_of([[0.0], [2.0], [10.0]])
  share = math.exp(-2) / (1 + math.exp(-2))
  expected = [[0, share, 0], [share, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(relations.task_adjacency(params, 1.0), expected, atol=1e-6)
  expected = mtl.relations.TaskGraph(('a', 'b', 'c'), {('a', 'b'): float(relations.task_adjacency(params, 1.0)[0, 1])})
  assert relations.task_graph(params, 1.0, threshold=0.1) == expected
  assert not relations.task_graph(params, 1.0).edges  # less than 1/3
  value, grads = jax.jit(jax.value_and_grad(relations.adaptive_graph(1.0, 1.0).value))(params)
  np.testing.assert_allclose(value, 3 * math.log(3) - 2 * math.log(1 + math.exp(-2)), rtol=1e-5)
  np.testing.assert_allclose(rows_of(grads), [[-4 * share], [4 * share], [0]], atol=1e-5)  # weight A_ab + A_ba


def test_adjacency_of_close_tasks_far_from_the_origin():
  """Products of rows of length 1e3 would lose a distance of 1/2."""
  rows = np.full((3, 10), 300.0)
  rows[1, 0] += 1
  found = relations.task_adjacency(params_of(rows), 1.0)
  np.testing.assert_allclose(found, relations.task_adjacency(params_of(rows - 300), 1.0), rtol=1e-3)


def test_temperature():
  rows = random_rows()
  everybody = relations.task_adjacency(params_of(rows), 1e6)
  np.testing.assert_allclose(everybody, (1 - np.eye(4)) / 4, atol=1e-4)
  assert not relations.task_adjacency(params_of(rows), 1e-4).any()
  assert relations.task_graph(params_of(rows), 1e-4).edges == ()


def test_equal_tasks_cost_nothing():
  assert relations.adaptive_graph(1.0, 0.5).value(params_of(np.ones((3, 4)))) == pytest.approx(0, abs=1e-6)


# both


def test_leaves_of_a_task_are_one_row():
  head = {
    'Dense_0': {'kernel': jnp.arange(4.0).reshape(2, 2), 'bias': jnp.zeros(2)},
    'Dense_1': {'kernel': jnp.ones(1)},
  }
  params = {'shared': {}, 'tasks': {'b': head, 'a': jax.tree.map(lambda x: -x, head)}}
  np.testing.assert_array_equal(relations.task_matrix(params), [[-0.0, -1, -2, -3, -1], [0, 1, 2, 3, 1]])
  assert relations.task_matrix(params, where='Dense_0/', names=('b',)).tolist() == [[0, 0, 0, 1, 2, 3]]


def test_bfloat16_parameters_are_related_in_float32():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(random_rows()))
  assert relations.task_covariance(params).dtype == jnp.float32
  assert jax.jit(jax.grad(relations.mtrl(1.0).value))(params)['tasks']['a']['kernel'].dtype == jnp.bfloat16


def test_bad_input_is_named():
  params = params_of(random_rows(2))
  with pytest.raises(
    mtl.InputError, match=r"where='gain' matches no parameter of task 'a', found \['tasks/a/bias', 't"
  ):
    relations.mtrl(1.0, where='gain').value(params)
  params['tasks']['b']['kernel'] = jnp.ones(2)
  with pytest.raises(mtl.InputError, match=r"finds \{'kernel': \(2,\)\} in task 'b' and \{'kernel': \(6,\)\} in 'a'"):
    relations.task_covariance(params)
  with pytest.raises(mtl.InputError, match=r"names: found \['c'\].*unknown \['c'\]"):
    relations.task_adjacency(params, 1.0, names=('c',))
  with pytest.raises(mtl.InputError, match='mtrl eps: found 0, expected a positive number'):
    relations.mtrl(1.0, eps=0)
  for temperature in (0.0, -1.0, math.nan, math.inf, True, None):
    with pytest.raises(mtl.InputError, match='adaptive_graph temperature: found'):
      relations.adaptive_graph(1.0, temperature)


@pytest.mark.parametrize('name', ['mtrl', 'graph'])
def test_a_step_moves_the_heads_by_beta_times_the_gradient(name):
  """Labels that the heads already give: all that acts is the penalty."""
  penalty = objectives()[name][0]._replace(weight=0.2)
  own = lambda row: (lambda key, z: {'kernel': jnp.asarray(row, jnp.float32)}, lambda p, z: z @ p['kernel'])
  rows = random_rows(3, 4).astype(np.float32)
  model = mtl.sharing.hard((lambda key, x: {}, lambda p, x: x), {t: own(row) for t, row in zip('abc', rows)})
  tasks = tuple(mtl.Task(t, mtl.losses.squared_error) for t in 'abc')
  x = jnp.eye(4)
  batch = {'inputs': x, 'labels': {t: x @ row for t, row in zip('abc', rows)}}
  optimizer, balancer = optax.sgd(0.5), mtl.balancing.equal()
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  expected = jax.jit(jax.grad(penalty.value))(state.params)
  step = mtl.make_train_step(model, tasks, optimizer, balancer, penalties=(penalty,))
  new, info = jax.jit(step)(state, batch)
  np.testing.assert_allclose(rows_of(new.params), rows - 0.5 * 0.2 * rows_of(expected), atol=1e-5)
  np.testing.assert_allclose(info.penalty, 0.2 * penalty.value(state.params), rtol=1e-5)
