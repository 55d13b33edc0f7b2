"""What every sharing architecture holds to; the rows are in `sharing_cases.py`.

An architecture may have several rows. By default it meets every property once, its rows in rotation; the product runs
with `pytest -m full tests/sharing/test_contract.py`.
"""

import functools
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import BATCH, CASES, forward, make_inputs, perturbed, scalar_loss

from mtljax import sharing

KEY = jax.random.key(7)
DRAWN = ('hard-linen', 'hard-nnx-instance')  # lanes compared by default; the others with -m full
LANES = [name if name in DRAWN else pytest.param(name, marks=pytest.mark.full) for name in CASES]


@functools.cache
def setup(name):
  """case, model, inputs, params, state of a row; read only."""
  case = CASES[name]
  model = case.build()
  inputs = make_inputs(case, model)
  params, state = model.init(KEY, inputs)
  return case, model, inputs, params, state


@functools.cache
def training_pass(name):
  """(params, state, inputs, key) -> (outputs, state), jitted; a second trace is an error."""
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def run(params, state, inputs, key):
    return forward(setup(name)[1], params, state, inputs, train=True, key=key)

  return run


def pytest_generate_tests(metafunc):
  if 'name' not in metafunc.fixturenames or metafunc.definition.get_closest_marker('parametrize'):
    return
  start, rows = zlib.crc32(metafunc.function.__name__.encode()), {}
  for name in CASES:
    if 'pullback' not in metafunc.function.__name__ or 'stems' not in name:  # one trunk pass, so a single input
      rows.setdefault(name.split('-')[0], []).append(name)
  chosen = {names[start % len(names)] for names in rows.values()}
  metafunc.parametrize(
    'name', [name if name in chosen else pytest.param(name, marks=pytest.mark.full) for name in CASES]
  )


@pytest.fixture
def row(name):
  return setup(name)


def test_every_architecture_has_a_row():
  assert {name.split('-')[0] for name in CASES} == set(sharing.ARCHITECTURES)


def test_params_and_state_have_exact_keys_and_params_are_float32(row):
  case, model, inputs, params, state = row
  for tree in (params, state):
    assert set(tree) == {'shared', 'tasks'}
    assert set(tree['tasks']) == set(case.inputs)
    if model.stem is not None:
      assert all(set(part) == {'stem', 'head'} for part in tree['tasks'].values())
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
  assert all(isinstance(entry.key, str) for path, _ in jax.tree.leaves_with_path((params, state)) for entry in path[1:])


def test_outputs_have_their_shapes_and_are_float32(row):
  case, model, inputs, params, state = row
  outputs, new_state = jax.eval_shape(lambda p, s: forward(model, p, s, inputs), params, state)
  assert {t: y.shape for t, y in outputs.items()} == {t: (BATCH, *shape) for t, shape in case.outputs.items()}
  assert all(y.dtype == jnp.float32 for y in outputs.values())


def test_evaluation_needs_no_key_and_leaves_the_state(row):
  case, model, inputs, params, state = row
  run = lambda params, state, key: forward(model, params, state, inputs, train=False, key=key)
  (outputs, new_state), (again, _) = jax.jit(lambda *args: (run(*args, None), run(*args, KEY)))(params, state)
  chex.assert_trees_all_equal(new_state, state)
  chex.assert_trees_all_equal(again, outputs)


def test_a_subset_of_the_tasks_has_the_same_numbers(row):
  case, model, inputs, params, state = row
  task = list(inputs)[-1]
  mine = {task: inputs[task]}
  sub_params, sub_state = model.init(KEY, mine)
  pick = lambda tree: {'shared': tree['shared'], 'tasks': {task: tree['tasks'][task]}}
  chex.assert_trees_all_equal((sub_params, sub_state), (pick(params), pick(state)))
  outputs, _ = forward(model, sub_params, sub_state, mine)
  full, _ = forward(model, params, state, inputs)
  np.testing.assert_array_equal(outputs[task], full[task])


def test_every_parameter_has_a_gradient_and_a_task_reaches_no_other_task(row):
  case, model, inputs, params, state = row

  @jax.jit
  @jax.jacrev
  def gradients(params):
    outputs, _ = forward(model, params, state, inputs)
    return {task: scalar_loss(task, y) for task, y in outputs.items()}

  grads = gradients(perturbed(params))
  for task, grad in grads.items():
    others = {t: g for t, g in grad['tasks'].items() if t != task}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))
    dead = [jax.tree_util.keystr(p) for p, g in jax.tree.leaves_with_path(grad['tasks'][task]) if not np.any(g)]
    assert not dead, f'{task}: no gradient at {dead}'
  total = jax.tree.map(lambda *g: sum(map(np.abs, g)), *[g['shared'] for g in grads.values()])
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(total) if not np.any(g)]
  assert not dead, f'shared: no gradient at {dead}'


def test_one_forward_and_a_vmapped_pullback_give_the_jacobian_and_update_the_state_once(row, name):
  """The trunk runs once; its T-fold pullback agrees with a forward derivative under the same dropout mask."""
  case, model, inputs, params, state = row
  if model.stem is not None:
    pytest.skip('multi-input: the trunk runs once per task')
  if not jax.tree.leaves(params['shared']):
    pytest.skip('nothing is shared: there is no Jacobian')
  tasks, x = tuple(inputs), inputs[next(iter(inputs))]
  params = perturbed(params)
  direction = perturbed(jax.tree.map(np.zeros_like, params['shared']), seed=2)

  def trunk(shared):
    return model.trunk(shared, state['shared'], x, tasks=tasks, train=True, key=KEY)

  def losses_of(features):
    outputs, _ = forward(model, params, state, inputs, train=True, key=KEY, features=features)
    return jnp.stack([scalar_loss(task, outputs[task]) for task in tasks])

  @jax.jit
  def run(shared):
    features, pullback, shared_state = jax.vjp(trunk, shared, has_aux=True)
    rows = jax.vmap(pullback)(jax.jacrev(losses_of)(features))[0]
    expected = jax.jvp(lambda shared: losses_of(trunk(shared)[0]), (shared,), (direction,))[1]
    return rows, shared_state, expected

  rows, shared_state, expected = run(params['shared'])
  found = [np.tensordot(row, d, axes=d.ndim) for row, d in zip(*map(jax.tree.leaves, (rows, direction)))]
  scale = sum(np.abs(part).max() for part in found)  # parts of opposite sign may nearly cancel
  np.testing.assert_allclose(sum(found), expected, atol=case.rtol * scale, rtol=0)
  once = training_pass(name)(params, state, inputs, KEY)[1]['shared']
  chex.assert_trees_all_close(shared_state, once, rtol=1e-4, atol=1e-6)


def test_training_is_a_function_of_its_arguments(row, name):
  case, model, inputs, params, state = row
  first, same, other = (training_pass(name)(params, state, inputs, key) for key in (KEY, KEY, jax.random.key(8)))
  chex.assert_trees_all_equal(first, same)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first[0], other[0])))) == case.stochastic


def test_training_keeps_the_structure_of_the_state_and_is_traced_once(row, name):
  case, model, inputs, params, state = row
  _, new = training_pass(name)(params, state, inputs, KEY)
  _, newer = training_pass(name)(params, new, inputs, jax.random.key(8))
  chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
  changed = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new, newer)))]
  assert any(changed) == case.stateful


def test_init_can_be_vmapped_over_keys(row):
  case, model, inputs, params, state = row
  keys = jax.eval_shape(lambda: jax.random.split(KEY, 3))
  lanes = jax.eval_shape(jax.vmap(model.init, in_axes=(0, None)), keys, inputs)
  assert jax.tree.map(lambda x: x.shape[1:], lanes) == jax.tree.map(jnp.shape, (params, state))
  assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(lanes))


@pytest.mark.parametrize(
  'name', [name if name in DRAWN else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
def test_lanes_of_a_vmapped_init_are_inits_and_every_part_is_drawn_anew(name):
  case, model, inputs, params, state = setup(name)
  keys = jnp.stack([KEY, jax.random.key(8)])
  lanes = jax.jit(jax.vmap(model.init, in_axes=(0, None)))(keys, inputs)
  chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], lanes), (params, state), rtol=1e-5, atol=1e-6)
  differ = lambda tree: any(np.any(leaf[0] != leaf[1]) for leaf in jax.tree.leaves(tree))
  anything = bool(jax.tree.leaves(lanes[0]['shared']))  # soft sharing shares nothing
  assert differ(lanes[0]['shared']) == (anything and 'trunk' not in case.keeps)
  for task, tree in lanes[0]['tasks'].items():
    assert differ(tree) == (f'heads[{task!r}]' not in case.keeps)


@pytest.mark.parametrize('name', CASES)
def test_parts_that_keep_their_own_values_are_named(name):
  model = CASES[name].build()
  assert sharing.keeps_own_values(model, make_inputs(CASES[name], model)) == CASES[name].keeps
