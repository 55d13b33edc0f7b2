"""Connection-wise sharing: identities, masks by hand, learned masks, pruning, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharing_cases import forward, pair, scalar_loss

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.sharing import magnitude_masks

KEY = jax.random.key(7)
X = jax.random.normal(jax.random.key(0), (6, 3))
HEADS = {'b': pair(2), 'a': pair(4)}
READ = (lambda key, x: {'w': jnp.ones(())}, lambda params, x: params['w'] * x)
LINEAR = (lambda key, x: {'kernel': jnp.array([[1.0, 2.0], [3.0, 4.0]])}, lambda params, x: x @ params['kernel'])
MASKS = {
  'a': {'kernel': np.array([[True, False], [True, True]])},
  'b': {'kernel': np.array([[True, False], [False, True]])},
}
ROW = jnp.array([[1.0, 10.0]])


def inputs(x=X):
  return {'b': x, 'a': x}


def total(model, state, x):
  return lambda params: sum(y.sum() for y in forward(model, params, state, inputs(x))[0].values())


@pytest.mark.parametrize(
  'build, x',
  [
    (lambda heads: sharing.connection_wise(trunks.MLP((4, 3)), heads, density=1.0), X),
    (lambda heads: sharing.connection_wise(trunks.MLP((4, 3)), heads, learned=True, where='.*'), X),
    (
      lambda heads: sharing.connection_wise(
        trunks.LeNet((3,), hidden=4, kernel_size=3),
        heads,
        masks={'a': {'Conv_0': {'kernel': np.ones((3, 3, 1, 3), bool)}}, 'b': {'Dense_0/bias': np.ones(4, bool)}},
      ),
      jax.random.normal(KEY, (2, 5, 4)),
    ),
  ],
  ids=['drawn', 'learned', 'given-conv'],
)
def test_masks_of_ones_are_hard_sharing(build, x):
  trunk = trunks.MLP((4, 3)) if x.ndim == 2 else trunks.LeNet((3,), hidden=4, kernel_size=3)
  results = []
  for model in (build(HEADS), sharing.hard(trunk, HEADS)):
    params, state = model.init(KEY, inputs(x))

    def loss(shared, model=model, params=params, state=state):
      outputs, _ = forward(model, {**params, 'shared': shared}, state, inputs(x))
      return sum(scalar_loss(task, y) for task, y in outputs.items()), outputs

    results.append(jax.jit(jax.grad(loss, has_aux=True))(params['shared']))
  for found, expected in zip(*map(jax.tree.leaves, results)):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_masks_by_hand_and_a_connection_that_nobody_uses():
  model = sharing.connection_wise(LINEAR, {'b': READ, 'a': READ}, masks=MASKS)
  params, state = model.init(KEY, inputs(ROW))
  assert params['tasks']['a'] == {'masks': {}, 'head': {'w': 1}}
  assert state['tasks']['a']['masks']['kernel'].dtype == bool
  outputs, _ = forward(model, params, state, inputs(ROW))
  np.testing.assert_allclose(outputs['a'], [[1.0 + 30.0, 40.0]])
  np.testing.assert_allclose(outputs['b'], [[1.0, 40.0]])
  grad = jax.grad(total(model, state, ROW))(params)
  np.testing.assert_allclose(grad['shared']['kernel'], [[1.0 + 1.0, 0.0], [10.0, 10.0 + 10.0]])


def test_a_step_leaves_masks_and_dead_connections():
  model = sharing.connection_wise(LINEAR, {'b': READ, 'a': READ}, masks=MASKS)
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in 'ab')
  optimizer = mtl.task_optimizer(optax.adam(0.1), {name: optax.adam(0.1) for name in 'ab'})
  labels = jnp.ones((1, 2))
  batch = {'inputs': ROW, 'labels': {'a': labels, 'b': labels}}
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.equal(), batch, KEY)
  new, _ = jax.jit(mtl.make_train_step(model, tasks, optimizer, mtl.balancing.equal()))(state, batch)
  for task in 'ab':
    np.testing.assert_array_equal(new.model_state['tasks'][task]['masks']['kernel'], MASKS[task]['kernel'])
  moved = np.asarray(new.params['shared']['kernel'] != state.params['shared']['kernel'])
  assert moved.tolist() == [[True, False], [True, True]]


def test_drawn_masks_keep_their_share_of_every_kernel():
  model = sharing.connection_wise(trunks.LeNet((4,), hidden=5, kernel_size=3), HEADS, density=0.3)
  _, state = model.init(KEY, inputs(jnp.ones((2, 4, 4))))
  masks = {task: state['tasks'][task]['masks'] for task in 'ab'}
  for task in 'ab':
    assert int(masks[task]['Conv_0']['kernel'].sum()) == round(0.3 * 36)
    assert int(masks[task]['Dense_0']['kernel'].sum()) == round(0.3 * 80)
    assert set(masks[task]['Dense_0']) == {'kernel'}
  assert np.any(masks['a']['Dense_0']['kernel'] != masks['b']['Dense_0']['kernel'])


def test_learned_thresholds_by_hand():
  model = sharing.connection_wise(LINEAR, {'b': READ, 'a': READ}, learned='threshold')
  params, state = model.init(KEY, inputs(ROW))
  np.testing.assert_allclose(params['tasks']['a']['masks']['kernel'], np.full((2, 2), 0.01))
  params['tasks']['a']['masks']['kernel'] = jnp.array([[0.0051, 0.0049], [-2.0, 7.0]])  # kept, out, out, kept
  outputs, _ = forward(model, params, state, inputs(ROW))
  np.testing.assert_array_equal(outputs['a'], [[1.0, 40.0]])
  np.testing.assert_array_equal(outputs['b'], [[31.0, 42.0]])
  grad = jax.grad(total(model, state, ROW))(params)
  np.testing.assert_allclose(grad['tasks']['a']['masks']['kernel'], [[1.0, 2.0], [30.0, 40.0]])  # theta x, mask or not
  np.testing.assert_allclose(grad['shared']['kernel'], [[1.0 + 1.0, 1.0], [10.0, 10.0 + 10.0]])


def test_sigmoid_masks_by_hand():
  model = sharing.connection_wise(LINEAR, {'b': READ, 'a': READ}, learned='sigmoid')
  params, state = model.init(KEY, inputs(ROW))
  np.testing.assert_allclose(
    forward(model, params, state, inputs(ROW))[0]['a'], ROW @ LINEAR[0](0, 0)['kernel'] * 0.952574
  )
  params['tasks']['a']['masks']['kernel'] = jnp.array([[0.0, 0.0], [-100.0, 0.0]])
  np.testing.assert_allclose(forward(model, params, state, inputs(ROW))[0]['a'], [[0.5, 1.0 + 20.0]])
  grad = jax.grad(total(model, state, ROW))(params)
  np.testing.assert_allclose(grad['tasks']['a']['masks']['kernel'], [[0.25, 0.5], [0.0, 10.0]])


def test_masks_over_a_frozen_net_are_all_that_learns_of_it():
  values = {'kernel': np.array([[5.0, 6.0], [7.0, 8.0]])}
  model = sharing.connection_wise(LINEAR, {'b': READ, 'a': READ}, learned=True, frozen=values)
  params, state = model.init(KEY, inputs(ROW))
  assert params['shared'] == {}
  np.testing.assert_array_equal(state['shared']['frozen']['kernel'], values['kernel'])
  np.testing.assert_array_equal(forward(model, params, state, inputs(ROW))[0]['b'], [[75.0, 86.0]])
  grad = jax.grad(lambda s: total(model, s, ROW)(params))
  np.testing.assert_array_equal(grad(state)['shared']['frozen']['kernel'], np.zeros((2, 2)))


def test_magnitude_pruning_compares_over_layers_and_goes_on_from_earlier_masks():
  params = {
    'in': {'kernel': np.array([[1.0, -9.0], [2.0, 3.0]]), 'bias': np.array([99.0, 99.0])},
    'out': {'kernel': np.array([[-8.0], [0.5]])},
  }
  masks = magnitude_masks(params, 0.5)
  assert {label: mask.tolist() for label, mask in masks.items()} == {
    'in/kernel': [[False, True], [False, True]],
    'out/kernel': [[True], [False]],
  }
  grown = {**params, 'out': {'kernel': np.array([[0.1], [50.0]])}}  # what is out stays out
  again = magnitude_masks(grown, 1 / 3, masks=masks)
  assert {label: mask.tolist() for label, mask in again.items()} == {
    'in/kernel': [[False, True], [False, True]],
    'out/kernel': [[False], [False]],
  }
  assert not any(mask[0, 0] for mask in magnitude_masks(grown, 0.0).values())
  more = magnitude_masks(grown, 1.0, masks=masks)
  assert all((more[label] == mask).all() for label, mask in masks.items())
  equal = magnitude_masks({'kernel': np.ones((2, 3))}, 0.5)
  assert equal['kernel'].sum() == 3
  model = sharing.connection_wise(trunks.MLP((4,)), HEADS, masks=dict.fromkeys('ab', {}))  # an empty one masks nothing
  shared = model.init(KEY, inputs())[0]['shared']
  pruned = {task: magnitude_masks(shared, density) for task, density in (('a', 0.5), ('b', 0.25))}
  _, state = sharing.connection_wise(trunks.MLP((4,)), HEADS, masks=pruned).init(KEY, inputs())
  assert [int(state['tasks'][task]['masks']['Dense_0']['kernel'].sum()) for task in 'ab'] == [6, 3]


def build(**options):
  return lambda: sharing.connection_wise(nn.Dense(4), HEADS, **options).init(KEY, inputs())


ONES = np.ones((3, 4), bool)


@pytest.mark.parametrize(
  'build, message',
  [
    (build(density=0.5, learned=True), r"^connection_wise: found \['density', 'learned'\], expected one of masks"),
    (build(density=1.5), r'^connection_wise density: found 1.5, expected a number from 0 to 1'),
    (build(learned='gumbel'), r"^connection_wise learned: found 'gumbel', expected 'threshold' or 'sigmoid'"),
    (
      build(where='conv'),
      r"^connection_wise where: 'conv' matches none of the trunk's parameters \['bias', 'kernel'\]",
    ),
    (build(masks=[ONES]), r'^connection_wise masks: found list, expected \{task: masks\}'),
    (build(masks={'a': {}}), r"^connection_wise masks: found \['a'\], expected \['a', 'b'\]: missing \['b'\]"),
    (
      build(masks={'a': {}, 'b': {'kernel': np.ones((3, 4))}}),
      r"^connection_wise masks\['b'\]: 'kernel' is float64, expected bool",
    ),
    (
      build(masks={'a': {}, 'b': {'weight': ONES}}),
      r"^connection_wise masks\['b'\]: found \['weight'\], expected \['bias', 'kernel'\]: unknown \['weight'\]",
    ),
    (
      build(masks={'a': {'kernel': ONES.T}, 'b': {}}),
      r"^connection_wise masks\['a'\]: 'kernel' has shape \(4, 3\), expected \(3, 4\)",
    ),
    (lambda: magnitude_masks({'kernel': ONES}, 2), r'^magnitude_masks density: found 2'),
    (lambda: magnitude_masks({'w': ONES}, 0.5), r"^magnitude_masks where: 'kernel\$' matches none"),
    (
      lambda: magnitude_masks({'kernel': ONES}, 0.5, masks={'kernel': ONES.T}),
      r"^magnitude_masks masks: 'kernel' has shape \(4, 3\), expected \(3, 4\)",
    ),
  ],
)
def test_bad_arguments_are_named(build, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(build)
