"""R(f) against their formulas, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl
from mtljax.relations import TaskGraph, TaskTree

PARAMS = {'shared': {'k': jnp.array([[1.0, -2.0]]), 'b': jnp.array([3.0])}, 'tasks': {'a': {'k': jnp.array([-4.0])}}}

PAIR = TaskTree(('a', 'b'))
TREE_LASSO = mtl.penalties.tree_lasso(1.0, PAIR)
LAPLACIAN = mtl.penalties.laplacian(1.0, TaskGraph(('a', 'b'), {('a', 'b'): 1.0}))


def test_values():
  assert mtl.penalties.l2(1.0).value(PARAMS) == 0.5 * (1 + 4 + 9 + 16)
  assert mtl.penalties.l1(1.0).value(PARAMS) == 10
  assert mtl.penalties.l1(1.0, where='/k').value(PARAMS) == 7
  start = jax.tree.map(lambda x: x - 1, PARAMS)
  assert mtl.penalties.l2_sp(1.0, start, where='shared').value(PARAMS) == 1.5


def test_gradient_of_l2_is_weight_decay():
  grads = jax.grad(mtl.penalties.l2(1.0, where='shared').value)(PARAMS)
  np.testing.assert_array_equal(grads['shared']['k'], PARAMS['shared']['k'])
  assert grads['tasks']['a']['k'] == 0


@pytest.mark.parametrize('beta', [-1.0, float('nan'), float('inf'), '0.1', True, jnp.float32(-1)], ids=str)
@pytest.mark.parametrize(
  'make',
  [
    mtl.penalties.l2,
    mtl.penalties.l1,
    lambda beta: mtl.penalties.l2_sp(beta, PARAMS),
    lambda beta: mtl.penalties.tree_lasso(beta, TaskTree(('a', 'b'))),
    lambda beta: mtl.penalties.laplacian(beta, TaskGraph(('a', 'b'), {('a', 'b'): 1.0})),
    mtl.learned_relations.mtrl,
    lambda beta: mtl.learned_relations.adaptive_graph(beta, 1.0),
  ],
  ids=['l2', 'l1', 'l2_sp', 'tree_lasso', 'laplacian', 'mtrl', 'adaptive_graph'],
)
def test_a_beta_that_is_none_is_named(make, beta):
  with pytest.raises(mtl.InputError, match='beta: found .*, expected a number >= 0 or a schedule'):
    make(beta)
  assert float(make(0.5).weight) == 0.5 and callable(make(lambda count: 0.1).weight)
  jax.jit(lambda beta: make(beta).weight)(0.5)  # a traced one is not read


def test_bad_input_is_named():
  with pytest.raises(mtl.InputError, match=r"where='bias' matches no parameter"):
    mtl.penalties.l2(1.0, where='bias').value(PARAMS)
  with pytest.raises(mtl.InputError, match="no parameter 'tasks/a/k'"):
    mtl.penalties.l2_sp(1.0, {'shared': PARAMS['shared']}).value(PARAMS)
  with pytest.raises(mtl.InputError, match=r'shape \(2,\), expected \(1,\)'):
    mtl.penalties.l2_sp(1.0, {**PARAMS, 'tasks': {'a': {'k': jnp.zeros(2)}}}).value(PARAMS)


# Penalties of related tasks.

A = jnp.array([[3.0, 0.0], [0.0, 0.0], [1.0, 2.0]])  # f[features, outputs]
B = jnp.array([[4.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
C = jnp.array([[0.0, 12.0], [0.0, 0.0], [4.0, 0.0]])


def heads(**kernels):
  return {'shared': {'kernel': jnp.ones(7)}, 'tasks': {t: {'kernel': k, 'bias': k[0]} for t, k in kernels.items()}}


def test_tree_lasso_by_hand():
  tree = TaskTree((('a', 'b'), 'c'))
  params = heads(a=A, b=B, c=C)
  value = lambda **kw: mtl.penalties.tree_lasso(1.0, tree, eps=1e-9, **kw).value(params)
  np.testing.assert_allclose(value(weights={'root': 1.0}), 13 + 0 + 5, rtol=1e-6)  # |(3, 4, 12)|, |(1, 2, 2, 4)|
  np.testing.assert_allclose(value(weights={'root.0': 2.0}), 2 * (5 + 0 + 3), rtol=1e-6)
  leaves = {'a': 1.0, 'b': 0.5, 'c': 0.25}
  np.testing.assert_allclose(value(weights=leaves), (3 + 5**0.5) + 0.5 * (4 + 2) + 0.25 * (12 + 4), rtol=1e-6)
  # The paper's weights with s = 1/2: 1/2 at the root, 1/4 at (a, b) and its leaves, 1/2 at the leaf c.
  expected = 0.5 * 18 + 0.25 * 8 + 0.25 * (3 + 5**0.5 + 6) + 0.5 * 16
  np.testing.assert_allclose(value(), expected, rtol=1e-6)
  # Biases are the first rows (3, 0), (4, 0), (0, 12): every entry is a feature.
  np.testing.assert_allclose(value(where='bias', weights={'root': 1.0}), 5 + 12, rtol=1e-6)


def test_weights_of_the_tree_by_hand_and_their_balance():
  weights = mtl.penalties.tree_weights(TaskTree((('a', 'b'), 'c')), {'root': 0.8, 'root.0': 0.3})
  expected = {'root': 0.8, 'root.0': 0.2 * 0.3, 'a': 0.2 * 0.7, 'b': 0.2 * 0.7, 'c': 0.2}
  assert weights == pytest.approx(expected)
  tree = TaskTree((('a', ('b', 'c', 'd')), ('e', 'f'), 'g'))
  draw = np.random.default_rng(0)
  inner = [node.label for node in tree.nodes if len(node.tasks) > 1]
  for joint in (0.0, 0.3, 1.0, dict(zip(inner, draw.uniform(size=len(inner))))):
    weights = mtl.penalties.tree_weights(tree, joint)
    for task in tree.leaves:
      *above, leaf = tree.lineage(task)
      assert sum(weights[node.label] for node in above) + weights[task] == pytest.approx(1)
  assert mtl.penalties.tree_weights(TaskTree('a')) == {'a': 1.0}


def test_tree_lasso_is_smooth_at_zero_and_pulls_a_group_as_one():
  tree = TaskTree((('a', 'b'), 'c'))
  penalty = mtl.penalties.tree_lasso(1.0, tree, weights={'root.0': 1.0})
  zero = jax.tree.map(jnp.zeros_like, heads(a=A, b=B, c=C))
  assert penalty.value(zero) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(penalty.value)(zero)))
  grads = jax.grad(penalty.value)(heads(a=A, b=B, c=C))['tasks']
  np.testing.assert_allclose(grads['a']['kernel'], A / np.array([[5.0], [1.0], [3.0]]), rtol=1e-5)
  np.testing.assert_allclose(grads['b']['kernel'], B / np.array([[5.0], [1.0], [3.0]]), rtol=1e-5)
  assert not np.any(grads['c']['kernel']) and not np.any(grads['a']['bias'])


def test_tree_lasso_takes_heads_of_different_width():
  params = heads(a=A, b=B[:, :1])
  value = mtl.penalties.tree_lasso(1.0, TaskTree(('a', 'b')), weights={'root': 1.0}).value(params)
  np.testing.assert_allclose(value, 5 + 5**0.5, rtol=1e-5)  # |(3, 0, 4)| + |(1, 2, 0)|


def test_laplacian_by_hand():
  graph = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.5, ('b', 'c'): 2.0})
  params = heads(a=A, b=B, c=C)
  value = mtl.penalties.laplacian(1.0, graph).value(params)
  assert value == 0.5 * (1 + 1) + 2.0 * (16 + 144 + 16 + 4)
  stacked = np.stack([A, B, C]).reshape(3, -1).T  # W f[P, T]
  np.testing.assert_allclose(value, np.trace(stacked @ graph.laplacian() @ stacked.T), rtol=1e-6)
  grads = jax.grad(mtl.penalties.laplacian(1.0, graph).value)(params)
  expected = 2 * np.einsum('st,tij->sij', graph.laplacian(), np.stack([A, B, C]))
  np.testing.assert_allclose(np.stack([grads['tasks'][t]['kernel'] for t in 'abc']), expected, rtol=1e-6)
  assert not np.any(grads['shared']['kernel']) and not np.any(grads['tasks']['a']['bias'])


def test_laplacian_of_a_directed_graph_is_that_of_the_mean_of_both_directions():
  params = heads(a=A, b=B, c=C)
  directed = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.5, ('b', 'a'): 1.5, ('b', 'c'): 2.0}, directed=True)
  value = mtl.penalties.laplacian(1.0, directed).value(params)
  assert value == 0.5 * (0.5 + 1.5) * 2 + 0.5 * 2.0 * 180
  stacked = np.stack([A, B, C]).reshape(3, -1).T
  np.testing.assert_allclose(value, np.trace(stacked @ directed.laplacian() @ stacked.T), rtol=1e-6)


def test_laplacian_is_zero_for_equal_heads():
  graph = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.3, ('b', 'c'): 0.7, ('a', 'c'): 0.1})
  kernel = jax.random.normal(jax.random.key(0), (50, 20))
  assert mtl.penalties.laplacian(1.0, graph).value(heads(a=kernel, b=kernel, c=kernel)) == 0
  assert mtl.penalties.laplacian(1.0, graph).value(heads(a=kernel, b=kernel, c=kernel + 1e-3)) > 0


def test_a_net_of_some_tasks_has_the_part_of_these():
  graph = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.5, ('b', 'c'): 2.0})
  laplacian = mtl.penalties.laplacian(1.0, graph).value
  assert laplacian(heads(a=A, b=B)) == 0.5 * (1 + 1) and laplacian(heads(a=A)) == laplacian(heads(a=A, c=C)) == 0
  lasso = mtl.penalties.tree_lasso(1.0, TaskTree((('a', 'b'), 'c'))).value
  np.testing.assert_allclose(lasso(heads(a=A)), 3 + 5**0.5, rtol=1e-5)  # weights of the nodes above a sum to 1
  np.testing.assert_allclose(
    lasso(heads(a=A, c=C)), 0.5 * (153**0.5 + 21**0.5) + 0.5 * (3 + 5**0.5) + 0.5 * (12 + 4), rtol=1e-5
  )


@pytest.mark.parametrize(
  'penalty, params, message',
  [
    (LAPLACIAN, heads(a=A, b=B[:2]), r"^laplacian: 'tasks/b/kernel' has shape \(2, 2\), .* 'tasks/a/kernel', \(3, 2\)"),
    (LAPLACIAN, heads(a=A, b=B[:, :1]), r"^laplacian: 'tasks/b/kernel' has shape \(3, 1\)"),
    (
      TREE_LASSO,
      heads(a=A, b=B[:2]),
      r"^tree_lasso: 'tasks/b/kernel' has shape \(2, 2\), .* 'tasks/a/kernel', \(3, 2\)",
    ),
    (LAPLACIAN, heads(a=A, c=C), r"^laplacian tasks: found \['a', 'b'\], expected \['a', 'c'\]"),
    (TREE_LASSO, heads(a=A, b=B, c=C), r"^tree_lasso tasks: .* missing \['c'\]"),
    (
      LAPLACIAN,
      {'tasks': {'a': {'kernel': A}, 'b': {'head': {'kernel': B}}}},
      r"^laplacian where='kernel': found the parameters \['kernel'\] of 'a' and \['head/kernel'\] of 'b'",
    ),
    (LAPLACIAN, {'tasks': {'a': {'w': A}, 'b': {'w': B}}}, r"where='kernel' matches no parameter, found \['w'\]"),
  ],
)
def test_heads_that_do_not_compare_are_named(penalty, params, message):
  with pytest.raises(mtl.InputError, match=message):
    penalty.value(params)


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: mtl.penalties.tree_lasso(1.0, ('a', 'b')),
      r"^tree_lasso tree: found \('a', 'b'\), expected an mtljax.rela",
    ),
    (lambda: mtl.penalties.tree_lasso(1.0, PAIR, eps=0), '^tree_lasso eps: found 0, expected a number > 0'),
    (lambda: mtl.penalties.tree_lasso(1.0, PAIR, weights={'root.0': 1}), r"^tree_lasso weights: .* unknown \['root.0'"),
    (lambda: mtl.penalties.tree_lasso(1.0, PAIR, weights={'a': -1}), "^tree_lasso weights: found -1 for 'a'"),
    (lambda: mtl.penalties.tree_weights(PAIR, 1.5), "^tree_weights joint: found 1.5 for 'root'"),
    (lambda: mtl.penalties.tree_weights(PAIR, {}), r"^tree_weights joint: .* missing \['root'\]"),
    (
      lambda: mtl.penalties.laplacian(1.0, {('a', 'b'): 1.0}),
      '^laplacian graph: found .* expected an mtljax.relations.TaskGraph',
    ),
  ],
)
def test_bad_relations_are_named(call, message):
  with pytest.raises(mtl.InputError, match=message):
    call()


def test_l2_sp_outlives_the_donation_of_its_start():
  import problems

  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  penalty = mtl.penalties.l2_sp(0.1, state.params, where='shared')
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(penalty,)))
  state, _ = step(state, problems.batch())
  state, info = step(state, problems.batch(size=4))  # another shape: a new trace
  assert info.penalty > 0


@pytest.mark.parametrize('make', [mtl.penalties.l1, mtl.penalties.l2, mtl.learned_relations.mtrl])
def test_a_pattern_that_is_none_is_named(make):
  with pytest.raises(mtl.InputError, match=r"where: found '\(', expected a regular expression of paths"):
    make(1.0, '(').value({'shared': {}, 'tasks': {'a': {'w': jnp.ones(2)}, 'b': {'w': jnp.ones(2)}}})
