"""Trunks in stages and what is built of them: identities, values by hand, what they refuse."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables
from sharing_cases import forward, pair

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.mtan import Attention, _fitted
from mtljax.sharing.soft import distance, trace_norm
from mtljax.sharing.stages import as_stages, chained

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (5, 3))
HEADS = {'b': pair(2), 'a': pair(3)}
DENSE = [pair(4), pair(4), pair(4)]
SCALE = (lambda key, x: {'scale': jnp.ones(())}, lambda params, x: params['scale'] * x)  # a stage of one number
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)  # a head that hands on what it reads
MEAN = (lambda key, x: {}, lambda params, x: x.mean(axis=(1, 2)))
BUILDERS = {
  'cross_stitch': sharing.cross_stitch,
  'sluice': sharing.sluice,
  'nddr': functools.partial(sharing.nddr, batch_norm=False),
  'mtan': functools.partial(sharing.mtan, batch_norm=False),
}


def start(model, x=X, tasks=('a', 'b')):
  return model.init(KEY, dict.fromkeys(tasks, x))


def outputs_of(model, params, state, x=X, tasks=('a', 'b')):
  return jax.jit(lambda p, s: forward(model, p, s, dict.fromkeys(tasks, x))[0])(params, state)


# A trunk in stages.


def test_stages_have_the_names_of_the_trunk_and_cuts_its_order():
  assert list(as_stages(DENSE).modules) == ['0', '1', '2']
  assert list(as_stages(trunks.LeNet((4, 6))).modules) == ['conv_0', 'conv_1', 'dense']
  assert list(as_stages({'in': pair(4), 'out': nn.Dense(2)}).modules) == ['in', 'out']
  assert as_stages(trunks.MLP((4, 4, 4)), (2, 'layer_0')).cuts == ('layer_0', 'layer_2')
  assert as_stages((nn.Dense(2), nn.Dense(2))).cuts == ('0', '1')


def test_a_chained_trunk_is_one_for_every_architecture():
  """`hard` runs it whole; its stages can be cut, so an architecture of blocks and `hard` are over the same trunk."""
  trunk = sharing.chained({'in': pair(4), 'block': pair(4), 'out': pair(3)})
  assert list(trunk.stages) == ['in', 'block', 'out'] and list(chained(trunk).stages) == ['in', 'block', 'out']
  x = {task: jnp.ones((2, 5)) for task in HEADS}
  whole, _ = sharing.hard(trunk, HEADS).init(KEY, x)
  skipping, _ = sharing.adashare(trunk, HEADS).init(KEY, x)
  assert jax.tree.map(jnp.shape, whole['shared']) == jax.tree.map(jnp.shape, skipping['shared'])
  assert all(list(part['policy']) == ['block'] for part in skipping['tasks'].values())


@pytest.mark.parametrize(
  'trunk, x',
  [(trunks.MLP((6, 4), batch_norm=True), X), (trunks.LeNet((3, 2), hidden=4, kernel_size=3), jnp.ones((2, 9, 8)))],
  ids=['mlp', 'lenet'],
)
def test_stages_one_after_another_are_the_trunk(trunk, x):
  variables = jax.tree.map(jnp.abs, random_variables(trunk, x))
  names = list(trunk.stages)
  params, state = {name: {} for name in names}, {name: {} for name in names}
  for layer, values in variables['params'].items():  # Conv_1 -> conv_1/Conv_0; the only Dense of LeNet is its last
    kind, index = layer.split('_')
    stage = 'dense' if kind == 'Dense' and 'dense' in names else names[int(index)]
    params[stage][f'{kind}_0'] = values
  for layer, values in variables.get('batch_stats', {}).items():
    state[names[int(layer.split('_')[1])]] = {'batch_stats': {'BatchNorm_0': values}}
  expected, changed = trunk.apply(variables, x, train=True, mutable=['batch_stats'])
  found, new = chained(trunk).apply(params, state, x, train=True, key=KEY)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert len(jax.tree.leaves(new)) == len(jax.tree.leaves(changed))
  for layer, values in changed.get('batch_stats', {}).items():
    stats = new[names[int(layer.split('_')[1])]]['batch_stats']['BatchNorm_0']
    np.testing.assert_allclose(stats['mean'], values['mean'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'trunk, cuts, message',
  [
    (nn.Dense(3), None, r'^stages: found Dense.* expected a list of modules'),
    (pair(3), None, r'^stages: found .*, expected a list of modules'),
    ([], None, r'^stages: found \[\], expected a list'),
    ([nn.Dense(3), 7], None, r"^stages\['1'\]: found 7, expected a flax linen module"),
    ({'a/b': nn.Dense(3)}, None, r"^stages: found the names \['a/b'\]"),
    (trunks.MLP((4, 4)), ('stem',), r"^cuts: found 'stem', .* expected some of \['layer_0', 'layer_1'\]"),
    (trunks.MLP((4, 4)), (2,), r'^cuts: found 2, which the trunk does not have, .* positions 0 to 1'),
    (trunks.MLP((4, 4)), (-1,), r'^cuts: found -1,'),
    (trunks.MLP((4, 4)), (True,), r'^cuts: found True,'),
    (trunks.MLP((4, 4)), 'layer_0', r"^cuts: found 'layer_0', expected a sequence with some of"),
    (trunks.MLP((4, 4)), (), r'^cuts: found \(\), expected a sequence'),
  ],
)
def test_trunks_without_stages_and_cuts_that_are_not_there_are_named(trunk, cuts, message):
  with pytest.raises(InputError, match=message):
    as_stages(trunk, cuts)


# Identities.


@pytest.mark.parametrize(
  'build',
  [
    functools.partial(sharing.cross_stitch, own=1.0),
    functools.partial(sharing.cross_stitch, own=1.0, channelwise=True, cuts=('1',)),
    functools.partial(sharing.sluice, own=1.0, last=1.0),
    functools.partial(sharing.nddr, own=1.0, batch_norm=False, activation=lambda x: x),
  ],
  ids=['cross_stitch', 'channelwise', 'sluice', 'nddr'],
)
def test_identity_units_make_single_task_nets(build):
  model = build(DENSE, HEADS)
  params, state = start(model)
  outputs = outputs_of(model, params, state)
  for task, y in outputs.items():
    alone = {'shared': params['shared']['streams'][task], 'tasks': params['tasks']}
    single = sharing.hard(chained(DENSE), {task: HEADS[task]})
    expected = outputs_of(single, alone, {'shared': dict.fromkeys('012', {}), 'tasks': state['tasks']}, tasks=(task,))
    np.testing.assert_allclose(y, expected[task], rtol=1e-5, atol=1e-6)


def test_soft_sharing_without_its_penalty_is_single_task_nets():
  model = sharing.soft(pair(4), HEADS, beta=0.0)
  params, state = start(model)
  assert params['shared'] == {} and model.penalties[0].weight == 0
  assert np.any(params['tasks']['a']['trunk']['w'] != params['tasks']['b']['trunk']['w'])
  for task, y in outputs_of(model, params, state).items():
    own = params['tasks'][task]
    alone = {'shared': own['trunk'], 'tasks': {task: own['head']}}
    single = sharing.hard(pair(4), {task: HEADS[task]})
    expected = outputs_of(single, alone, {'shared': {}, 'tasks': {task: {}}}, tasks=(task,))
    np.testing.assert_allclose(y, expected[task], rtol=1e-6)


@pytest.mark.parametrize('kind', ['dense', 'images'])
def test_mtan_with_masks_of_one_is_hard_sharing(kind):
  if kind == 'dense':
    stages, cuts, x = DENSE, (1, 2), X
  else:  # a tail without parameters, shapes that differ between blocks
    stages = {**trunks.LeNet((3, 2), hidden=None, kernel_size=3).stages, 'pool': MEAN}
    cuts, x = (0, 1), jax.random.normal(KEY, (2, 8, 8))
  model = sharing.mtan(stages, HEADS, cuts=cuts, batch_norm=False)
  params, state = start(model, x)
  before = outputs_of(model, params, state, x)
  own, attention = {}, {}
  for task in HEADS:
    own[task] = params['tasks'][task]['head']
    attention[task] = params['tasks'][task]['attention']
    for part in attention[task].values():
      part['h'] = {'kernel': jnp.zeros_like(part['h']['kernel']), 'bias': jnp.full_like(part['h']['bias'], 100.0)}
  hard = sharing.hard(chained(stages), HEADS)
  names = list(as_stages(stages).modules)
  expected = outputs_of(
    hard,
    {'shared': {name: params['shared'].get(name, {}) for name in names}, 'tasks': own},
    {'shared': dict.fromkeys(names, {}), 'tasks': {'a': {}, 'b': {}}},
    x,
  )
  for task, y in outputs_of(model, params, state, x).items():
    np.testing.assert_allclose(y, expected[task], rtol=1e-6)
    assert np.any(np.abs(y - before[task]) > 1e-4)


# Values by hand.


def test_a_cross_stitch_unit_by_hand():
  x = jnp.array([[1.0, 2.0]])
  shared = {
    'streams': {'a': {'0': {'scale': 1.0}}, 'b': {'0': {'scale': 2.0}}},  # x_a = (1, 2), x_b = (2, 4)
    'units': {'0': {'alpha': jnp.array([[0.5, 0.25], [3.0, -0.5]])}},
  }
  heads = {'b': READ, 'a': READ}  # rows of alpha are in alphabetical order
  state = {'streams': {'a': {'0': {}}, 'b': {'0': {}}}, 'units': {'0': {}}}
  mode = dict(tasks=('a', 'b'), train=False, key=None)
  z, _ = sharing.cross_stitch([SCALE], heads).trunk(shared, state, x, **mode)
  np.testing.assert_allclose(z['a'], [[0.5 * 1 + 0.25 * 2, 0.5 * 2 + 0.25 * 4]])
  np.testing.assert_allclose(z['b'], [[3.0 * 1 - 0.5 * 2, 3.0 * 2 - 0.5 * 4]])
  by_channel = jnp.stack([shared['units']['0']['alpha'], jnp.array([[0.0, 1.0], [1.0, 0.0]])], axis=-1)
  shared['units']['0']['alpha'] = by_channel  # the second channel is exchanged
  z, _ = sharing.cross_stitch([SCALE], heads, channelwise=True).trunk(shared, state, x, **mode)
  np.testing.assert_allclose(z['a'], [[1.0, 4.0]])
  np.testing.assert_allclose(z['b'], [[2.0, 2.0]])


def test_a_sluice_unit_and_its_layers_by_hand():
  x = jnp.array([[1.0, 2.0]])
  alpha = np.zeros((2, 2, 2, 2), np.float32)
  alpha[0, 0] = [[1.0, 10.0], [0.0, 0.0]]  # a's first subspace: its first + 10 times its second
  alpha[0, 1] = [[0.0, 0.0], [0.5, 0.0]]  # a's second subspace: half of b's first
  alpha[1] = np.eye(4).reshape(2, 2, 2, 2)[1]  # b keeps its own
  identity = jnp.eye(4).reshape(2, 2, 2, 2)
  scale = lambda first, second: {'0': {'scale': first}, '1': {'scale': second}}
  shared = {
    'streams': {'a': scale(1.0, 2.0), 'b': scale(2.0, -1.0)},
    'units': {'0': {'alpha': jnp.asarray(alpha)}, '1': {'alpha': identity}},
    'readout': {'beta': jnp.array([[0.0, 1.0], [3.0, 1.0]])},
  }
  state = {'streams': {t: {'0': {}, '1': {}} for t in 'ab'}, 'units': {'0': {}, '1': {}}, 'readout': {}}
  model = sharing.sluice([SCALE, SCALE], {'a': READ, 'b': READ})
  z, _ = model.trunk(shared, state, x, tasks=('a', 'b'), train=False, key=None)
  # after the first unit x_a = (1 + 10 * 2, .5 * 2) = (21, 1) and x_b = (2, 4); then times 2 and -1
  np.testing.assert_allclose(z['a'], [[42.0, 2.0]])
  np.testing.assert_allclose(z['b'], [[3 * 2.0 - 2.0, 3 * 4.0 - 4.0]])


def test_the_subspaces_of_a_sluice_network_are_held_apart():
  model = sharing.sluice([nn.Dense(4)], {'a': READ}, beta=0.3)
  kernel = jnp.array([[1.0, 2.0, 3.0, 4.0]])  # W_1 = (1, 2), W_2 = (3, 4): |W_1' W_2|^2 = 5 * 25
  params = {'shared': {'streams': {'a': {'0': {'kernel': kernel, 'bias': jnp.ones(4)}}}}}
  np.testing.assert_allclose(model.penalties[0].value(params), 125.0)
  assert model.penalties[0].weight == 0.3
  apart = jnp.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
  params['shared']['streams']['a']['0']['kernel'] = apart
  assert model.penalties[0].value(params) == 0


def test_an_nddr_projection_by_hand():
  x = jnp.array([[1.0, 2.0]])
  model = sharing.nddr([SCALE], {'b': READ, 'a': READ}, own=0.75, batch_norm=False)
  params, state = start(model, x)
  kernel = params['shared']['units']['0']['b']['Dense_0']['kernel']
  np.testing.assert_allclose(kernel, [[0.25, 0], [0, 0.25], [0.75, 0], [0, 0.75]])
  params['shared']['streams']['b']['0']['scale'] = jnp.array(-2.0)  # [x_a, x_b] = (1, 2, -2, -4)
  params['shared']['units']['0']['a']['Dense_0']['kernel'] = jnp.array([[1.0, 0], [0, 1], [0, 1], [-1, 0]])
  z, _ = model.trunk(params['shared'], state['shared'], x, tasks=('a', 'b'), train=False, key=None)
  np.testing.assert_allclose(z['a'], [[1.0 + 4.0, 0.0]])
  np.testing.assert_allclose(z['b'], [[0.0, 0.0]])  # relu(.25 (1, 2) + .75 (-2, -4))


def test_mtan_attention_by_hand():
  attention = Attention(reduction=2, batch_norm=False)
  u, p, z = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 1.0]])
  params = {
    'g': {'kernel': jnp.array([[1.0], [2.0]]), 'bias': jnp.array([-3.0])},  # relu(1 + 4 - 3) = 2
    'h': {'kernel': jnp.array([[1.0, -1.0]]), 'bias': jnp.array([-2.0, 1.0])},  # (0, -1)
  }
  sigmoid = 1 / (1 + np.exp(1))  # of -1
  np.testing.assert_allclose(attention.apply({'params': params}, u, p), [[3 * 0.5, 4 * sigmoid]], rtol=1e-6)
  params['f'] = {'kernel': jnp.array([[1.0, -1.0], [0.5, 0.0]]), 'bias': jnp.zeros(2)}  # relu(1.5, -1) = (1.5, 0)
  params['g']['kernel'] = jnp.array([[1.0], [2.0], [-2.0], [7.0]])  # relu(1 + 4 - 3 + 0 - 3) = 0
  a = 1 / (1 + np.exp(-np.array([[-2.0, 1.0]])))
  np.testing.assert_allclose(attention.apply({'params': params}, u, p, z), p * a, rtol=1e-6)


def test_mtan_hands_on_the_last_stage_but_one_and_fits_pixels():
  model = sharing.mtan([SCALE] * 4, {'a': READ}, cuts=(2, 3), batch_norm=False)
  shared = {name: {'scale': 2.0} for name in '0123'}
  features, _ = model.trunk(shared, dict.fromkeys('0123', {}), X, tasks=('a',), train=False, key=None)
  assert set(features) == {'2', '3'} and set(features['3']) == {'p'}
  np.testing.assert_allclose(features['2']['u'], 4 * X)
  np.testing.assert_allclose(features['2']['p'], 8 * X)
  image = jnp.arange(16.0).reshape(1, 4, 4, 1)
  pooled = _fitted(image, jnp.zeros((1, 2, 2, 5)))
  assert pooled.squeeze().tolist() == [[5.0, 7.0], [13.0, 15.0]]
  assert _fitted(image, jnp.zeros((1, 5))).tolist() == [[7.5]]
  assert _fitted(image, jnp.zeros((1, 3, 8, 5))).shape == (1, 3, 8, 1)
  with pytest.raises(InputError, match=r'^mtan stages: shape \(1, 3, 4\) of a block cannot follow \(1, 4, 4, 1\)'):
    _fitted(image, jnp.zeros((1, 3, 4)))


def test_the_penalties_of_soft_sharing_by_hand():
  draw = np.random.default_rng(0)
  thetas = {task: {'w': jnp.asarray(draw.normal(size=(2, 3)), jnp.float32)} for task in 'abc'}
  rows = np.stack([np.ravel(tree['w']) for tree in thetas.values()])
  pairs = [(rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])]
  expected = sum(0.5 * np.sum((p - q) ** 2) for p, q in pairs)
  np.testing.assert_allclose(distance(thetas), expected, rtol=1e-5)
  singular = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
  np.testing.assert_allclose(trace_norm(thetas), singular.sum(), rtol=1e-4)
  left, _, right = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
  gradient = jax.grad(trace_norm)(thetas)
  np.testing.assert_allclose(gradient['b']['w'].ravel(), (left @ right)[1], rtol=1e-3, atol=1e-4)
  equal = jax.grad(trace_norm)({task: thetas['a'] for task in 'abc'})  # rank one, no derivative without eps
  unit = rows[0] / np.linalg.norm(rows[0]) / np.sqrt(3)
  np.testing.assert_allclose(equal['a']['w'].ravel(), unit, rtol=1e-2, atol=1e-3)
  zero = jax.grad(trace_norm)(jax.tree.map(jnp.zeros_like, thetas))
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(zero))


def test_a_pattern_says_what_soft_sharing_ties():
  model = sharing.soft(pair(4), {'a': pair(2), 'b': pair(2)}, where='^w$')
  gradient = jax.grad(model.penalties[0].value)(start(model)[0])['tasks']['a']
  assert np.any(gradient['trunk']['w']) and not np.any(gradient['trunk']['b']) and not np.any(gradient['head']['w'])
  with pytest.raises(InputError, match=r"^soft where: 'conv' matches none of the trunk's parameters \['b', 'w'\]"):
    model = sharing.soft(pair(4), HEADS, where='conv')
    model.penalties[0].value(start(model)[0])


# In a step.


def test_soft_sharing_in_a_step_has_no_conflict_and_an_absent_task_stays():
  names, beta = ('a', 'b'), 0.5
  model = sharing.soft(pair(4), {'a': pair(2), 'b': pair(2)}, beta=beta)
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in names)
  optimizer = mtl.task_optimizer(optax.sgd(0.1), {name: optax.sgd(0.1) for name in names})
  balancer = mtl.balancing.pcgrad()
  y = jnp.zeros((5, 2))
  mask = {'a': jnp.ones(5, bool), 'b': jnp.zeros(5, bool)}
  batch = {'inputs': X, 'labels': {'a': y, 'b': y}, 'mask': mask}
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, KEY)
  new, info = jax.jit(mtl.make_train_step(model, tasks, optimizer, balancer))(state, batch)
  before, after = state.params['tasks'], new.params['tasks']
  assert jax.tree.all(jax.tree.map(lambda p, q: bool(np.all(p == q)), before['b'], after['b']))
  assert np.all(info.gramian == 0)

  def objective(own):
    z = jnp.tanh(X @ own['trunk']['w'] + own['trunk']['b'][None])
    out = jnp.tanh(z @ own['head']['w'] + own['head']['b'][None])
    apart = sum(jnp.sum((own['trunk'][k] - before['b']['trunk'][k]) ** 2) for k in ('w', 'b'))
    return mtl.losses.squared_error(out, y).mean() + beta * 0.5 * apart

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, before['a'], jax.grad(objective)(before['a']))
  for p, q in zip(*map(jax.tree.leaves, (expected, after['a']))):
    np.testing.assert_allclose(q, p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', BUILDERS)
def test_a_batch_of_every_task_its_own_inputs_reads_its_own_stream(name):
  model = BUILDERS[name](DENSE, HEADS)
  params, state = start(model)
  inputs = {'a': X, 'b': 2 - X[:3]}
  again = jax.eval_shape(model.init, KEY, inputs)
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, (params, state))
  for task, x in inputs.items():
    features, _ = model.trunk(params['shared'], state['shared'], x, tasks=(task,), train=True, key=KEY)
    own = params['tasks'][task], state['tasks'][task], features
    y, _ = model.head(*own, inputs=x, task=task, train=False, key=None)
    np.testing.assert_allclose(y, outputs_of(model, params, state, x)[task], rtol=1e-5, atol=1e-6)


def test_units_may_have_a_learning_rate_of_their_own():
  model = sharing.cross_stitch(DENSE, HEADS)
  params, _ = start(model)
  own = {name: optax.set_to_zero() for name in HEADS}
  optimizer = mtl.task_optimizer({'^shared/units/': optax.sgd(100.0), '': optax.sgd(1.0)}, own)
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
  found = {part: {float(leaf.min()) for leaf in jax.tree.leaves(tree)} for part, tree in updates['shared'].items()}
  assert found == {'units': {-100.0}, 'streams': {-1.0}}


# What they refuse.


@pytest.mark.parametrize(
  'build, message',
  [
    (lambda: sharing.cross_stitch(DENSE, HEADS, own=1.5), r'^cross_stitch own: found 1.5, expected a number from 0'),
    (lambda: sharing.cross_stitch(DENSE, {}), r'^heads: found \{\}, expected a non-empty dictionary'),
    (lambda: sharing.nddr(DENSE, 3), r'^heads: found 3'),
    (lambda: sharing.nddr(DENSE, HEADS, own='most'), r"^nddr own: found 'most'"),
    (lambda: sharing.sluice(DENSE, HEADS, subspaces=0), r'^sluice subspaces: found 0, expected a whole number'),
    (lambda: sharing.sluice(DENSE, HEADS, last=-1), r'^sluice last: found -1'),
    (lambda: sharing.mtan(DENSE, HEADS, reduction=0), r'^mtan reduction: found 0'),
    (
      lambda: sharing.soft(pair(4), HEADS, penalty='l3'),
      r"^soft penalty: found 'l3', expected one of \['distance', 't",
    ),
    (lambda: sharing.soft(pair(4), HEADS, where='('), r"^soft where: found '\(', expected a regular expression"),
    (lambda: start(sharing.sluice(DENSE, HEADS, subspaces=3)), r'^sluice subspaces: found 3, .* of the 4 channels'),
    (lambda: start(sharing.mtan(DENSE, HEADS, cuts=(0,))), r"^mtan cuts: stage '1' after the last cut has parameters"),
    (
      lambda: start(sharing.cross_stitch([(lambda key, x: {}, lambda params, x: (x, x))], HEADS)),
      r"^stages: the stream of 'a' is \(float32\[5, 3\], float32\[5, 3\]\) at a cut, expected one array",
    ),
    (
      lambda: start(sharing.cross_stitch([nn.Dense(3), nn.Conv(2, (3, 3, 3))], HEADS)),
      r'^streams/a/1 cannot take float32\[5, 3\]: ',
    ),
  ],
)
def test_bad_arguments_are_named(build, message):
  with pytest.raises(InputError, match=message):
    build()
