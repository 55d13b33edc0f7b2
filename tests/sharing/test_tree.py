"""Branched networks: identities, values by hand, who runs and reaches what, what they refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import counting_module, forward, pair

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.relations import TaskTree
from mtljax.sharing.stages import chained

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (5, 3))
HEADS = {'b': pair(2), 'a': pair(3), 'c': pair(1)}
DENSE = [pair(4), pair(4), pair(4)]
SCALE = (lambda key, x: {'scale': jnp.ones(())}, lambda params, x: params['scale'] * x)  # a stage of one number
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)  # a head that hands on what it reads
UNEVEN = TaskTree((('a', 'b'), 'c'))


def start(model, tasks):
  return model.init(KEY, dict.fromkeys(tasks, X))


def outputs_of(model, params, state, tasks):
  return jax.jit(lambda p, s: forward(model, p, s, dict.fromkeys(tasks, X))[0])(params, state)


@pytest.mark.parametrize(
  'heads, tree, cuts',
  [
    ({'a': HEADS['a']}, TaskTree('a'), None),
    ({'a': HEADS['a']}, TaskTree(('a',)), ()),
    (HEADS, TaskTree(('a', 'b', 'c')), None),
    (HEADS, TaskTree(('a', 'b', 'c')), (2,)),
    (HEADS, None, None),
  ],
  ids=['one leaf', 'one leaf of a root', 'star', 'star cut after the last stage', 'no tree'],
)
def test_a_tree_of_one_leaf_is_a_single_task_net_and_a_star_hard_sharing(heads, tree, cuts):
  model = sharing.tree(DENSE, heads, tree, cuts=cuts)
  params, state = start(model, heads)
  assert list(params['shared']) == ['root'] and all(set(own) == {'head'} for own in params['tasks'].values())
  as_hard = {'shared': params['shared']['root'], 'tasks': {t: own['head'] for t, own in params['tasks'].items()}}
  hard_state = {'shared': dict.fromkeys('012', {}), 'tasks': dict.fromkeys(heads, {})}
  expected = outputs_of(sharing.hard(chained(DENSE), heads), as_hard, hard_state, heads)
  for task, y in outputs_of(model, params, state, heads).items():
    np.testing.assert_array_equal(y, expected[task])


def test_products_of_stages_by_hand():
  heads = dict.fromkeys('abcde', READ)
  tree = TaskTree(((('a', 'b'), 'c'), ('d', 'e')))
  model = sharing.tree([SCALE] * 5, heads, tree, cuts=(1, 2, 3))
  params, state = start(model, heads)
  values = {
    'root': {'0': 2.0, '1': 3.0},
    'root.0': {'2': 5.0},
    'root.0.0': {'3': 7.0},
    'root.1': {'2': 11.0},
    'a': {'4': 13.0},
    'b': {'4': 17.0},
    'c': {'3': 19.0, '4': 23.0},  # a leaf above the others runs their blocks too
    'd': {'3': 29.0, '4': 31.0},
    'e': {'3': 37.0, '4': 41.0},
  }
  own = {name: {stage: {'scale': jnp.float32(v)} for stage, v in block.items()} for name, block in values.items()}
  shared = {name: block for name, block in own.items() if name.startswith('root')}
  tasks = {task: {'stages': own[task], 'head': {'w': jnp.ones(())}} for task in heads}
  given = {'shared': shared, 'tasks': tasks}
  assert jax.tree.structure(given) == jax.tree.structure(params)
  factors = {'a': 2 * 3 * 5 * 7 * 13, 'b': 2 * 3 * 5 * 7 * 17, 'c': 2 * 3 * 5 * 19 * 23, 'd': 6 * 11 * 29 * 31}
  factors['e'] = 6 * 11 * 37 * 41
  for task, y in outputs_of(model, given, state, heads).items():
    np.testing.assert_allclose(y, factors[task] * X, rtol=1e-6)


def test_cuts_are_the_last_stages_unless_given():
  names = lambda tree: {name: sorted(own.get('stages', ()) if 'head' in own else own) for name, own in tree.items()}
  shapes = lambda model: jax.eval_shape(lambda key: model.init(key, dict.fromkeys(HEADS, X)), KEY)[0]
  params = shapes(sharing.tree(trunks.MLP((4,) * 4), HEADS, UNEVEN))
  assert names(params['shared']) == {'root': ['layer_0', 'layer_1', 'layer_2'], 'root.0': ['layer_3']}
  assert names(params['tasks']) == {'a': [], 'b': [], 'c': ['layer_3']}
  model = sharing.tree(trunks.MLP((4,) * 4), HEADS, '(c, (b, a))', cuts=('layer_0', 'layer_1'))
  params = shapes(model)
  assert names(params['shared']) == {'root': ['layer_0'], 'root.0': ['layer_1']}
  assert names(params['tasks']) == {t: ['layer_1'] * (t == 'c') + ['layer_2', 'layer_3'] for t in 'abc'}


def test_nodes_are_drawn_anew_and_do_not_depend_on_the_order_of_children():
  heads = dict.fromkeys('abcd', pair(2))
  model = sharing.tree(DENSE, heads, (('a', 'b'), ('c', 'd')), cuts=(0, 1))
  params, state = start(model, heads)
  left, right = params['shared']['root.0']['1']['w'], params['shared']['root.1']['1']['w']
  assert np.all(left != right)
  assert np.all(params['tasks']['a']['stages']['2']['w'] != params['tasks']['b']['stages']['2']['w'])
  other = sharing.tree(DENSE, heads, (('d', 'c'), ('b', 'a')), cuts=(0, 1))
  jax.tree.map(np.testing.assert_array_equal, start(other, heads), (params, state))


def test_a_task_reaches_the_nodes_above_it_only():
  heads = dict.fromkeys('abcd', pair(2))
  model = sharing.tree(DENSE, heads, (('a', 'b'), ('c', 'd')))
  params, state = start(model, heads)
  grads = jax.grad(lambda p: jnp.sum(outputs_of(model, p, state, heads)['a'] ** 2))(params)
  reached = {node: any(np.any(leaf) for leaf in jax.tree.leaves(grad)) for node, grad in grads['shared'].items()}
  assert reached == {'root': True, 'root.0': True, 'root.1': False}


def test_only_the_nodes_above_the_tasks_asked_for_are_run():
  heads = dict.fromkeys('abcd', pair(2))
  model = sharing.tree([counting_module(4), counting_module(4)], heads, (('a', 'b'), ('c', 'd')))
  params, state = start(model, heads)
  mode = dict(train=True, key=KEY)
  features, shared = model.trunk(params['shared'], state['shared'], X, tasks=('b',), **mode)
  counts = {node: [int(x) for x in jax.tree.leaves(blocks)] for node, blocks in shared.items()}
  assert counts == {'root': [1], 'root.0': [1], 'root.1': [0]} and list(features) == ['root.0']
  both, _ = model.trunk(params['shared'], state['shared'], X, tasks=tuple('abcd'), **mode)
  assert list(both) == ['root.0', 'root.1']
  np.testing.assert_array_equal(both['root.0'], features['root.0'])


def test_batch_norm_of_a_node_sees_the_inputs_of_its_own_tasks():
  heads = dict.fromkeys('abc', nn.Dense(1))
  inputs = {'a': X, 'b': X + 1, 'c': X + 100}
  stems = {task: nn.Dense(3) for task in heads}
  model = sharing.tree([nn.Dense(4), trunks.MLP((4,), batch_norm=True)], heads, UNEVEN, stems=stems)
  params, state = model.init(KEY, inputs)
  _, with_c = forward(model, params, state, inputs, train=True, key=KEY)
  _, without = forward(model, params, state, {t: inputs[t] for t in 'ab'}, train=True, key=KEY)
  jax.tree.map(np.testing.assert_array_equal, with_c['shared'], without['shared'])
  moved = jax.tree.map(lambda new, old: np.any(new != old), with_c['shared'], state['shared'])
  assert all(jax.tree.leaves(moved['root.0'])) and list(moved) == ['root', 'root.0']


def test_the_gramian_is_over_all_nodes():
  heads = dict.fromkeys('abcd', pair(1))
  model = sharing.tree(DENSE[:2], heads, (('a', 'b'), ('c', 'd')))
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in 'abcd')
  labels = {task: jnp.full((5, 1), float(i)) for i, task in enumerate('abcd')}
  params, state = start(model, heads)
  balancer = mtl.balancing.mgda()
  found = jax.jit(
    lambda params: mtl.gradients.task_gradients(
      *(model, tasks, balancer, params, state, balancer.init(jnp.zeros((4, 4))), {'inputs': X, 'labels': labels}),
      key=KEY,
    )
  )(params)

  def losses(shared):
    outputs = outputs_of(model, {**params, 'shared': shared}, state, heads)
    return jnp.stack([mtl.losses.squared_error(outputs[task], labels[task]).mean() for task in 'abcd'])

  def products_of(row):
    return sum(flat @ flat.T for flat in (np.asarray(leaf).reshape(4, -1) for leaf in jax.tree.leaves(row)))

  rows = jax.jit(jax.jacrev(losses))(params['shared'])
  products = {node: products_of(row) for node, row in rows.items()}
  assert not np.any(products['root.0'][2:]) and not np.any(products['root.1'][:2])
  np.testing.assert_allclose(found.gramian, sum(products.values()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'args, keywords, message',
  [
    (
      (DENSE, HEADS, TaskTree(('a', 'b'))),
      {},
      r"^tree leaves: found \['a', 'b'\], expected \['a', 'b', 'c'\]: missing",
    ),
    (
      (DENSE, HEADS, TaskTree(('a', 'b', 'd', 'c'))),
      {},
      r"^tree leaves: .* expected \['a', 'b', 'c'\]: unknown \['d'\]",
    ),
    ((DENSE, HEADS, '((a, b), c'), {}, r"^TaskTree.parse: found '\(\(a, b\), c'"),
    ((DENSE, HEADS, 3), {}, '^TaskTree: found 3'),
    ((DENSE, HEADS, UNEVEN), {'cuts': (0,)}, r'^cuts: found \(0,\), expected 2 different ones, the depth of the tree'),
    ((DENSE, HEADS, UNEVEN), {'cuts': (0, 0)}, r"^cuts: found '0' twice in \(0, 0\)"),
    ((DENSE, HEADS, UNEVEN), {'cuts': ()}, r'^cuts: found \(\), expected 2 different ones'),
    ((DENSE, HEADS, UNEVEN), {'cuts': (0, 1, 2)}, r'^cuts: found \(0, 1, 2\), expected 2 different ones'),
    ((DENSE, HEADS, UNEVEN), {'cuts': (0, 3)}, '^cuts: found 3, which the trunk does not have, .* positions 0 to 2'),
    ((DENSE, {'a': pair(2)}, TaskTree('a')), {'cuts': (0,)}, r'^cuts: found \(0,\), expected 0 different ones'),
    ((DENSE[:1], HEADS, UNEVEN), {}, r"^tree: found depth 2 and the stages \['0'\], expected a depth of at most 1"),
    ((nn.Dense(3), HEADS, UNEVEN), {}, '^stages: found Dense'),
    ((DENSE, {}, UNEVEN), {}, '^heads: found {}'),
  ],
)
def test_what_is_wrong_is_named(args, keywords, message):
  with pytest.raises(InputError, match=message):
    sharing.tree(*args, **keywords)
