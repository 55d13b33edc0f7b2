"""Students that follow teachers, tasks that follow each other: values by hand, training, what is refused."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharing_cases import Tokens, counting_module, pair

import mtljax as mtl
from mtljax import losses, sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.distill import Distilled

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(0), (6, 3))
HEADS = {'a': pair(2, lambda x: x), 'b': pair(3, lambda x: x)}
SAME = (lambda key, x: {}, lambda params, x: x)
TASKS = (
  mtl.Task('a', losses.squared_error, metrics={'rmse': mtl.metrics.rmse()}),
  mtl.Task('b', losses.squared_error, weight=0.5),
)
LABELS = {'a': jnp.ones((6, 2)), 'b': jnp.zeros((6, 3))}
BATCH = {'inputs': X, 'labels': LABELS}
EQUAL = mtl.balancing.equal()


def single(task, trunk=None, x=X, seed=0, **options):
  """A teacher of one task, drawn at random: (model, params, model_state)."""
  model = sharing.hard(trunk or trunks.MLP((5,)), {task: HEADS[task]}, **options)
  return model, *model.init(jax.random.key(seed), {task: x})


@functools.cache
def teachers():
  return {'a': single('a'), 'b': single('b', seed=1)}


def student():
  return sharing.hard(trunks.MLP((8,)), HEADS)


def train(model, tasks, batch, steps, optimizer=None, penalties=()):
  """The state at the start and after some steps, and what they told."""
  optimizer = optimizer or optax.adam(0.03)
  start = jax.jit(lambda batch: mtl.init_state(model, tasks, optimizer, EQUAL, batch, KEY))(batch)
  step = mtl.make_train_step(model, tasks, optimizer, EQUAL, penalties=penalties)
  run = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, batch), state, length=steps))
  return start, *run(start)


# The loss.


def test_distillation_by_hand():
  """softmax(teacher / 2) = (3/4, 1/4) against (1/2, 1/2); 4 KL, KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
  teacher = 2 * jnp.log(jnp.array([[3.0, 1.0]]))
  kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  found, gradient = jax.value_and_grad(lambda y: losses.distillation(y, teacher).sum())(jnp.zeros((1, 2)))
  np.testing.assert_allclose(found, 4 * kl, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[2 * (0.5 - 0.75), 2 * (0.5 - 0.25)]], rtol=1e-6)  # T (p - q)
  np.testing.assert_allclose(
    losses.distillation(teacher, jnp.zeros((1, 2)), temperature=2.0), [4 * 0.1438410], rtol=1e-5
  )
  assert losses.distillation(jnp.ones((4, 5, 3), jnp.bfloat16), jnp.ones((4, 5, 3))).shape == (4, 5)


def test_distillation_is_zero_for_equal_distributions_and_half_the_squared_distance_at_a_high_temperature():
  y, teacher = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
  np.testing.assert_array_equal(losses.distillation(y, y, temperature=3.0), np.zeros(4))
  np.testing.assert_allclose(losses.distillation(y + 2, y), np.zeros(4), atol=1e-6)
  centred = (y - y.mean(axis=1, keepdims=True)) - (teacher - teacher.mean(axis=1, keepdims=True))
  found = losses.distillation(y, teacher, temperature=50.0)
  np.testing.assert_allclose(found, (centred**2).sum(axis=1) / 10, rtol=0.05)


@pytest.mark.parametrize(
  'y, teacher, options, message',
  [
    (
      np.zeros((2, 3)),
      np.zeros((2, 4)),
      {},
      r'distillation: labels are float\d\d\[2, 4\], expected real numbers \[2, 3\]',
    ),
    (np.zeros(2), np.zeros(2), {}, r'distillation: outputs have shape \(2,\), expected logits'),
    (np.zeros((2, 3)), np.zeros((2, 3)), {'temperature': 0}, r'distillation: temperature is 0, expected a number > 0'),
  ],
)
def test_distillation_names_bad_input(y, teacher, options, message):
  with pytest.raises(InputError, match=message):
    losses.distillation(y, teacher, **options)


# Teachers.


def test_the_term_by_hand():
  """z = (3, 4), A = I and z' = (1, 0): |(.6, .8) - (1, 0)|^2 = .8; outputs 7 and 1 with weights (1, 1) and (1, 0)."""
  dot = (lambda key, x: {'w': jnp.ones((2,))}, lambda params, x: x @ params['w'])
  teacher = sharing.hard((lambda key, x: {}, lambda params, x: x * jnp.array([[1 / 3, 0.0]])), {'a': dot})
  params = {'shared': {}, 'tasks': {'a': {'w': jnp.array([1.0, 0.0])}}}
  empty = {'shared': {}, 'tasks': {'a': {}}}
  task = mtl.Task('a', losses.squared_error)
  model, tasks = sharing.distill(
    sharing.hard(SAME, {'a': dot}), (task,), {'a': (teacher, params, empty)}, beta=0.5, responses=losses.l1
  )
  x = jnp.array([[3.0, 4.0], [3.0, 4.0]])
  params, state = model.init(KEY, {'a': x})
  own = {'student': params['tasks']['a']['student'], 'adaptor': {'0': jnp.eye(2)}}
  head = functools.partial(model.head, own, state['tasks']['a'], x, inputs=x, task='a')
  outputs, _ = head(train=True, key=KEY)
  np.testing.assert_allclose(outputs.distance, np.full(2, 0.8 + 6), rtol=1e-5)
  np.testing.assert_array_equal(outputs.outputs, [7, 7])
  np.testing.assert_array_equal(head(train=False, key=None)[0], [7, 7])
  np.testing.assert_array_equal(tasks[0].loss(outputs, jnp.array([5.0, 7.0])), [4, 0])
  (penalty,) = model.penalties
  assert (penalty.weight, penalty.task, penalty.on) == (0.5, 'a', 'outputs')
  np.testing.assert_allclose(penalty.value({}, {'a': outputs}), 6.8, rtol=1e-5)


def test_students_come_to_their_teachers_and_teachers_stay():
  """beta is large beside the losses, whose labels are far from what the teachers say."""
  given = teachers()
  model, tasks = sharing.distill(student(), TASKS, given, beta=30.0, responses=losses.squared_error)
  start, state, infos = train(model, tasks, BATCH, 200, optax.adam(0.05))
  assert infos.finite.all() and infos.penalty[-1] < 0.1 * infos.penalty[0]
  assert np.all(infos.losses[-1] > 0.1)  # raw L_t, without the term
  for task, (teacher, params, _) in given.items():
    kept = state.model_state['tasks'][task]['teacher']
    jax.tree.map(np.testing.assert_array_equal, kept['params'], params)
    z, _ = teacher.trunk(params['shared'], {}, X, tasks=(task,), train=False, key=None)
    y, _ = teacher.head(params['tasks'][task], {}, z, inputs=X, task=task, train=False, key=None)
    for now, at_most in ((start, np.inf), (state, 0.3)):
      own, mine = (tree['tasks'][task] for tree in (now.params, now.model_state))
      z, _ = model.trunk(now.params['shared'], {}, X, tasks=('a', 'b'), train=False, key=None)
      found, _ = model.head(own, mine, z, inputs=X, task=task, train=False, key=None)
      apart = np.linalg.norm(found - y) / np.linalg.norm(y)
      assert apart < at_most and (now is state or apart > 0.6), (task, apart)
  moved = jax.tree.map(lambda a, b: np.any(a != b), start.params, state.params)
  assert all(jax.tree.leaves(moved))  # adaptors too


def test_evaluation_is_that_of_the_student_alone():
  model, tasks = sharing.distill(student(), TASKS, teachers(), responses=losses.squared_error)
  params, state = model.init(KEY, {'a': X, 'b': X})
  plain = {
    part: {**tree, 'tasks': {t: x['student'] for t, x in tree['tasks'].items()}}
    for part, tree in (('params', params), ('state', state))
  }
  own, own_state = student().init(KEY, {'a': X, 'b': X})
  jax.tree.map(np.testing.assert_array_equal, (plain['params'], plain['state']), (own, own_state))
  found = mtl.evaluate.evaluate(model, tasks, params, state, [BATCH])
  assert found == mtl.evaluate.evaluate(student(), TASKS, own, own_state, [BATCH])


def test_beta_zero_trains_as_the_student_alone():
  model, tasks = sharing.distill(student(), TASKS, teachers(), beta={'a': 0.0, 'b': lambda step: 0.0})
  _, state, infos = train(model, tasks, BATCH, 3)
  _, alone, expected = train(student(), TASKS, BATCH, 3)
  np.testing.assert_allclose(infos.losses, expected.losses, rtol=1e-5)
  assert not infos.penalty.any()
  own = {task: part['student'] for task, part in state.params['tasks'].items()}
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), own, alone.params['tasks'])


def test_at_features_and_a_task_without_labels():
  """One teacher; its task is absent, so nothing of it moves, and features are still shared by the tasks."""
  model, tasks = sharing.distill(student(), TASKS, {'a': teachers()['a']})
  batch = {**BATCH, 'mask': {'a': jnp.zeros(6, bool)}}
  optimizer = optax.sgd(0.1)
  state = mtl.init_state(model, tasks, optimizer, EQUAL, batch, KEY)
  assert set(state.params['tasks']['b']) == {'w', 'b'}
  step = jax.jit(mtl.make_train_step(model, tasks, optimizer, EQUAL, at='features'))
  new, info = step(state, batch)
  assert info.finite and info.penalty == 0
  jax.tree.map(np.testing.assert_array_equal, new.params['tasks']['a'], state.params['tasks']['a'])
  _, info = step(state, {**BATCH, 'mask': {'a': jnp.ones(6, bool)}})
  assert info.penalty > 0


def test_inputs_of_their_own_and_teachers_with_state():
  """Stems in student and teacher, statistics and counters in their states."""
  numbers = jax.random.normal(KEY, (4, 2))
  inputs = {'a': numbers, 'b': jnp.arange(12).reshape(4, 3) % 7}
  stems = {'a': trunks.MLP((5,), batch_norm=True), 'b': Tokens()}
  teacher = sharing.hard(
    trunks.MLP((6,), batch_norm=True), {'a': HEADS['a']}, stems={'a': trunks.MLP((5,), batch_norm=True, dropout=0.5)}
  )
  given = {'a': (teacher, *teacher.init(KEY, {'a': numbers}))}
  model, tasks = sharing.distill(
    sharing.hard(counting_module(8), HEADS, stems), TASKS, given, responses={'a': losses.distillation}
  )
  batch = {t: {'inputs': inputs[t], 'labels': LABELS[t][:4]} for t in 'ab'}
  start, state, infos = train(model, tasks, batch, 2)
  assert infos.finite.all() and (infos.penalty > 0).all()
  mine, before = (s.model_state['tasks']['a'] for s in (state, start))
  jax.tree.map(np.testing.assert_array_equal, mine['teacher'], {'params': given['a'][1], 'state': given['a'][2]})
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (mine['student'], before['student']))))


def test_features_of_tasks_and_of_several_layers_are_paired():
  streams = lambda widths, tasks: sharing.cross_stitch(trunks.MLP(widths), {t: HEADS[t] for t in tasks})
  masks = lambda widths: sharing.mtan(trunks.MLP(widths), HEADS, batch_norm=False, cuts=(1, 2))
  last = lambda features, task: features['layer_2']['p'] if isinstance(features, dict) else features
  shapes = {}
  for name, model, teacher, features in (
    ('a stream', streams((8, 8), 'ab'), teachers()['a'][0], True),
    ('layers', masks((8, 8, 6)), masks((5, 4, 3)), True),
    ('picked', masks((8, 8, 6)), teachers()['a'][0], last),
  ):
    zeros = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), jax.eval_shape(teacher.init, KEY, {'a': X}))
    model, _ = sharing.distill(model, TASKS, {'a': (teacher, *zeros)}, features=features)
    params, state = jax.eval_shape(model.init, KEY, {'a': X})
    shapes[name] = {leaf: kernel.shape for leaf, kernel in params['tasks']['a']['adaptor'].items()}
  assert shapes['a stream'] == {'0': (8, 5)}
  assert shapes['layers'] == {'0': (8, 4), '1': (8, 5), '2': (6, 3)}  # p and u of layers 0 and 1, p of layer 2
  assert shapes['picked'] == {'0': (6, 5)}


def test_penalties_of_the_student_see_its_own_parameters_and_outputs():
  def value(params, outputs, *, inputs):
    assert sorted(inputs) == ['a', 'b'] and set(params['tasks']['a']) == {'w', 'b'}
    return outputs['a'].mean() + params['tasks']['a']['w'].sum()

  model = student()._replace(penalties=(mtl.Penalty(1.0, value, on='outputs'),))
  model, tasks = sharing.distill(model, TASKS, {'a': teachers()['a']}, beta=0.0)
  start, _, infos = train(
    model, tasks, BATCH, 1, penalties=(sharing.follow(0.0, 'b', 'a', read=lambda y: y[:, :1] + jnp.zeros((1, 3))),)
  )
  own, mine = start.params['tasks']['a'], start.model_state['tasks']['a']
  z, _ = model.trunk(start.params['shared'], {}, X, tasks=('a', 'b'), train=False, key=None)
  y, _ = model.head(own, mine, z, inputs=X, task='a', train=False, key=None)
  np.testing.assert_allclose(infos.penalty[0], y.mean() + own['student']['w'].sum(), rtol=1e-5)


ONE = teachers  # made when a test asks
BAD = {
  'no teachers': (lambda: {}, {}, r'^teachers: found \{\}, expected \{task: \(model, params, model_state\)\}'),
  'unknown task': (lambda: {'c': ONE()['a']}, {}, r"^teachers: found \['c'\], .*unknown \['c'\]"),
  'no triple': (lambda: {'a': ONE()['a'][0]}, {}, r"^teachers\['a'\]: found Model, expected \(model, params"),
  'no params': (lambda: {'a': (ONE()['a'][0], {}, {})}, {}, r"^teachers\['a'\]: params is \{\}, expected"),
  'no head': (
    lambda: {'b': ONE()['a']},
    {},
    r"^teachers\['b'\]: params has the tasks \['a'\], expected a head for 'b'",
  ),
  'no term': (lambda: {'a': ONE()['a']}, {'features': False}, r'found features=False and responses=None'),
  'features': (lambda: {'a': ONE()['a']}, {'features': 3}, r'^distill features: found 3, expected True'),
  'beta': (lambda: {'a': ONE()['a']}, {'beta': {'b': 1.0}}, r"^distill beta: found \['b'\]"),
}


@pytest.mark.parametrize('row', BAD)
def test_bad_input_is_named(row):
  given, options, message = BAD[row]
  with pytest.raises(InputError, match=message):
    sharing.distill(student(), TASKS, given(), **options)


@pytest.mark.parametrize(
  'trunk, x, message',
  [
    (
      SAME,
      jnp.ones((6, 2, 3)),
      r"^distill features of 'a': found float32\[6, 8\] of the student and float32\[6, 2, 3\]",
    ),
    (trunks.MLP((5,)), jnp.ones((6, 4)), r"^teachers\['a'\] cannot take float32\[6, 3\]"),
  ],
  ids=['features', 'inputs'],
)
def test_teachers_that_do_not_fit_are_named(trunk, x, message):
  teacher = sharing.hard(trunk, {'a': nn.Dense(2)})
  zeros = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), jax.eval_shape(teacher.init, KEY, {'a': x}))
  model, _ = sharing.distill(student(), TASKS, {'a': (teacher, *zeros)})
  inputs = x if trunk is SAME else X
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model.init, KEY, {'a': inputs, 'b': inputs})


# Between tasks.


def test_follow_by_hand_and_who_moves():
  y = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[0.0, 4.0, 9.0]])}
  inputs = dict.fromkeys('ab', X)
  for stop, theirs in ((True, [[0, 0, 0]]), (False, [[-0.5, 0, 1.25]])):
    penalty = sharing.follow(1.0, 'a', 'b', read=lambda y: y[:, jnp.array([0, 2])] / 2, stop_gradient=stop)
    value, grads = jax.value_and_grad(functools.partial(penalty.value, {}, inputs=inputs))(y)
    np.testing.assert_allclose(value, (1 + 2.5**2) / 2)  # the mean over (1 - 0)^2 and (2 - 4.5)^2
    np.testing.assert_allclose(grads['a'], [[1, -2.5]])
    np.testing.assert_allclose(grads['b'], theirs)
  assert (penalty.task, penalty.on) == ('a', 'outputs')
  distilled = {**y, 'a': Distilled(y['a'], jnp.ones(1))}
  np.testing.assert_allclose(penalty.value({}, distilled, inputs=inputs), value)


def test_a_task_comes_to_follow_the_other():
  model = sharing.hard(trunks.MLP((8,)), {'a': HEADS['a'], 'b': HEADS['b']})
  penalty = sharing.follow(30.0, 'a', 'b', read=lambda y: y[:, :2] + 1)
  _, state, infos = train(model, TASKS, BATCH, 150, penalties=(penalty,))
  assert infos.finite.all() and infos.penalty[-1] < 0.02 * infos.penalty[0]


def test_follow_names_bad_input_and_a_single_task_has_nothing_to_follow():
  with pytest.raises(InputError, match=r"^follow: found 'a' as student and teacher"):
    sharing.follow(1.0, 'a', 'a')
  penalty, y = sharing.follow(1.0, 'a', 'b'), {'a': jnp.ones((2, 1)), 'c': jnp.ones((2, 1))}
  assert penalty.value({}, {'a': y['a']}, inputs={'a': X}) == 0
  with pytest.raises(InputError, match=r"^follow: found \['a', 'b'\], expected \['a', 'c'\]: unknown \['b'\]"):
    penalty.value({}, y, inputs=dict.fromkeys('ac', X))
  with pytest.raises(InputError, match=r"^follow: found a multi-input batch, expected 'a' and 'b' on the same inputs"):
    penalty.value({}, {'a': y['a'], 'b': y['c']}, inputs={'a': X, 'b': X + 0})
