"""Learning to branch: weights by hand, schedules, the tree that is read off, a toy whose groups are found."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharing_cases import forward, pair, perturbed

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.relations import TaskTree
from mtljax.sharing import _clock, branches, learned_tree, learning_to_branch
from mtljax.sharing.learning_to_branch import weights

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
BOTH = {'a': X, 'b': X}
SCALE = (lambda key, x: {'c': jnp.ones(())}, lambda params, x: params['c'] * x)
SCALES = {'a': SCALE, 'b': SCALE}


def scales(layers=2, **options):
  """A net of numbers: node n of layer l multiplies by 2^l 3^n, so an output tells its path; what heads read is x."""
  model = learning_to_branch([SCALE] * layers, SCALES, **options)
  params, state = model.init(KEY, BOTH)
  for layer, nodes in params['shared']['nodes'].items():
    for node in nodes:
      nodes[node][layer]['c'] = jnp.asarray(2.0 ** int(layer) * 3.0 ** int(node))
  return model, params, state


def run(model, params, state, **mode):
  outputs, new = forward(model, params, state, BOTH, **mode)
  return {task: float((y / X).mean()) for task, y in outputs.items()}, new


# Weights.


def test_soft_weights_are_the_gumbel_softmax():
  logits, noise = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 3.0, -2.0])
  e = np.exp(np.array([1.5, 2.0, 0.0]) / 0.5)
  np.testing.assert_allclose(weights(logits, noise, 0.5, False), e / e.sum(), rtol=1e-6)


def test_hard_weights_are_the_largest_with_the_derivative_of_the_soft():
  logits, noise = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 3.0, -2.0])
  assert weights(logits, noise, 0.5, True).tolist() == [0.0, 1.0, 0.0]
  assert weights(logits, None, 0.5, False).tolist() == [0.0, 0.0, 1.0]  # no noise: evaluation, always hard
  hard, soft = (jax.jacobian(lambda a, h=h: weights(a, noise, 0.5, h))(logits) for h in (True, False))
  np.testing.assert_array_equal(hard, soft)
  s = np.asarray(weights(logits, noise, 0.5, False))
  np.testing.assert_allclose(soft, (np.diag(s) - np.outer(s, s)) / 0.5, atol=1e-6)


def test_a_soft_choice_mixes_the_nodes_with_the_noise_of_its_key():
  model, params, state = scales(hard=False, temperature=0.7)
  params['shared']['choices']['1']['logits'] = jnp.array([[1.0, -1.0], [0.5, 0.25]])
  z, _ = model.trunk(params['shared'], state['shared'], X, tasks=('a', 'b'), train=True, key=KEY)
  key = mtl.arrays.name_key(KEY, 'choices/1')
  s = (np.array([[1.0, -1.0], [0.5, 0.25]]) + np.asarray(jax.random.gumbel(key, (2, 2)))) / 0.7
  mixed = (np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)) @ [1.0, 3.0]  # of the nodes of layer 0
  np.testing.assert_allclose((z / X[:, None]).mean(axis=(0, 2)), mixed * [2.0, 6.0], rtol=1e-5)


# Evaluation, warm-up, the clock.


def test_evaluation_takes_the_likeliest_path():
  model, params, state = scales()
  params['shared']['choices']['1']['logits'] = jnp.array([[0.0, 0.1], [0.1, 0.0]])  # 0 reads 1, 1 reads 0
  params['tasks']['a']['choice']['logits'] = jnp.array([1.0, 0.0])
  params['tasks']['b']['choice']['logits'] = jnp.array([0.0, 1.0])
  assert run(model, params, state)[0] == pytest.approx({'a': 3 * 2, 'b': 1 * 6})
  assert branches(params) == [{'a': 1, 'b': 0}, {'a': 0, 'b': 1}]


def test_hard_training_takes_a_path_too_and_draws_it_anew():
  model, params, state = scales()
  step = jax.jit(lambda key: forward(model, params, state, BOTH, train=True, key=key)[0]['a'] / X)
  drawn = {round(float(step(jax.random.key(seed)).mean()), 3) for seed in range(24)}
  assert drawn == {2.0, 6.0, 18.0}  # 1*2, 3*2 and 1*6, 3*6


def test_branches_are_equal_while_warming_up_in_training_and_evaluation():
  model, params, state = scales(warmup=2)
  params['tasks']['a']['choice']['logits'] = jnp.array([5.0, 0.0])
  equal = {'a': 2 * 4.0, 'b': 2 * 4.0}  # means of 1 and 3, of 2 and 6
  for _ in range(2):
    assert run(model, params, state)[0] == pytest.approx(equal)
    outputs, state = run(model, params, state, train=True, key=KEY)
    assert outputs == pytest.approx(equal)
  assert run(model, params, state)[0] == pytest.approx({'a': 2.0, 'b': 2.0})
  assert {int(n) for n in jax.tree.leaves(state)} == {2}


def test_the_temperature_is_read_at_the_training_passes_of_the_task():
  seen = lambda n: jnp.where(n < 1, 1e6, 1.0)  # at first so hot that the mixture is even
  model, params, state = scales(hard=False, temperature=seen)
  first, state = run(model, params, state, train=True, key=KEY)
  assert first == pytest.approx({'a': 8.0, 'b': 8.0}, rel=1e-4)
  second, _ = run(model, params, state, train=True, key=KEY)
  assert abs(second['a'] - 8.0) > 0.1


def test_a_task_that_was_not_there_has_a_clock_that_stands():
  clock = _clock.tick(_clock.start(('b', 'a')), ('b',), True)
  assert {task: int(n) for task, n in clock.items()} == {'a': 0, 'b': 1}
  assert int(_clock.step(clock, ('a',))) == 0 and int(_clock.step(clock, ('a', 'b'))) == 1
  assert _clock.tick(clock, ('b',), False) == clock


def test_the_default_temperature_falls_with_the_square_root_of_the_steps():
  tau = _clock.temperature('temperature', None, 10.0)
  np.testing.assert_allclose([tau(n) for n in (0, 24, 399, 10**6)], [10.0, 2.0, 0.5, 0.5])


# Where parameters live.


def test_one_node_per_layer_is_hard_sharing_without_logits_or_clock():
  heads = {'a': nn.Dense(2), 'b': pair(3)}
  model = learning_to_branch(trunks.MLP((6, 5)), heads, width=1)
  params, state = model.init(KEY, BOTH)
  params = perturbed(params)
  assert jax.tree.leaves(state) == [] and set(params['shared']) == {'nodes'} and set(params['tasks']['a']) == {'head'}
  nodes = params['shared']['nodes']
  plain = {
    'shared': {f'Dense_{i}': nodes[str(i)]['0'][f'layer_{i}']['Dense_0'] for i in range(2)},
    'tasks': {task: own['head'] for task, own in params['tasks'].items()},
  }
  expected, _ = forward(
    sharing.hard(trunks.MLP((6, 5)), heads), plain, {'shared': {}, 'tasks': {'a': {}, 'b': {}}}, BOTH
  )
  found, _ = forward(model, params, state, BOTH)
  for task in heads:
    np.testing.assert_allclose(found[task], expected[task], rtol=1e-6)
  assert learned_tree(params) == TaskTree(('a', 'b'))


def test_layers_end_at_cuts_and_every_task_has_a_last_choice_of_its_own():
  model = learning_to_branch([pair(4), pair(5), pair(6)], {'a': pair(2), 'b': pair(2)}, cuts=(1,), width=(2, 3))
  params = jax.eval_shape(model.init, KEY, BOTH)[0]
  shared = params['shared']
  assert {layer: (len(nodes), sorted(nodes['0'])) for layer, nodes in shared['nodes'].items()} == {
    '0': (2, ['0', '1']),
    '1': (3, ['2']),
  }
  assert {layer: part['logits'].shape for layer, part in shared['choices'].items()} == {'1': (3, 2)}
  assert params['tasks']['a']['choice']['logits'].shape == (3,)


def test_bf16_stays_bf16_in_the_nodes_and_logits_are_float32():
  model = learning_to_branch(trunks.MLP((4, 4), dtype=jnp.bfloat16), {'a': nn.Dense(2), 'b': nn.Dense(2)}, hard=False)
  params, state = model.init(KEY, BOTH)
  z, _ = model.trunk(params['shared'], state['shared'], X, tasks=('a', 'b'), train=True, key=KEY)
  assert z.dtype == jnp.bfloat16 and z.shape == (4, 2, 4)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}


# The tree.


def tree_params(stem=False):
  """Four tasks on layers of 2, 3 and 3 nodes: {a, c} part from {b, d} at once, b from d at the last layer."""
  choose = lambda *parents: jax.nn.one_hot(jnp.array(parents), 3)
  own = {'a': choose(0), 'b': choose(1), 'c': choose(0), 'd': choose(2)}
  own = {task: {'choice': {'logits': logits[0]}, 'head': {}} for task, logits in own.items()}
  return {
    'shared': {
      'nodes': {'0': {'0': {}, '1': {}}, '1': {'0': {}, '1': {}, '2': {}}, '2': {'0': {}, '1': {}, '2': {}}},
      'choices': {'1': {'logits': choose(1, 0, 0)[:, :2]}, '2': {'logits': choose(0, 2, 2)}},
    },
    'tasks': {task: {'stem': {}, 'head': part} for task, part in own.items()} if stem else own,
  }


@pytest.mark.parametrize('stem', [False, True])
def test_the_tree_of_given_choices(stem):
  params = tree_params(stem)
  assert branches(params) == [
    {'a': 1, 'b': 0, 'c': 1, 'd': 0},
    {'a': 0, 'b': 2, 'c': 0, 'd': 2},
    {'a': 0, 'b': 1, 'c': 0, 'd': 2},
  ]
  assert learned_tree(params) == TaskTree((('a', 'c'), ('b', 'd')))


def test_tasks_that_part_at_different_layers_are_at_different_depths():
  params = tree_params()
  params['shared']['choices']['1']['logits'] = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # all from node 0
  assert learned_tree(params) == TaskTree((('a', 'c'), ('b', 'd')))
  params['tasks']['c']['choice']['logits'] = jnp.array([0.0, 1.0, 0.0])
  assert learned_tree(params) == TaskTree(('a', ('d', ('b', 'c'))))


def test_the_tree_of_other_parameters_is_refused():
  with pytest.raises(InputError, match="found no 'shared/nodes', expected the parameters of `learning_to_branch`"):
    branches({'shared': {'kernel': X}, 'tasks': {}})
  params = tree_params()
  params['tasks']['b'] = {'student': params['tasks']['b']}  # of `distill`
  with pytest.raises(InputError, match=r"found \['student'\] in task 'b', expected the 'choice' of a last node"):
    branches(params)


def test_related_tasks_come_to_share_a_branch():
  """Nodes of one unit: tasks of one group need the same number, and no node can serve both groups."""
  x = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
  first, second = np.tanh(x[:, :1] + x[:, 1:2]), np.tanh(x[:, 2:3] - x[:, 3:])
  batch = {'inputs': x, 'labels': {'a': first, 'b': second, 'c': -first, 'd': 2 * second}}
  names = tuple(batch['labels'])
  model = learning_to_branch(trunks.MLP((1,), activation=jnp.tanh), {t: nn.Dense(1) for t in names}, width=2)
  tasks = tuple(mtl.Task(t, mtl.losses.squared_error) for t in names)
  optimizer = mtl.task_optimizer(optax.adam(2e-2), {t: optax.adam(2e-2) for t in names})
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.equal(), batch, KEY)
  step = mtl.make_train_step(model, tasks, optimizer, mtl.balancing.equal())
  state = jax.jit(lambda s: jax.lax.scan(lambda s, _: (step(s, batch)[0], None), s, length=400)[0])(state)
  assert learned_tree(state.params) == TaskTree((('a', 'c'), ('b', 'd')))


# Bad input.


@pytest.mark.parametrize(
  'options, message',
  [
    ({'cuts': ('layer_5',)}, "cuts: found 'layer_5', which the trunk does not have"),
    ({'width': 0}, 'width: found 0, expected a whole number of nodes >= 1, or 2 of them, one per layer'),
    ({'width': (2, 2, 2)}, r'width: found \(2, 2, 2\), expected .* or 2 of them'),
    ({'width': (2, 1.5)}, r'width: found \(2, 1.5\)'),
    ({'temperature': 0.0}, 'temperature: found 0.0, expected a number > 0, an optax schedule or None'),
    ({'warmup': -1}, 'warmup: found -1, expected a whole number of steps >= 0'),
    ({'hard': 'yes'}, "hard: found 'yes', expected True or False"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(InputError, match=message):
    learning_to_branch(trunks.MLP((4, 4)), {'a': nn.Dense(2), 'b': nn.Dense(2)}, **options)


def test_layers_without_an_array_are_refused():
  model = learning_to_branch([(lambda key, x: {}, lambda params, x: (x, x))], SCALES)
  with pytest.raises(InputError, match=r"a layer ends with .* of '0', expected one array \[B, ..., C\]"):
    jax.eval_shape(model.init, KEY, BOTH)


def test_a_schedule_that_falls_to_zero_stays_finite():
  tau = _clock.temperature('temperature', optax.linear_schedule(1.0, 0.0, 10), 10.0)
  np.testing.assert_allclose([tau(jnp.int32(n)) for n in (0, 5, 10, 99)], [1.0, 0.5, 1e-3, 1e-3], rtol=1e-6)
  draw = lambda logits: weights(logits, jnp.array([0.3, 0.1]), tau(jnp.int32(10)), False)
  found, slopes = draw(jnp.array([0.0, 0.1])), jax.jacrev(draw)(jnp.array([0.0, 0.1]))
  np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-6)
  assert np.all(np.isfinite(slopes))
