"""Message passing between tasks: values by hand, directions, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import forward, pair, perturbed

from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.relations import TaskGraph
from mtljax.sharing.stages import chained

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (5, 3))
HEADS = {'b': pair(2), 'a': pair(3), 'c': pair(1)}
DENSE = [pair(4), pair(4), pair(4)]
SCALE = (lambda key, x: {'scale': jnp.ones(())}, lambda params, x: params['scale'] * x)  # a stage of one number
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)  # a head that hands on what it reads
CHAIN = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 2.0, ('b', 'c'): 1.0}, directed=True)


def start(model, tasks='abc', x=X):
  return model.init(KEY, dict.fromkeys(tasks, x))


def outputs_of(model, params, state, tasks='abc', x=X):
  return jax.jit(lambda p, s: forward(model, p, s, dict.fromkeys(tasks, x))[0])(params, state)


def test_messages_by_hand():
  into_b = TaskGraph(('c', 'b', 'a'), {('a', 'b'): 2.0, ('c', 'b'): 1.0}, directed=True)
  model = sharing.graph([SCALE], dict.fromkeys('abc', READ), into_b)
  x = jnp.array([[8.0, 16.0]])
  params, state = start(model, x=x)
  assert jax.tree.map(jnp.shape, params['shared']['units']) == {'0': {'kernel': (2, 2)}}
  scales = {'a': 1.0, 'b': 10.0, 'c': 100.0}
  kernel = jnp.array([[0.0, 3.0], [1.0, 0.0]])  # x M = (x_1, 3 x_0)
  shared = {
    'streams': {task: {'0': {'scale': jnp.float32(scale)}} for task, scale in scales.items()},
    'units': {'0': {'kernel': kernel}},
  }
  found = outputs_of(model, {**params, 'shared': shared}, state, x=x)
  # b receives (2 (16, 24) + 1 (1600, 2400)) / (1 + 3) = (408, 612).
  expected = {'a': [[8.0, 16.0]], 'b': [[80.0 + 408, 160.0 + 612]], 'c': [[800.0, 1600.0]]}
  assert {task: y.tolist() for task, y in found.items()} == expected


def test_an_undirected_edge_passes_both_ways_at_once():
  model = sharing.graph([SCALE, SCALE], dict.fromkeys('ab', READ), {('a', 'b'): 1.0}, cuts=(1,))
  x = jnp.array([[1.0]])
  params, state = start(model, 'ab', x)
  assert list(params['shared']['units']) == ['1']
  streams = {t: {s: {'scale': jnp.float32(v)} for s in '01'} for t, v in {'a': 1.0, 'b': 3.0}.items()}
  shared = {'streams': streams, 'units': {'1': {'kernel': jnp.full((1, 1), 4.0)}}}
  found = outputs_of(model, {**params, 'shared': shared}, state, 'ab', x)
  assert found['a'] == 1 + 0.5 * 4 * 9 and found['b'] == 9 + 0.5 * 4 * 1


def test_at_the_start_and_without_edges_they_are_single_task_nets():
  started = sharing.graph(DENSE, HEADS, CHAIN)
  params, state = start(started)
  isolated = sharing.graph(DENSE, HEADS, {})
  alone, _ = start(isolated)
  assert alone['shared']['units'] == {'0': {}, '1': {}, '2': {}}
  jax.tree.map(np.testing.assert_array_equal, alone['shared']['streams'], params['shared']['streams'])
  for task in HEADS:
    single = sharing.hard(chained(DENSE), {task: HEADS[task]})
    given = {'shared': params['shared']['streams'][task], 'tasks': params['tasks']}
    expected = outputs_of(single, given, {'shared': dict.fromkeys('012', {}), 'tasks': state['tasks']}, task)[task]
    np.testing.assert_array_equal(outputs_of(started, params, state)[task], expected)
    np.testing.assert_array_equal(outputs_of(isolated, alone, state)[task], expected)


@pytest.mark.parametrize(
  'cuts, reached',
  [
    (None, {'a': 'a', 'b': 'ab', 'c': 'abc'}),
    ((1,), {'a': 'a', 'b': 'ab', 'c': 'bc'}),  # one hop a cut: a is two away from c
  ],
)
def test_nothing_flows_against_an_edge_and_a_cut_is_a_hop(cuts, reached):
  model = sharing.graph(DENSE, HEADS, CHAIN, cuts=cuts)
  params, state = start(model)

  @jax.jit
  @jax.jacrev
  def jacobian(params):
    return {task: y.sum() for task, y in outputs_of(model, params, state).items()}

  rows = jacobian(perturbed(params))
  found = {}
  for task, row in rows.items():
    moved = {s: any(np.any(leaf) for leaf in jax.tree.leaves(grad)) for s, grad in row['shared']['streams'].items()}
    found[task] = ''.join(sorted(source for source, any_of in moved.items() if any_of))
  assert found == reached


def test_an_overflow_does_not_flow_against_an_edge():
  model = sharing.graph(DENSE, HEADS, CHAIN)
  params, state = start(model)
  params = perturbed(params)
  broken = jax.tree.map(lambda x: x, params)
  broken['shared']['streams']['b']['1']['w'] = jnp.full((4, 4), jnp.nan)
  outputs = outputs_of(model, broken, state)
  np.testing.assert_array_equal(outputs['a'], outputs_of(model, params, state)['a'])
  assert np.isnan(outputs['b']).all() and np.isnan(outputs['c']).all()


def test_no_graph_joins_every_pair_and_order_of_nodes_does_not_matter():
  params, state = start(sharing.graph(DENSE, HEADS))
  params = perturbed(params)
  edges = {('a', 'b'): 1.0, ('b', 'c'): 1.0, ('a', 'c'): 1.0}
  expected = outputs_of(sharing.graph(DENSE, HEADS), params, state)
  for nodes in ('abc', 'cab'):
    found = outputs_of(sharing.graph(DENSE, HEADS, TaskGraph(tuple(nodes), edges)), params, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_messages_of_images_are_maps_of_channels_in_the_dtype_of_the_trunk():
  heads = {'a': nn.Dense(2), 'b': nn.Dense(2)}
  model = sharing.graph(trunks.LeNet((4, 6), hidden=8, kernel_size=3, dtype=jnp.bfloat16), heads, {('a', 'b'): 1.0})
  x = jnp.ones((2, 9, 8))

  def run(key, x):
    params, state = model.init(key, {'a': x, 'b': x})
    return params, model.trunk(params['shared'], state['shared'], x, tasks=('a', 'b'), train=False, key=None)[0]

  params, features = jax.eval_shape(run, KEY, x)
  shapes = {cut: unit['kernel'].shape for cut, unit in params['shared']['units'].items()}
  assert shapes == {'conv_0': (4, 4), 'conv_1': (6, 6), 'dense': (8, 8)}
  assert {z.dtype for z in features.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  'args, message',
  [
    (
      (DENSE, HEADS, TaskGraph(('a', 'b'), {})),
      r"^graph nodes: found \['a', 'b'\], expected \['a', 'b', 'c'\]: missing",
    ),
    ((DENSE, HEADS, TaskGraph(('a', 'b', 'c', 'd'), {})), r"^graph nodes: .* unknown \['d'\]"),
    ((DENSE, HEADS, {('a', 'z'): 1.0}), "^TaskGraph edges: found the unknown node 'z'"),
    ((DENSE, HEADS, {('a', 'b'): -1.0}), '^TaskGraph edges: found the weight -1.0'),
    ((DENSE, HEADS, 'a-b'), "^graph: found 'a-b', expected an mtljax.relations.TaskGraph or"),
    ((nn.Dense(3), HEADS, CHAIN), '^stages: found Dense'),
    ((DENSE, {}, CHAIN), '^heads: found {}'),
  ],
)
def test_what_is_wrong_is_named(args, message):
  with pytest.raises(InputError, match=message):
    sharing.graph(*args)


def test_a_stage_whose_output_is_no_array_is_named():
  two = (lambda key, x: {}, lambda params, x: (x, x))
  with pytest.raises(InputError, match="^stages: the stream of 'a' is .* at a cut"):
    start(sharing.graph([two], HEADS, CHAIN))
