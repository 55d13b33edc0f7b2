"""Graphs of parts: exact for small models of every family, sound for every row of the contract table."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import sharing_cases

from mtljax import sharing, trunks
from mtljax.analysis.cost import count
from mtljax.analysis.structure import Graph, Node, graph_of, parts_graph
from mtljax.analysis.trace import live, trace
from mtljax.base import InputError
from mtljax.sharing import scopes

X = jnp.ones((4, 5))
BOTH = {'a': X, 'b': X}


def heads():
  return {'a': nn.Dense(3), 'b': nn.Dense(2)}


def mlp():
  return trunks.MLP((8, 8))


def edges(text):
  """Lines 'from -> to, to'; T stands for both tasks."""
  found = set()
  for line in text.strip().splitlines():
    for task in 'ab':
      source, _, targets = line.strip().replace('<T>', task).partition(' -> ')
      found |= {(source, to) for to in targets.split(', ')}
  return found


GRAPHS = {
  'hard': (lambda: sharing.hard(mlp(), heads()), 'inputs -> trunk\n trunk -> heads/a, heads/b'),
  'soft': (
    lambda: sharing.soft(mlp(), heads()),
    """inputs -> heads/<T>/trunk
       heads/<T>/trunk -> heads/<T>/head""",
  ),
  'cross_stitch': (
    lambda: sharing.cross_stitch(mlp(), heads(), cuts=(0,)),
    """inputs -> trunk/streams/<T>/layer_0
       trunk/streams/<T>/layer_0 -> trunk/units/layer_0
       trunk/units/layer_0 -> trunk/streams/<T>/layer_1
       trunk/streams/<T>/layer_1 -> heads/<T>""",
  ),
  'nddr': (
    lambda: sharing.nddr(mlp(), heads(), cuts=(0,)),
    """inputs -> trunk/streams/<T>/layer_0
       trunk/streams/<T>/layer_0 -> trunk/units/layer_0/concat
       trunk/units/layer_0/concat -> trunk/units/layer_0/<T>
       trunk/units/layer_0/<T> -> trunk/streams/<T>/layer_1
       trunk/streams/<T>/layer_1 -> heads/<T>""",
  ),
  'mtan': (
    lambda: sharing.mtan(mlp(), heads()),
    """inputs -> trunk/layer_0
       trunk/layer_0 -> trunk/layer_1, heads/<T>/attention/layer_0
       trunk/layer_1 -> heads/<T>/attention/layer_1
       heads/<T>/attention/layer_0 -> heads/<T>/attention/layer_1
       heads/<T>/attention/layer_1 -> heads/<T>/head""",
  ),
  'mmoe': (
    lambda: sharing.mmoe(mlp(), heads(), num_experts=3),
    """inputs -> trunk/experts, heads/<T>/gate
       trunk/experts -> heads/<T>/mix
       heads/<T>/gate -> heads/<T>/mix
       heads/<T>/mix -> heads/<T>/head""",
  ),
  'ple': (
    lambda: sharing.ple([nn.Dense(8), nn.Dense(6)], [nn.Dense(8), nn.Dense(6)], heads()),
    """inputs -> trunk/level1/shared, trunk/level1/own/<T>, trunk/level1/gate, heads/<T>/level1/gate
       trunk/level1/shared -> trunk/mix, heads/<T>/mix
       trunk/level1/own/<T> -> trunk/mix, heads/<T>/mix
       trunk/level1/gate -> trunk/mix
       trunk/mix -> trunk/level2/shared
       heads/<T>/level1/gate -> heads/<T>/mix
       heads/<T>/mix -> heads/<T>/level2/own, heads/<T>/level2/gate
       trunk/level2/shared -> heads/<T>/mix 2
       heads/<T>/level2/own -> heads/<T>/mix 2
       heads/<T>/level2/gate -> heads/<T>/mix 2
       heads/<T>/mix 2 -> heads/<T>/head""",
  ),
}


@pytest.mark.parametrize('name', GRAPHS)
def test_edges_of_small_models(name):
  build, text = GRAPHS[name]
  graph = parts_graph(build(), BOTH)
  assert set(graph.edges) == edges(text) and len(graph.edges) == len(set(graph.edges))


def test_nodes_of_experts():
  nodes = parts_graph(sharing.mmoe(nn.Dense(8), heads(), num_experts=3), BOTH).nodes
  assert nodes['inputs'] == Node('inputs')
  assert nodes['trunk/experts'] == Node('part', None, copies=3, shared=3 * 48, shape=(3, 8)[1:], flops=3 * (80 + 8))
  assert nodes['heads/b/head'] == Node('part', 'b', own=18, shape=(2,), flops=32 + 2)
  assert nodes['heads/b/mix'].kind == 'join' and nodes['heads/b/mix'].shape == (8,)


def test_stems_and_inputs_of_their_own():
  x = {'a': jnp.ones((4, 5)), 'b': jnp.ones((4, 7))}
  graph = parts_graph(sharing.cross_stitch([nn.Dense(8)], heads(), stems={'a': nn.Dense(6), 'b': nn.Dense(6)}), x)
  assert set(graph.edges) == edges("""inputs/<T> -> stems/<T>
    stems/<T> -> trunk/streams/a/0, trunk/streams/b/0
    trunk/streams/<T>/0 -> trunk/units/0
    trunk/units/0 -> heads/<T>""")
  assert graph.nodes['inputs/b'] == Node('inputs', 'b') and graph.nodes['stems/b'].own == 48


def test_one_array_for_all_tasks_is_one_input():
  model = sharing.hard(mlp(), heads())
  assert 'inputs' in parts_graph(model, BOTH).nodes
  assert 'inputs/a' in parts_graph(model, {'a': X, 'b': X + 1}).nodes


def test_parameters_that_the_trunk_hands_on_belong_to_who_uses_them():
  """Shared weights as features: no part of the trunk has them, both heads do."""
  weights = sharing.Module(
    lambda key, x: ({'w': jnp.ones((x.shape[-1], 8))}, {}), lambda params, state, x, *, train, key: (params, state)
  )
  apply = lambda params, state, features, *, train, key, inputs: (inputs @ features['w'] @ params['v'], state)
  head = sharing.Module(lambda key, features, *, inputs: ({'v': jnp.ones((8, 2))}, {}), apply)
  graph = parts_graph(sharing.hard(weights, {'a': head, 'b': head}), BOTH)
  assert set(graph.edges) == {('inputs', 'heads/a'), ('inputs', 'heads/b')}
  assert all((node.shared, node.own) == (40, 16) for node in graph.nodes.values() if node.kind == 'part')


def test_operations_between_parts_join_them():
  """x + f(x) is a '+', what is done to one part's outputs passes, a weight between parts is a node with parameters."""

  def walk(call, x):
    y = call(('first',), sharing.modules.as_module(nn.Dense(5), 'first'), x)
    return jnp.tanh(call(('second',), sharing.modules.as_module(nn.Dense(5), 'second'), 2 * y) + y)

  graph = parts_graph(sharing.hard(sharing.stages.composed(walk), heads()), BOTH)
  assert set(graph.edges) == edges("""inputs -> trunk/first
    trunk/first -> trunk/second, trunk/+
    trunk/second -> trunk/+
    trunk/+ -> heads/<T>""")


def test_parts_inside_a_loop_and_under_jit():
  dense = sharing.modules.as_module(nn.Dense(5), 'dense')

  def walk(call, x):
    x = call(('first',), dense, x)
    inside = jax.jit(lambda x: jax.checkpoint(lambda x: call(('second',), dense, x))(x))
    return jax.lax.scan(lambda x, _: (inside(x), None), x, None, length=3)[0]

  def init(key, x):
    call = lambda path, module, x: jnp.zeros_like(x)
    walk(call, x)
    return {name: dense.init(key, x)[0] for name in ('first', 'second')}, {'first': {}, 'second': {}}

  trunk = sharing.Module(init, sharing.stages.composed(walk).apply)
  # The states that the loop would hand out are thrown away: `composed` is not made for loops, traces are.
  apply = lambda params, state, x, *, train, key: (trunk.apply(params, state, x, train=train, key=key)[0], {})
  graph = parts_graph(sharing.hard(sharing.Module(init, apply), heads()), BOTH)
  assert set(graph.edges) == edges('inputs -> trunk/first\n trunk/first -> trunk/second\n trunk/second -> heads/<T>')
  assert graph.nodes['trunk/second'].shared == 30 and graph.nodes['trunk/second'].flops == 3 * (50 + 5)


FIRST = {row.partition('-')[0]: row for row in reversed(sharing_cases.CASES)}.values()  # of every architecture


@pytest.mark.parametrize(
  'row', [row if row in FIRST else pytest.param(row, marks=pytest.mark.full) for row in sharing_cases.CASES]
)
def test_graph_and_costs_of_every_row(row):
  case = sharing_cases.CASES[row]
  model = case.build()
  inputs = sharing_cases.make_inputs(case, model)
  traced = trace(model, inputs)
  graph, found = graph_of(traced), count(traced)
  order = list(graph.nodes)
  assert all(a in order and b in order for a, b in graph.edges)
  after = {}
  for a, b in graph.edges:
    after.setdefault(a, set()).add(b)
  seen = set()

  def visit(name, path=()):
    assert name not in path, f'a cycle through {name}'
    if name not in seen:
      seen.add(name)
      for other in after.get(name, ()):
        visit(other, (*path, name))

  for name in order:
    visit(name)
  assert list(graph.outputs) == list(case.inputs) and all(graph.nodes[n].kind == 'part' for n in graph.outputs.values())
  for task, name in graph.outputs.items():
    assert graph.nodes[name].task == task and graph.nodes[name].shape == case.outputs[task]
  # Every parameter is in some node, as every parameter is used; own ones are in one.
  for task in case.inputs:
    assert sum(node.own for node in graph.nodes.values() if node.task == task) >= found.own[task]
    assert found.own[task] <= found.needed[task] <= found.shared + found.own[task]
  assert sum(node.shared for node in graph.nodes.values()) >= found.shared
  assert max(found.flops.values()) <= found.flops_together <= sum(found.flops.values())
  assert sum(node.flops for node in graph.nodes.values()) <= found.flops_together


@pytest.mark.parametrize('name', ['hard', 'cross_stitch', 'mtan', 'mmoe', 'ple', 'soft'])
def test_names_change_no_operation(name, monkeypatch):
  model = sharing.parse(name)(trunks.MLP((8, 8)), heads())
  params, state = jax.eval_shape(model.init, jax.random.key(0), BOTH)

  def forward(params, state, x):
    z, _ = model.trunk(params['shared'], state['shared'], x, tasks=('a', 'b'), train=True, key=jax.random.key(1))
    own = lambda t: (params['tasks'][t], state['tasks'][t])
    return {t: model.head(*own(t), z, inputs=x, task=t, train=True, key=None)[0] for t in 'ab'}

  lower = lambda: jax.jit(lambda *args: forward(*args)).lower(params, state, X)
  named = lower()
  monkeypatch.setattr(scopes, 'part', lambda *args: contextlib.nullcontext())
  plain = lower()
  assert named.as_text() == plain.as_text()
  assert 'heads/a' in named.as_text(debug_info=True) and 'heads/a' not in plain.as_text(debug_info=True)


def test_marks_are_off_outside_of_a_trace():
  model = sharing.hard(mlp(), heads())
  params, state = model.init(jax.random.key(0), BOTH)
  parts_graph(model, BOTH)
  run = lambda x: model.trunk(params['shared'], state['shared'], x, tasks=('a', 'b'), train=False, key=None)[0]
  (stack, *_) = [str(eqn.source_info.name_stack) for eqn in jax.make_jaxpr(run)(X).eqns]
  assert stack.startswith('trunk/')


def test_only_what_a_task_needs_is_live():
  model = sharing.soft(mlp(), heads())
  traced = trace(model, {'b': X, 'a': X})
  ops, read = live(traced, ['b'])
  assert {op.task for op in ops} == {'b'}
  params = [leaf.path[:2] for number, leaf in traced.leaves.items() if number in read and leaf.kind == 'params']
  assert set(params) == {('tasks', 'b')}
  assert {op.task for op in live(traced, 'ab')[0]} == {'a', 'b'} and list(traced.outputs) == ['b', 'a']


@pytest.mark.parametrize(
  'inputs, message',
  [
    (X, 'inputs: found ArrayImpl, expected a non-empty dictionary'),
    ({}, 'inputs: found dict, expected a non-empty dictionary'),
    ({'a': X, 'c': X}, r"no head for \['c'\]"),
  ],
)
def test_bad_input(inputs, message):
  with pytest.raises(InputError, match=message):
    trace(sharing.hard(mlp(), heads()), inputs)


def test_graph_is_the_same_twice():
  model = sharing.ple([nn.Dense(8), nn.Dense(6)], [nn.Dense(8), nn.Dense(6)], heads())
  first = parts_graph(model, BOTH)
  assert isinstance(first, Graph) and first == parts_graph(model, BOTH)
