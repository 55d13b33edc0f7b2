"""Level oracle: every method against a plain numpy account of its recurrence on a small problem that is not linear."""

import balancing_recurrences as plain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from balancing_asserts import CHEAP, aggregate
from balancing_recurrences import DATA, RATE, STEPS, THETA, T, flat, fresh, rows_at, simplex_qp, stepper, update

from mtljax import balancing as b
from mtljax.balancing._forum import _multipliers
from mtljax.balancing._oracle import project_simplex

PRIMARY = np.array([1.0, 0.0, 0.5])
RECURRENCES = {  # balancer, its account in numpy, which entry of the state the account tells
  'modo': (b.modo(0.2, 0.1), lambda: plain.modo(0.2, 0.1), 'weights'),
  'sdmgrad': (b.sdmgrad(0.3, 5, 0.5, 0.5), lambda: plain.sdmgrad(0.3, 5, 0.5, 0.5), 'weights'),
  'auto_lambda': (
    b.auto_lambda(PRIMARY, 0.1, 0.2, optax.adam(0.05)),
    lambda: plain.auto_lambda(PRIMARY, 0.1, 0.2, 0.05),
    'weights',
  ),
  'moml': (b.moml(0.1, optax.adam(0.2)), lambda: plain.moml(0.1, 0.2), 'logits'),
  'forum': (b.forum(2.0, 0.1, 3, 0.5, optax.adam(0.2)), lambda: plain.forum(2.0, 0.1, 3, 0.5, 0.2), 'logits'),
  'forum-slack': (b.forum(0.1, 0.05, 2, 0.0, optax.adam(0.2)), lambda: plain.forum(0.1, 0.05, 2, 0.0, 0.2), 'logits'),
}
METHODS = [name for name in RECURRENCES if '-' not in name]


@pytest.mark.parametrize('name', RECURRENCES)
def test_recurrence(name, x64):
  """Directions and states of several steps, hypergradients by finite differences; the step is traced once."""
  balancer, account, entry = RECURRENCES[name]
  step, traces = stepper(balancer)
  reference = account()
  next(reference)
  theta, state, began = THETA, fresh(balancer), None
  for k in range(STEPS):
    direction, told = reference.send(np.asarray(theta))
    theta, state, found = step(theta, state, DATA, np.int32(k), np.ones(T, bool))
    np.testing.assert_allclose(found, direction, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(getattr(state, entry), told, rtol=1e-5, atol=1e-7)
    began = told if began is None else began
  assert len(traces) == 1 and np.abs(told - began).max() > 1e-2  # weights have moved


MOVING = {  # steps of the weights in proportion to what they see, and none at all
  'modo': (b.modo(0.2, 0.1), b.modo(gamma=0.0)),
  'sdmgrad': (b.sdmgrad(0.3, 5, 0.5, 0.5), b.sdmgrad(0.3, 5, 0.0, 0.5)),
  'auto_lambda': (b.auto_lambda(optimizer=optax.sgd(1.0)), b.auto_lambda(optimizer=optax.sgd(0.0))),
  'moml': (b.moml(optimizer=optax.sgd(1.0)), b.moml(optimizer=optax.sgd(0.0))),
}


@pytest.mark.parametrize('name', MOVING)
def test_parts(name, x64):
  """Part 0 makes the direction, and of two parts both, of three the others the weights."""
  moving, still = MOVING[name]
  step = lambda balancer, data: stepper(balancer)[0](THETA, fresh(balancer), data, np.int32(0), np.ones(T, bool))
  leaf = lambda state: np.asarray(state[0])
  _, state, direction = step(moving, DATA)
  _, _, fixed = step(still, DATA)
  for part in range(moving.parts):
    data = DATA.copy()
    data[part] = 1.5 * DATA[part][:, :, ::-1] + 0.3
    _, other, turned = step(moving, data)
    weights_differ = np.abs(leaf(other) - leaf(state)).max() > 1e-4
    assert weights_differ == (part > 0 or moving.parts == 2), part
    assert np.abs(turned - direction).max() > 1e-4
    assert (np.abs(step(still, data)[2] - fixed).max() < 1e-12) == (part > 0), part


def test_parts_of_forum(x64):
  """The outer part makes the unit gradients and the multipliers; the inner one the constraint, which binds or not."""
  step, _ = stepper(RECURRENCES['forum'][0])
  ask = lambda data: step(THETA, fresh(RECURRENCES['forum'][0]), data, np.int32(0), np.ones(T, bool))
  _, state, direction = ask(DATA)
  for part in range(2):
    data = DATA.copy()
    data[part] = 1.5 * DATA[part][:, :, ::-1] + 0.3
    _, other, turned = ask(data)
    assert np.abs(turned - direction).max() > 1e-2
    assert np.abs(other.average - state.average).max() > 1e-3


PASSES = {  # backward passes through the trunk that the docstrings promise
  'modo': T + 2,
  'sdmgrad': 2 * T + 1,
  'auto_lambda': T + 1,
  'moml': 2 * T,
  'forum': T + 3 + 1,
}


@pytest.mark.parametrize('name', METHODS)
def test_backward_passes(name, x64):
  """As many as promised; and one operation after another gives what the compiled step does."""
  balancer, calls = RECURRENCES[name][0], []
  with jax.disable_jit():
    eager, _ = update(balancer, fresh(balancer), THETA, DATA, calls=calls)
  compiled = stepper(balancer)[0](THETA, fresh(balancer), DATA, np.int32(0), np.ones(T, bool))[2]
  np.testing.assert_allclose(flat(eager), compiled, rtol=1e-9)
  assert sum(1 if weighted else T for _, weighted in calls) == PASSES[name]
  assert {part for part, _ in calls} == set(range(balancer.parts))


@pytest.mark.parametrize('name', METHODS)
def test_an_absent_task_is_a_deleted_one(name, x64):
  """Whatever its rows and losses hold; its state rests."""
  balancer = MOVING[name][0] if name == 'auto_lambda' else RECURRENCES[name][0]  # no numbers task by task
  kept, present = np.array([0, 2]), np.array([True, False, True])
  start, small = fresh(balancer), fresh(balancer, 2)
  theta, state, other = THETA, start, THETA
  for k in range(2):
    theta, state, _ = stepper(balancer)[0](theta, state, DATA, np.int32(k), present)
    other, small, _ = stepper(balancer, (0, 2))[0](other, small, DATA[:, kept], np.int32(k), np.ones(2, bool))
  assert np.abs(theta - THETA).max() > 1e-2
  np.testing.assert_allclose(theta, other, rtol=1e-9)
  for new, old, deleted in zip(*map(jax.tree.leaves, (state, start, small))):
    np.testing.assert_array_equal(new[1], old[1])
    np.testing.assert_allclose(new[kept], deleted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(('name', 'entry'), [('modo', 'weights'), ('sdmgrad', 'weights'), ('forum', 'average')])
def test_who_stays_shares_the_simplex(name, entry, x64):
  """A task that leaves takes its weight with it."""
  balancer, kept = RECURRENCES[name][0], np.array([0, 2])
  _, state, _ = stepper(balancer)[0](THETA, fresh(balancer), DATA, np.int32(0), np.ones(T, bool))
  w = np.array([0.2, 0.5, 0.3])
  state = state._replace(**{entry: jnp.asarray(w)})
  small = jax.tree.map(lambda x: x[kept], state)._replace(**{entry: jnp.asarray(w[kept] / 0.5)})
  _, after, d = stepper(balancer)[0](THETA, state, DATA, np.int32(3), np.array([True, False, True]))
  _, want, e = stepper(balancer, (0, 2))[0](THETA, small, DATA[:, kept], np.int32(3), np.ones(2, bool))
  np.testing.assert_allclose(d, e, rtol=1e-8)
  np.testing.assert_allclose(getattr(after, entry)[kept], getattr(want, entry), rtol=1e-8)


def ask(balancer, state, without=None, kinds=(0, 1, 2), data=DATA):
  """(new state, direction) of step 3, where part `without` has no label of task 1."""
  labelled = np.ones((3, len(kinds)), bool)
  if without is not None:
    labelled[without, 1] = False
  return stepper(balancer, kinds)[0](THETA, state, data, np.int32(3), labelled)[1:]


def warm(name, **entries):
  """A state after one step, the optimiser's memory included; then with these entries."""
  balancer = RECURRENCES[name][0]
  state = stepper(balancer)[0](THETA, fresh(balancer), DATA, np.int32(0), np.ones(T, bool))[1]
  return state._replace(**{entry: jnp.asarray(value) for entry, value in entries.items()})


KEPT = np.array([0, 2])


def rests(after, before):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), after, before)


def assert_same(found, want, rtol=1e-8):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12), found, want)


@pytest.mark.parametrize('name', ['modo', 'sdmgrad'])
@pytest.mark.parametrize('without', [1, 2])
def test_a_task_without_labels_in_a_part_keeps_its_weight(name, without, x64):
  """Its zero row is no stationary task; the others share the rest as if it were deleted."""
  balancer, w = RECURRENCES[name][0], np.array([0.2, 0.5, 0.3])
  after, d = ask(balancer, warm(name, weights=w), without)
  small = fresh(balancer, 2)._replace(weights=jnp.asarray(w[KEPT] / 0.5))
  want, _ = ask(balancer, small, kinds=(0, 2), data=DATA[:, KEPT])
  assert_same(after.weights, np.insert(0.5 * np.asarray(want.weights), 1, 0.5))
  rows = rows_at(THETA, 0)
  pulled = after.weights + 0.3 / 3 if name == 'sdmgrad' else after.weights
  np.testing.assert_allclose(d, pulled @ rows / (1.3 if name == 'sdmgrad' else 1), rtol=1e-6)


@pytest.mark.parametrize('name', ['modo', 'sdmgrad'])
def test_a_task_without_labels_in_part_0_is_weighed_all_the_same(name, x64):
  balancer, state = RECURRENCES[name][0], warm(name)
  assert_same(ask(balancer, state, 0)[0], ask(balancer, state)[0])


@pytest.mark.parametrize('name', ['moml', 'forum'])
def test_a_task_without_labels_in_the_inner_part(name, x64):
  """As one without weight there; its logit and its optimiser's state rest."""
  balancer, state = RECURRENCES[name][0], warm(name)
  after, d = ask(balancer, state, 0)
  want, e = ask(balancer, state._replace(logits=state.logits.at[1].set(-1e9)))
  np.testing.assert_allclose(d, e, rtol=1e-8)
  rests(after[:2], state[:2])
  assert_same(jax.tree.map(lambda x: x[KEPT], after), jax.tree.map(lambda x: x[KEPT], want))
  assert np.abs(after.logits - state.logits).max() > 1e-3


def test_forum_without_labels_in_the_outer_part(x64):
  """Its average rests, the others' are as if it were deleted."""
  balancer, average = RECURRENCES['forum'][0], np.array([0.2, 0.5, 0.3])
  state = warm('forum', average=average)
  state = state._replace(logits=state.logits.at[1].set(-1e9))
  after, d = ask(balancer, state, 1)
  small = jax.tree.map(lambda x: x[KEPT], state)._replace(average=jnp.asarray(average[KEPT] / 0.5))
  want, e = ask(balancer, small, kinds=(0, 2), data=DATA[:, KEPT])
  np.testing.assert_allclose(d, e, rtol=1e-8)
  assert_same(after.average, np.insert(0.5 * np.asarray(want.average), 1, 0.5))
  assert_same(after.logits[KEPT], want.logits)


def test_moml_without_labels_in_the_outer_part(x64):
  """It has no say, as a stationary one; its logit moves with what the others say."""
  balancer, state = RECURRENCES['moml'][0], warm('moml')
  data = DATA.copy()
  data[1, 1] = 0
  after = ask(balancer, state, 1)
  assert_same(after, ask(balancer, state, data=data))
  assert np.abs(after[0].logits - state.logits)[1] > 1e-3


def test_auto_lambda_without_labels(x64):
  """Inner part: the weight rests, memory of the optimiser or not. Outer part: the task is not aimed at."""
  make = lambda primary: b.auto_lambda(primary, 0.1, 0.2, optax.adam(0.05))
  every, others = make((1.0, 1.0, 1.0)), make((1.0, 0.0, 1.0))
  state = warm('auto_lambda')
  assert_same(ask(every, state, 1), ask(others, state))
  data = DATA.copy()
  data[0, 1] = 0
  after, d = ask(every, state, 0)
  want, e = ask(every, state, data=data)
  rests(after, state)
  assert_same((after.weights[KEPT], d), (want.weights[KEPT], e))
  assert abs(want.weights[1] - state.weights[1]) > 1e-3  # what a stationary task does


@pytest.mark.parametrize('name', ['modo', 'sdmgrad', 'auto_lambda', 'moml'])
def test_no_label_in_a_part_is_no_step_of_the_weights(name, x64):
  balancer, state = RECURRENCES[name][0], warm(name)
  labelled = np.repeat([[True], [False], [True]], T, axis=1)
  _, after, d = stepper(balancer)[0](THETA, state, DATA, np.int32(3), labelled)
  assert_same(after, state)
  assert np.abs(d).max() > 1e-2


@pytest.mark.parametrize(('name', 'entry'), [('modo', 'weights'), ('sdmgrad', 'weights'), ('forum', 'average')])
def test_who_has_all_the_weight_leaves(name, entry, x64):
  """The others start over from equal weights."""
  step, present = stepper(RECURRENCES[name][0])[0], np.array([True, False, True])
  alone, equal = (warm(name, **{entry: np.array(w)}) for w in ([0.0, 1.0, 0.0], [0.5, 0.0, 0.5]))
  _, after, d = step(THETA, alone, DATA, np.int32(3), present)
  _, want, e = step(THETA, equal, DATA, np.int32(3), present)
  np.testing.assert_allclose(d, e, rtol=1e-8)
  np.testing.assert_allclose(getattr(after, entry)[KEPT], getattr(want, entry)[KEPT], rtol=1e-8)
  assert np.sum(getattr(after, entry)[KEPT]) == pytest.approx(1)


@pytest.mark.parametrize('name', METHODS)
def test_nobody_present(name, x64):
  step, _ = stepper(RECURRENCES[name][0])
  _, state, _ = step(THETA, fresh(RECURRENCES[name][0]), DATA, np.int32(0), np.ones(T, bool))
  theta, after, _ = step(THETA, state, DATA, np.int32(1), np.zeros(T, bool))
  np.testing.assert_array_equal(theta, THETA)
  jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize('name', METHODS)
def test_scan_is_a_loop(name, x64):
  """A whole training run as one program."""
  balancer = RECURRENCES[name][0]

  def run(theta, state):
    def body(carry, k):
      theta, state = carry
      d, state = update(balancer, state, theta, DATA, k)
      return (theta - RATE * jnp.append(d['w'], d['b']), state), None

    return jax.lax.scan(body, (theta, state), jnp.arange(STEPS))[0]

  theta, state = THETA, fresh(balancer)
  for k in range(STEPS):
    theta, state, _ = stepper(balancer)[0](theta, state, DATA, np.int32(k), np.ones(T, bool))
  found = jax.jit(run, compiler_options=CHEAP)(jnp.asarray(THETA), fresh(balancer))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8), found, (theta, state))


@pytest.mark.parametrize('name', METHODS)
def test_one_task(name, x64):
  """Along its gradient on part 0; FORUM's is between those on both parts."""
  balancer = MOVING[name][0] if name == 'auto_lambda' else RECURRENCES[name][0]
  step, _ = stepper(balancer, (0,))
  d = step(THETA, fresh(balancer, 1), DATA[:, :1], np.int32(0), np.ones(1, bool))[2]
  inner, outer = rows_at(THETA, 0)[0], rows_at(THETA, 1)[0]
  columns = np.stack([inner, outer], axis=1) if name == 'forum' else inner[:, None]
  share = np.linalg.lstsq(columns, np.asarray(d), rcond=None)[0]
  np.testing.assert_allclose(columns @ share, d, atol=1e-7)
  assert np.all(share > 0)


@pytest.mark.parametrize('name', METHODS)
def test_zero_gradients(name, x64):
  balancer = RECURRENCES[name][0]
  step, _ = stepper(balancer)
  for zero in ([1], [0, 1, 2]):
    data = DATA.copy()
    data[:, zero] = 0
    state = fresh(balancer)
    for k in range(2):
      _, state, d = step(THETA, state, data, np.int32(k), np.ones(T, bool))
      assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((d, state)))
  assert not np.any(d)


def test_a_sweep_is_a_vmap(x64):
  """Numbers may be traced: one program for all of them."""

  def weights(gamma, rho, lam, rate):
    J = jnp.array([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    l = jnp.array([1.0, 2.0, 0.5])
    balancers = (
      b.modo(gamma, rho),
      b.sdmgrad(lam, 5, rate, 0.0),
      b.auto_lambda(inner_lr=gamma, initial=lam),
      b.moml(inner_lr=gamma),
      b.forum(rho, gamma, 2, lam),
      b.conicgrad(lam),
    )
    return [b.aggregate(balancer, J, l).direction for balancer in balancers]

  values = np.array([[0.02, 0.1, 0.3, 0.1], [0.1, 1.0, 0.9, 2.0]])
  jitted = jax.jit(weights, compiler_options=CHEAP)
  swept = jax.jit(jax.vmap(weights), compiler_options=CHEAP)(*values.T)
  for i, numbers in enumerate(values):
    alone = jitted(*numbers)
    for x, y in zip(swept, alone):
      np.testing.assert_allclose(x[i], y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('aim', [1e-6, 0.3, 50.0])
def test_multipliers_of_forum(aim, x64):
  """The constrained direction's dual against all faces, dependent rows and a zero row included."""
  rng = np.random.default_rng(1)
  for case in range(12):
    F = rng.normal(size=(4, 3))
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    F[3] = (F[0], np.zeros(3), F[3])[case % 3]
    u = rng.normal(size=3)
    u = u / np.linalg.norm(u)
    rows = np.append(F, u[None], axis=0)
    K, linear = rows @ rows.T, np.append(np.zeros(4), -aim)
    m = np.asarray(_multipliers(jnp.asarray(F @ F.T), jnp.asarray(F @ u), jnp.asarray(aim), jnp.ones(4, bool)))
    best = simplex_qp(K, linear, 4)
    x = np.append(m, max(aim - m @ F @ u, 0))
    value = lambda x: x @ K @ x / 2 + linear @ x  # noqa: B023
    assert m.min() >= 0 and m.sum() == pytest.approx(1, abs=1e-12)
    assert value(x) <= value(best) + 1e-9 * max(1, aim**2)


def test_projection_onto_the_simplex(x64):
  rng = np.random.default_rng(2)
  for scale in (1e-3, 1.0, 1e12):
    v, present = scale * rng.normal(size=5), np.array([True, True, False, True, True])
    found = np.asarray(project_simplex(jnp.asarray(v), jnp.asarray(present)))
    want = simplex_qp(np.eye(4), -(v[present] - v[present].max()), 4)
    np.testing.assert_allclose(found[present], want, atol=1e-9)
    assert found[2] == 0 and found.sum() == pytest.approx(1, abs=1e-12)


def test_moml_rests_where_held_out_losses_disagree():
  """Rows of opposite sign meet in 0, not in rounding that Adam would blow up; so do equal tasks."""
  for J in (((1.0, 0.0), (-1.0, 0.0)), ((0.3, 0.7), (0.3, 0.7))):
    logits = aggregate(b.moml(), jnp.array(J)).state.logits
    np.testing.assert_array_equal(logits, 0)
