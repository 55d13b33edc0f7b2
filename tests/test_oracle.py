"""Level oracle in the engine: parts of a batch, moved shared parameters, an outer batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl

NAMES = problems.NAMES


def spy(ask, parts=1, seen=None):
  """A balancer of level oracle that answers `ask(oracle)`: a direction, and what else goes into the list `seen`."""

  def update(oracle, state, /, **_):
    direction, found = ask(oracle)
    if seen is not None:
      jax.debug.callback(seen.append, found)
    return direction, state

  return mtl.Balancer(lambda _: (), update, 'oracle', parts=parts)


def step_once(balancer, batch, *, mode='jit', net=None, **options):
  setup = problems.setup(balancer, data=batch, net=net, opt=plain())
  step = mtl.compile_step(mtl.make_train_step(*setup[:4], **options), mode=mode, donate=False)
  return setup[-1], *step(setup[-1], batch)


def asked(ask, batch, parts=1, net=None):
  """(state, state after, info, what the spy has seen)."""
  seen = []
  result = step_once(spy(ask, parts, seen), batch, net=net)
  jax.effects_barrier()
  return *result, seen[0]


def plain():
  return mtl.task_optimizer(shared=optax.sgd(1.0), tasks={name: optax.sgd(1.0) for name in NAMES})


def moved(before, after):
  """The gradient that SGD with rate 1 followed."""
  return jax.tree.map(lambda a, b: a - b, before.params, after.params)


def fixed(weights):
  return mtl.Balancer(lambda _: (), lambda _, s, /, **kw: (weights, s), 'gramian')


KINDS = {
  'single': lambda: problems.batch(),
  'items': lambda: problems.batch(masks='items'),
  'multi': lambda: problems.multi(masks='examples'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_the_jacobian_and_one_gradient(kind):
  """Rows, their combination for a single pullback, and heads that get their plain gradient."""
  batch = KINDS[kind]()
  w = jnp.array([0.3, -1.7])

  def ask(oracle):
    whole, one = oracle(), oracle(weights=w)
    J = whole.grads['shared']
    return jax.tree.map(lambda r: jnp.tensordot(w, r, 1), J), (J, one.grads['shared'], whole.losses, whole.present)

  state, after, info, (J, one, losses, present) = asked(ask, batch)
  rows = []
  plain_sum = mtl.Balancer(
    lambda _: (), lambda J, s, /, **_: (jax.debug.callback(rows.append, J), (jax.tree.map(sum, J), s))[1], 'jacobian'
  )
  _, plainly, _ = step_once(plain_sum, batch)
  jax.effects_barrier()
  problems.leaves_close(J, rows[0], rtol=1e-5, atol=1e-6)
  direction = moved(state, after)
  problems.leaves_close(one, direction['shared'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(losses, info.losses, rtol=1e-6)
  assert present.all() and info.weights is None and info.gramian is None and info.norms is None
  problems.leaves_close(direction['tasks'], moved(state, plainly)['tasks'], rtol=1e-5, atol=1e-6)


def test_moved_shared_parameters():
  """The gradient at a moved point is that of a state there; in a loop too."""
  batch = problems.batch()
  state = problems.setup(mtl.balancing.equal(), data=batch)[-1]
  delta = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), state.params['shared'])

  def ask(oracle):
    def body(_, d):
      return jax.tree.map(lambda d, g: d - 0.1 * g, d, oracle(d, weights=jnp.ones(2)).grads['shared'])

    return oracle(delta, weights=jnp.ones(2)).grads['shared'], jax.lax.fori_loop(0, 3, body, delta)

  state, after, _, walk = asked(ask, batch)
  there = state.replace(params={**state.params, 'shared': jax.tree.map(jnp.add, state.params['shared'], delta)})
  setup = problems.setup(mtl.balancing.equal(), data=batch, opt=plain())
  step = jax.jit(mtl.make_train_step(*setup[:4]))
  problems.leaves_close(
    moved(state, after)['shared'], moved(there, step(there, batch)[0])['shared'], rtol=1e-5, atol=1e-6
  )
  params = there
  for _ in range(3):
    grads = moved(params, step(params, batch)[0])['shared']
    params = params.replace(
      params={**params.params, 'shared': jax.tree.map(lambda p, g: p - 0.1 * g, params.params['shared'], grads)}
    )
  walked = jax.tree.map(lambda a, b: a - b, params.params['shared'], state.params['shared'])
  problems.leaves_close(walk, walked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['items', 'multi'])
def test_parts_are_interleaved_rows(kind):
  batch = KINDS[kind]()
  ask = lambda oracle: (oracle(part=1, weights=jnp.ones(2)).grads['shared'], oracle(part=1).losses)
  state, after, _, losses = asked(ask, batch, parts=3)
  piece = jax.tree.map(lambda x: x[1::3], batch)
  _, want, info = step_once(fixed(jnp.ones(2)), piece)
  problems.leaves_close(moved(state, after)['shared'], moved(state, want)['shared'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(losses, info.losses, rtol=1e-5)


@pytest.mark.parametrize('kind', ['multi'])
def test_an_outer_batch_is_the_last_part(kind):
  outer = KINDS[kind]()
  batch = {**jax.tree.map(lambda x: x[::-1], outer), 'outer': jax.tree.map(lambda x: x[:5], outer)}

  def ask(oracle):
    return oracle(part=1, weights=jnp.ones(2)).grads['shared'], oracle(part=0, weights=jnp.ones(2)).grads['shared']

  state, after, _, inner = asked(ask, batch, parts=2)
  for found, source in ((moved(state, after)['shared'], batch['outer']), (inner, batch)):
    _, want, _ = step_once(fixed(jnp.ones(2)), {k: v for k, v in source.items() if k != 'outer'})
    problems.leaves_close(found, moved(state, want)['shared'], rtol=1e-5, atol=1e-6)


def test_other_levels_leave_an_outer_batch_alone():
  batch = problems.batch()
  _, want, _ = step_once(mtl.balancing.mgda(), batch)
  _, after, _ = step_once(mtl.balancing.mgda(), {**batch, 'outer': problems.batch(7)})
  problems.leaves_close(after, want, rtol=0)


def test_an_absent_task_has_a_zero_row_and_nothing_moves_without_tasks():
  ask = lambda oracle: (oracle(weights=jnp.ones(2)).grads['shared'], (oracle().grads['shared'], oracle().present))
  state, after, info, (J, present) = asked(ask, problems.batch(masks='absent'))
  assert present.tolist() == [True, False]
  assert all(not row[1].any() and row[0].any() for row in jax.tree.leaves(J))
  problems.leaves_close(after.params['tasks']['size'], state.params['tasks']['size'], rtol=0)
  stays = spy(lambda oracle: (oracle(weights=jnp.ones(2)).grads['shared'], ()))
  state, after, info = step_once(stays, problems.batch(masks='none'))
  problems.leaves_close(after.params, state.params, rtol=0)
  assert int(after.step) == 1


def test_dropout_is_the_same_in_every_call_on_a_part():
  def ask(oracle):
    a, b = oracle(weights=jnp.ones(2)), oracle(weights=jnp.ones(2))
    return a.grads['shared'], (b.grads['shared'], oracle(part=0).losses)

  state, after, info, (again, losses) = asked(ask, problems.batch(), net=problems.model(dropout=0.5))
  problems.leaves_close(moved(state, after)['shared'], again, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(losses, info.losses, rtol=1e-6)  # part 0 of one part is the batch of the step


@functools.cache
def reference(kind):
  return train('jit', kind)


def train(mode, kind):
  batches = problems.masked_batches(kind)
  lookahead = spy(
    lambda oracle: (
      oracle(
        jax.tree.map(lambda g: -0.1 * g, oracle(part=0, weights=jnp.ones(2)).grads['shared']),
        part=1,
        weights=jnp.array([1.0, 0.5]),
      ).grads['shared'],
      (),
    ),
    parts=2,
  )
  setup = problems.setup(lookahead, data=batches[0], net=problems.model(norm=True))
  step, state = mtl.compile_step(mtl.make_train_step(*setup[:4]), mode=mode), setup[-1]
  infos = []
  for batch in batches:
    state, info = step(state, batch)
    infos.append(info)
  return jax.device_get((state.replace(key=None), infos))


@pytest.mark.parametrize('mode, kind', [('pmap', 'single'), ('shard_map', 'multi'), ('sharded', 'items')])
def test_parity_over_devices(mode, kind):
  problems.leaves_close(train(mode, kind), reference(kind), rtol=3e-4, atol=3e-5)


BAD = {
  'part': (lambda o: (o(part=2).grads['shared'], ()), 2, None, r'part: found 2, expected one of \[0, 1\]'),
  'direction': (lambda o: (jnp.ones(3), ()), 1, None, 'balancer: found a direction'),
  'small batch': (lambda o: (o(weights=jnp.ones(2)).grads['shared'], ()), 9, None, 'found 8 examples of task .digit.'),
  'outer': (
    lambda o: (o(weights=jnp.ones(2)).grads['shared'], ()),
    2,
    {'inputs': jnp.ones((2, 5))},
    r"batch\['outer'\]",
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  ask, parts, outer, message = BAD[name]
  batch = problems.batch() | ({} if outer is None else {'outer': outer})
  with pytest.raises(mtl.InputError, match=message):
    step_once(spy(ask, parts), batch)


def test_devices_have_to_split_like_one():
  ask = lambda oracle: (oracle(weights=jnp.ones(2)).grads['shared'], ())
  with pytest.raises(
    mtl.InputError, match='found 2 examples of task .digit., expected a multiple of 3 on every device'
  ):
    step_once(spy(ask, parts=3), problems.batch(), mode='shard_map')


def test_a_part_that_is_not_finite_drops_its_task():
  """The outer batch has a NaN among the labels of 'size': its row there is zero, elsewhere it is not."""
  outer = problems.batch(3)
  outer['labels']['size'] = outer['labels']['size'].at[0].set(jnp.nan)
  batch = problems.batch() | {'outer': outer}
  ask = lambda o: (o(weights=jnp.ones(2)).grads['shared'], (o(part=1).present, o(part=1).grads['shared']))
  seen = []
  _, _, info = step_once(spy(ask, 2, seen), batch, on_nonfinite='drop')
  jax.effects_barrier()
  present, J = seen[0]
  assert info.finite and info.present.all() and present.tolist() == [True, False]
  assert all(np.isfinite(row).all() and not row[1].any() for row in jax.tree.leaves(J))


def test_features_are_refused():
  ask = lambda oracle: (oracle(weights=jnp.ones(2)).grads['shared'], ())
  with pytest.raises(mtl.InputError, match="level 'oracle'"):
    step_once(spy(ask), problems.batch(), at='features')
