"""Counts of parameters and FLOPs against numbers by hand and XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mtljax import sharing, trunks
from mtljax.analysis.cost import Costs, costs, flops

X = jnp.ones((4, 5))
BOTH = {'a': X, 'b': X}
MLP = 2 * 5 * 8 + 8 + 8 + 2 * 8 * 6 + 6 + 6  # products, biases, ReLU


def heads():
  return {'a': nn.Dense(3), 'b': nn.Dense(2)}


def of(function, *args):
  """FLOPs of a function."""
  return sum(flops(equation) for equation in jax.make_jaxpr(function)(*args).eqns)


def test_hard_by_hand():
  found = costs(sharing.hard(trunks.MLP((8, 6)), heads()), BOTH)
  trunk, a, b = 5 * 8 + 8 + 8 * 6 + 6, 6 * 3 + 3, 6 * 2 + 2
  one = {'a': MLP + 2 * 6 * 3 + 3, 'b': MLP + 2 * 6 * 2 + 2}
  assert found == Costs(trunk, {'a': a, 'b': b}, {'a': trunk + a, 'b': trunk + b}, one, sum(one.values()) - MLP, 0)
  assert found.total == trunk + a + b


def test_soft_has_a_trunk_per_task():
  hard, soft = (costs(make(trunks.MLP((8, 6)), heads()), BOTH) for make in (sharing.hard, sharing.soft))
  assert soft.flops == hard.flops and soft.needed == hard.needed
  assert soft.shared == 0 and soft.flops_together == hard.flops_together + MLP


def test_experts_count_as_often_as_there_are():
  one, four = (costs(sharing.mmoe(nn.Dense(8), heads(), num_experts=n), BOTH) for n in (1, 4))
  assert four.shared == 4 * one.shared == 4 * 48
  gate = 2 * 5 * 4 + 4 + 4 * 4 + 2  # Dense, then max, shift, exp, sum and division over 4 experts
  mixture = 2 * 4 * 8
  assert one.flops['b'] == 80 + 8 + 2 * 8 + 2 * 8 * 2 + 2  # one expert: w_e f_e is a product, and a sum of one number
  assert abs(four.flops['b'] - (4 * 88 + gate + mixture + 34)) <= 8  # softmax as jax writes it


def test_a_task_needs_what_its_outputs_depend_on():
  """The second stream's last stage is not among it; at the first cut both streams meet."""
  model = sharing.cross_stitch(trunks.MLP((8, 8)), heads(), cuts=(0,))
  found = costs(model, BOTH)
  stages = (5 * 8 + 8, 8 * 8 + 8)
  assert found.shared == 2 * sum(stages) + 4
  assert found.needed == {'a': 2 * stages[0] + 4 + stages[1] + 27, 'b': 2 * stages[0] + 4 + stages[1] + 18}


def test_state_is_counted_beside_parameters():
  found = costs(sharing.hard(trunks.MLP((8,), batch_norm=True), heads()), BOTH)
  assert found.state == 16 and found.shared == 5 * 8 + 16
  assert 'model state          16' in str(found)


def test_batch_size_does_not_matter():
  model = sharing.hard(trunks.MLP((8, 6)), heads())
  assert costs(model, BOTH) == costs(model, dict.fromkeys('ab', jnp.ones((1, 5))))
  spec = jax.ShapeDtypeStruct((64, 5), jnp.float32)
  assert costs(model, BOTH) == costs(model, dict.fromkeys('ab', spec))


@pytest.mark.parametrize('impl', ['lax', 'im2col'])
def test_convolution(impl):
  """Whatever computes it, and padding counts: 8x8 pixels, 3x3 windows, 2 channels to 4."""
  conv = trunks.Conv(4, (3, 3), impl=impl)
  x = jnp.ones((1, 8, 8, 2))
  params = jax.eval_shape(conv.init, jax.random.key(0), x)
  assert of(conv.apply, params, x) == 2 * 8 * 8 * 9 * 2 * 4 + 8 * 8 * 4


def test_grouped_convolution():
  f = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2,), 'VALID', feature_group_count=2, dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  assert of(f, jnp.ones((1, 9, 4)), jnp.ones((3, 2, 6))) == 2 * (4 * 6) * 3 * 2


@pytest.mark.parametrize(
  'function, expected',
  [
    (lambda x: x.T.reshape(-1)[::-1][:3], 0),
    (lambda x: x.astype(jnp.bfloat16), 0),
    (lambda x: jnp.exp(x) + 1, 40),
    (lambda x: x > 0, 0),
    (lambda x: x.sum(axis=1), 20),
    (lambda x: x @ x.T, 2 * 4 * 4 * 5),
    (lambda x: jax.lax.scan(lambda c, row: (c * row, None), jnp.ones(5), x)[0], 20),
    (lambda x: jax.lax.cond(True, lambda x: x, lambda x: 2 * x, x), 20),
    (lambda x: jax.jit(jax.nn.relu)(x), 20),
    (lambda x: jax.checkpoint(lambda x: x * x)(x), 20),
    (lambda x: jnp.arange(20) * 2, 0),
    (lambda x: x.at[0].set(1.0), 0),
    (lambda x: x.at[0].add(1.0), 5),
  ],
)
def test_operations(function, expected):
  assert of(function, jnp.ones((4, 5))) == expected


@pytest.mark.parametrize('trunk', [trunks.MLP((32, 32)), trunks.LeNet((4, 8), hidden=16, kernel_size=3)])
def test_agrees_with_xla(trunk):
  """Where XLA compiles plain products; it counts exponentials apart, so there are none here."""
  x = jnp.ones((1, 16, 16) if isinstance(trunk, trunks.LeNet) else (1, 24))
  params = jax.eval_shape(trunk.init, jax.random.key(0), x)
  analysis = jax.jit(trunk.apply).lower(params, x).cost_analysis()
  assert of(trunk.apply, params, x) == pytest.approx(analysis['flops'], rel=0.02)


def test_parameters_are_those_of_init():
  model = sharing.parse('ple')(trunks.MLP((8, 8)), heads())
  params, _ = jax.eval_shape(model.init, jax.random.key(0), BOTH)
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  found = costs(model, BOTH)
  assert found.shared == size(params['shared']) and found.total == size(params)
  assert found.own == {task: size(params['tasks'][task]) for task in 'ab'}


def test_parts_in_a_loop_count_as_often_as_it_runs_and_feed_each_other():
  """What a turn makes for the next one is needed, though no output of the loop that is read."""
  dense = sharing.modules.as_module(nn.Dense(5), 'dense')
  turn = lambda call: lambda c, _: ((c[1], call(('second',), dense, c[1])), None)
  walk = lambda call, x: jax.lax.scan(turn(call), (x, call(('first',), dense, x)), None, length=3)[0][0]
  init = lambda key, x: ({name: dense.init(key, x)[0] for name in ('first', 'second')}, {'first': {}, 'second': {}})
  run = sharing.stages.composed(walk).apply
  apply = lambda params, state, x, *, train, key: (run(params, state, x, train=train, key=key)[0], {})
  found = costs(sharing.hard(sharing.Module(init, apply), {'a': nn.Dense(3)}), {'a': X})
  assert found.needed == {'a': 2 * 30 + 18} and found.flops == {'a': 4 * (2 * 25 + 5) + 2 * 15 + 3}


def test_table_has_a_row_for_everything():
  lines = str(costs(sharing.hard(trunks.MLP((8, 6)), heads()), BOTH)).splitlines()
  assert [line.split()[0] for line in lines[2:]] == ['shared', 'a', 'b', 'all'] and 'model state' not in lines[-1]
  assert lines[0].split() == ['parameters', 'needed', 'alone', 'FLOPs']
  assert len({len(line) for line in lines}) == 1
