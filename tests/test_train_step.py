"""The step: the face of the library as it is documented, purity, one trace, what is not finite."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl


def test_the_face_of_the_library():
  r = np.random.default_rng(0)
  labels = {'digit': r.integers(0, 10, 16), 'parity': r.integers(0, 2, 16)}
  batch = {'inputs': r.normal(size=(16, 8, 8)).astype(np.float32), 'labels': labels}

  model = mtl.sharing.hard(trunk=mtl.trunks.MLP((64, 64)), heads={'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  tasks = (
    mtl.Task('digit', loss=mtl.losses.softmax_cross_entropy),
    mtl.Task('parity', loss=mtl.losses.softmax_cross_entropy, weight=0.5),
  )
  optimizer = mtl.task_optimizer(shared=optax.adam(1e-3), tasks={'digit': optax.adam(1e-3), 'parity': optax.sgd(1e-2)})
  balancer = mtl.balancing.cagrad(c=0.4)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  step = mtl.make_train_step(model, tasks, optimizer, balancer, at='params', penalties=())
  step = mtl.compile_step(step, mode='jit')
  first = None
  for _ in range(30):
    state, info = step(state, batch)
    first = info.losses if first is None else first
  assert info.losses.shape == info.weights.shape == (2,) and info.gramian.shape == (2, 2)
  assert int(state.step) == 30 and (info.losses < 0.8 * first).all()


@pytest.mark.parametrize('name', problems.BALANCERS)
def test_one_trace_whatever_the_masks(name):
  make, at = problems.BALANCERS[name]
  net, tasks, optimizer, balancer, state = problems.setup(make(), data=problems.batch(masks='examples'))
  step = chex.assert_max_traces(mtl.make_train_step(net, tasks, optimizer, balancer, at=at), n=1)
  compiled = jax.jit(step)
  for masks in ('examples', 'examples', 'absent'):
    batch = problems.batch(masks=masks)
    batch['mask'].setdefault('digit', jnp.ones(problems.B, bool))
    state, _ = compiled(state, batch)
  chex.clear_trace_counter()


FULL = [pytest.param(name, marks=pytest.mark.full) for name in ('equal', 'mgda-features', 'pcgrad')]


@pytest.mark.parametrize('name', ['famo', 'graddrop', *FULL])
def test_lanes_of_vmap_and_steps_of_scan_are_plain_steps(name):
  make, at = problems.BALANCERS[name]
  net, tasks, optimizer, balancer, state = problems.setup(make())
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer, at=at))
  batches = [problems.batch(i) for i in range(3)]
  keys = jax.random.split(jax.random.key(0), 2)
  lanes = jax.vmap(lambda k: mtl.init_state(net, tasks, optimizer, balancer, batches[0], k))(keys)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  scanned, infos = jax.jit(jax.vmap(lambda s: jax.lax.scan(step, s, stacked)))(lanes)
  for lane in range(2):
    one = mtl.init_state(net, tasks, optimizer, balancer, batches[0], keys[lane])
    for batch in batches:
      one, info = step(one, batch)
    got = jax.tree.map(lambda x, i=lane: x[i], scanned)
    problems.leaves_close(got, one, rtol=5e-5, atol=5e-6)
    np.testing.assert_allclose(infos.losses[lane, -1], info.losses, rtol=1e-5)


@pytest.mark.parametrize('name', ['equal', 'mgda', 'graddrop', 'mgda-features'])
def test_what_is_not_finite_is_reported_and_never_spreads(name):
  make, at = problems.BALANCERS[name]
  net, tasks, optimizer, balancer, state = problems.setup(make(), net=problems.model(norm=True))
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer, at=at))
  good = problems.batch()
  bad = {**good, 'labels': {**good['labels'], 'size': good['labels']['size'].at[3, 1].set(jnp.nan)}}
  state, info = step(state, good)
  assert info.finite
  after, info = step(state, bad)
  assert not info.finite and jnp.isfinite(info.losses).tolist() == [True, False]
  problems.leaves_close(after.replace(step=state.step), state, rtol=0)
  after, info = step(after, good)
  assert info.finite and all(jnp.isfinite(x).all() for x in jax.tree.leaves(after.params))


def test_a_gradient_that_is_not_finite_is_reported():
  tasks = (problems.tasks()[0], mtl.Task('size', loss=lambda y, z: jnp.sqrt(jnp.abs(y * 0))[:, 0]))
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal(), task_list=tasks)
  after, info = mtl.make_train_step(net, tasks, optimizer, balancer)(state, problems.batch())
  assert jnp.isfinite(info.losses).all() and not info.finite
  problems.leaves_close(after.params, state.params, rtol=0)


def test_penalties_are_outside_the_balancer_and_come_and_go_with_their_task():
  penalties = (mtl.penalties.l2(0.5, where='shared'), mtl.penalties.l2(0.3, where='tasks/size', task='size'))
  sgd = mtl.task_optimizer(shared=optax.sgd(1.0), tasks={'digit': optax.sgd(1.0), 'size': optax.sgd(1.0)})
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda(), opt=sgd)
  for masks in ('examples', 'absent'):
    batch = problems.batch(masks=masks)
    plain, info = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))(state, batch)
    step = mtl.make_train_step(net, tasks, optimizer, balancer, penalties=penalties)
    pulled, with_info = jax.jit(step)(state, batch)
    np.testing.assert_allclose(info.gramian, with_info.gramian)
    shrink = lambda beta, a, p: jax.tree.map(lambda a, p: a - beta * p, a, p)
    own = 0.3 if masks == 'examples' else 0.0
    expected = {
      'shared': shrink(0.5, plain.params['shared'], state.params['shared']),
      'tasks': {
        'digit': plain.params['tasks']['digit'],
        'size': shrink(own, plain.params['tasks']['size'], state.params['tasks']['size']),
      },
    }
    problems.leaves_close(pulled.params, expected, rtol=1e-5, atol=1e-6)


def test_draws_are_a_function_of_state_and_batch():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.rlw(), net=problems.model(dropout=0.5))
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))
  a, info_a = step(state, problems.batch())
  b, info_b = step(state, problems.batch())
  problems.leaves_close(a, b, rtol=0)
  _, later = step(state.replace(step=state.step + 1), problems.batch())
  assert not np.allclose(info_a.weights, later.weights) and not np.allclose(info_a.losses, later.losses)


def test_extras_reach_the_balancer():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.rlw())
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer))
  _, info = step(state, problems.batch(), extras={'normal': jnp.array([0.0, np.log(3.0)])})
  np.testing.assert_allclose(info.weights, [0.25, 0.75], rtol=1e-6)


def test_diagnostics_give_norms_and_cosines_for_any_balancer():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  found = mtl.make_diagnostics(net, tasks)(state, problems.batch())
  balancer = mtl.balancing.mgda()
  state = problems.setup(balancer)[-1]
  _, info = mtl.make_train_step(net, tasks, optimizer, balancer)(state, problems.batch())
  np.testing.assert_allclose(found, info.gramian, rtol=1e-6)


BAD = {
  'at': (dict(at='heads'), "at: found 'heads'"),
  'chunk_size': (dict(chunk_size=0), 'chunk_size: found 0'),
  'penalty': (dict(penalties=(3.0,)), 'penalties: found 3.0'),
  'penalty weight': (dict(penalties=(mtl.Penalty(np.nan, lambda p: 0.0),)), 'the weight nan, expected a finite'),
  'penalty task': (dict(penalties=(mtl.Penalty(1.0, lambda p: 0.0, task='sise'),)), "task 'sise'"),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_options_are_named(case):
  options, message = BAD[case]
  net, tasks, optimizer, balancer, _ = problems.setup(mtl.balancing.equal())
  with pytest.raises(mtl.InputError, match=message):
    mtl.make_train_step(net, tasks, optimizer, balancer, **options)


@pytest.mark.parametrize('level', [mtl.balancing.mgda(), mtl.balancing.graddrop()], ids=['gramian', 'jacobian'])
def test_parameters_may_be_numbers(level):
  line = (lambda key, x: {'slope': 0.5}, lambda params, x: params['slope'] * x)
  _, tasks, optimizer, _, _ = problems.setup(mtl.balancing.equal())
  net, batch = mtl.sharing.hard(line, {'digit': nn.Dense(3), 'size': nn.Dense(2)}), problems.batch()
  state = mtl.init_state(net, tasks, optimizer, level, batch, jax.random.key(0))
  new, info = mtl.make_train_step(net, tasks, optimizer, level)(state, batch)
  assert info.finite and new.params['shared']['slope'] != 0.5


def test_bad_setups_are_named():
  net, tasks, optimizer, balancer, _ = problems.setup(mtl.balancing.equal())
  batch, key = problems.batch(), jax.random.key(0)
  with pytest.raises(mtl.InputError, match='typed key'):
    mtl.init_state(net, tasks, optimizer, balancer, batch, jax.random.PRNGKey(0))
  with pytest.raises(mtl.InputError, match='duplicate names'):
    mtl.init_state(net, (tasks[0], tasks[0]), optimizer, balancer, batch, key)
  words = {**batch, 'labels': {**batch['labels'], 'digit': np.array(['one'] * 8)}}
  with pytest.raises(mtl.InputError, match="labels of task 'digit': found dtype <U3, expected numbers"):
    mtl.init_state(net, tasks, optimizer, balancer, words, key)
  with pytest.raises(mtl.InputError, match='balancer'):
    mtl.make_train_step(net, tasks, optimizer, 'equal')
  headless = mtl.sharing.hard(problems.Trunk(), {'digit': nn.Dense(3)})
  with pytest.raises(mtl.InputError, match="'size'"):
    mtl.init_state(headless, tasks, optimizer, balancer, batch, key)
  for bad in (
    {'name': 'labels'},
    {'name': ''},
    {'weight': -1.0},
    {'weight': 'big'},
    {'loss': 3},
    {'metrics': {'a': 1}},
  ):
    with pytest.raises(mtl.InputError):
      mtl.Task(**{'name': 'a', 'loss': lambda y, z: y, **bad})


def test_a_state_of_something_else_is_named():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  batch, compiled = problems.batch(), mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer))
  for call in (compiled, compiled.step):
    with pytest.raises(mtl.InputError, match='state: found dict, expected the mtljax.TrainState'):
      call(batch, state)
  plain = mtl.make_train_step(net, tasks, optax.sgd(0.1), balancer)  # takes any state and forgets it
  with pytest.raises(mtl.InputError, match=r'state.opt_state: found \d+ arrays, expected 0, those of the optimizer'):
    plain(state, batch)
  other = mtl.make_train_step(net, tasks, optimizer, mtl.balancing.uncertainty())
  with pytest.raises(mtl.InputError, match="state.balancer_state: .* 'log_variance'"):
    other(state, batch)
