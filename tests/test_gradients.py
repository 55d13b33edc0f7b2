"""The engine against plain JAX: one jax.grad per task, written without it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl
from mtljax import arrays, gradients, linalg


def loss_of(name, params, model_state, batch, net):
  """L_t of one task by hand: labels that count, their mean."""
  multi = 'inputs' not in batch
  part = batch[name] if multi else {k: (batch[k] if k == 'inputs' else batch[k].get(name)) for k in batch}
  x, y, mask = part['inputs'], part['labels'], part.get('mask')
  z, _ = net.trunk(params['shared'], model_state['shared'], x, tasks=problems.NAMES, train=False, key=None)
  out, _ = net.head(params['tasks'][name], model_state['tasks'][name], z, task=name, train=False, key=None)
  if name == 'digit':
    values = -jax.nn.log_softmax(out)[jnp.arange(len(y)), y]
  else:
    values = (out - jnp.nan_to_num(y)) ** 2
  mask = jnp.ones(values.shape, bool) if mask is None else mask
  mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
  return jnp.sum(values * mask) / jnp.maximum(mask.sum(), 1)


@functools.partial(jax.jit, static_argnums=3)
def by_hand(params, model_state, batch, net):
  grads = [jax.grad(lambda p, n=n: loss_of(n, p, model_state, batch, net))(params) for n in problems.NAMES]
  losses = jnp.stack([loss_of(n, params, model_state, batch, net) for n in problems.NAMES])
  return losses, grads


def run(balancer, batch, *, at='params', net=None, tasks=None, chunk_size=None, penalties=(), key=0, **extras):
  net, tasks, _, balancer, state = problems.setup(balancer, net=net, data=batch, task_list=tasks)

  @jax.jit
  def compute(state, batch):
    return gradients.task_gradients(
      net,
      tasks,
      balancer,
      state.params,
      state.model_state,
      state.balancer_state,
      batch,
      key=jax.random.key(key),
      at=at,
      chunk_size=chunk_size,
      penalties=penalties,
      extras=extras,
    )

  out = compute(state, batch)
  return out, state, net


def weighted(grads, w):
  return jax.tree.map(lambda *g: sum(wt * gt for wt, gt in zip(w, g, strict=True)), *grads)


def gram(grads):
  flat = jnp.stack([jnp.concatenate([x.ravel() for x in jax.tree.leaves(g['shared'])]) for g in grads])
  return flat @ flat.T


BATCHES = {
  'single': lambda: problems.batch(),
  'single-examples': lambda: problems.batch(masks='examples'),
  'single-items': lambda: problems.batch(masks='items'),
  'multi': lambda: problems.multi(),
  'multi-examples': lambda: problems.multi(masks='examples'),
}


@pytest.mark.parametrize('kind', BATCHES)
@pytest.mark.parametrize('level', ['losses', 'gramian', 'jacobian'])
def test_gradients_are_those_of_plain_jax(kind, level):
  w = jnp.array([0.3, 1.7])
  batch = BATCHES[kind]()
  out, state, net = run(fixed(level, w), batch, tasks=problems.tasks(weight=0.5))
  losses, grads = by_hand(state.params, state.model_state, batch, net)
  alphas = jnp.array([0.5, 1.0])
  np.testing.assert_allclose(out.losses, losses, rtol=1e-5)
  problems.leaves_close(out.grads['shared'], weighted(grads, w * alphas)['shared'], rtol=2e-5, atol=1e-6)
  heads = w * alphas if level == 'losses' else alphas  # heads are unbalanced but at level losses
  problems.leaves_close(out.grads['tasks'], weighted(grads, heads)['tasks'], rtol=2e-5, atol=1e-6)
  if level != 'losses':
    np.testing.assert_allclose(out.gramian, gram(grads) * jnp.outer(alphas, alphas), rtol=1e-4, atol=1e-6)


def fixed(level, w):
  """A balancer of any level that always answers w."""

  def update(statistic, state, /, **_):
    return (linalg.combine(w, statistic) if level == 'jacobian' else w), state

  return mtl.Balancer(lambda _: (), update, level)


def test_finite_differences_in_float64(x64):
  batch = jax.tree.map(lambda x: x.astype(jnp.float64) if arrays.is_float(x) else x, problems.batch(masks='items'))
  net, tasks, _, balancer, state = problems.setup(mtl.balancing.equal(), data=batch)
  state = jax.tree.map(lambda x: x.astype(jnp.float64) if arrays.is_float(x) else x, state.replace(key=None))

  @functools.partial(jax.jit, static_argnums=1)
  def engine(params, level):
    return gradients.task_gradients(
      net, tasks, fixed(level, jnp.array([0.3, 1.7])), params, state.model_state, (), batch, key=jax.random.key(0)
    )

  r = np.random.default_rng(0)
  direction = jax.tree.map(lambda p: jnp.asarray(r.normal(size=p.shape)), state.params['shared'])
  moved = lambda h: {**state.params, 'shared': jax.tree.map(lambda p, d: p + h * d, state.params['shared'], direction)}
  slope = (engine(moved(1e-5), 'losses').losses - engine(moved(-1e-5), 'losses').losses) / 2e-5
  for level in ('losses', 'gramian', 'jacobian'):
    grads = engine(state.params, level).grads['shared']
    found = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(found, slope @ jnp.array([0.3, 1.7]), rtol=1e-7)


@pytest.mark.parametrize('kind', ['single', 'single-examples'])
def test_features_give_the_gramian_of_feature_gradients(kind):
  w = jnp.array([0.3, 1.7])
  batch = BATCHES[kind]()
  out, state, net = run(fixed('gramian', w), batch, at='features')
  _, grads = by_hand(state.params, state.model_state, batch, net)
  problems.leaves_close(out.grads['shared'], weighted(grads, w)['shared'], rtol=2e-5, atol=1e-6)
  z, _ = net.trunk(state.params['shared'], {}, batch['inputs'], tasks=problems.NAMES, train=False, key=None)

  def loss_at(z, name):
    fake = net._replace(trunk=lambda *_, **__: (z, {}))
    return loss_of(name, state.params, state.model_state, batch, fake)

  rows = jnp.stack([jax.grad(loss_at)(z, name).ravel() for name in problems.NAMES])
  np.testing.assert_allclose(out.gramian, rows @ rows.T, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('chunk_size, level', [(2, 'gramian'), (5, 'gramian'), (9, 'jacobian')])
def test_chunks_of_tasks_change_nothing(chunk_size, level):
  """Rows of five tasks, two at a time and all at once, against one by one."""
  names = [f't{i}' for i in range(5)]
  tasks = tuple(mtl.Task(n, loss=mtl.losses.squared_error) for n in names)
  net = mtl.sharing.hard(problems.Trunk(), {n: nn.Dense(1) for n in names})
  r = np.random.default_rng(0)
  labels = {n: jnp.asarray(r.normal(size=(8, 1)), jnp.float32) for n in names}
  batch = {'inputs': jnp.asarray(r.normal(size=(8, 5)), jnp.float32), 'labels': labels}
  optimizer = optax.sgd(0.1)
  balancer = fixed(level, jnp.arange(1.0, 6.0))
  state = mtl.init_state(net, tasks, optimizer, balancer, batch, jax.random.key(0))
  args = (net, tasks, balancer, state.params, state.model_state, state.balancer_state, batch)
  compute = lambda size: jax.jit(
    lambda *a: gradients.task_gradients(*args[:3], *a, key=jax.random.key(0), chunk_size=size)
  )(*args[3:])
  whole, chunks = compute(1), compute(chunk_size)
  problems.leaves_close(whole, chunks, rtol=1e-5, atol=1e-6)


def rotated(pairs, default):
  """All pairs, those that are not among the default ones under the marker `full`."""
  assert set(default) <= set(pairs)
  return [pytest.param(*pair, marks=() if pair in default else pytest.mark.full) for pair in pairs]


ABSENT = [('equal', 'single'), ('famo', 'multi'), ('equal-features', 'single'), ('mgda', 'multi')]
ABSENT += [('nash_mtl-features', 'single'), ('pcgrad', 'single'), ('graddrop', 'multi')]


@pytest.mark.parametrize(
  'name, kind', rotated([(name, kind) for name in problems.BALANCERS for kind in ('single', 'multi')], ABSENT)
)
def test_an_absent_task_is_a_deleted_task(name, kind):
  make, at = problems.BALANCERS[name]
  if kind == 'multi' and at == 'features':
    pytest.skip('features are shared by the tasks of a single input only')
  uniform = None
  batch = (problems.batch if kind == 'single' else problems.multi)(masks='absent')
  net, tasks = problems.model(norm=True), problems.tasks()
  balancer, optimizer = make(), problems.optimizer()
  state = mtl.init_state(net, tasks, optimizer, balancer, batch, jax.random.key(0))
  extras = {'order': jnp.array([[0, 1], [0, 1]])}
  if name == 'graddrop':
    uniform = jax.tree.map(lambda p: jnp.full(p.shape, 0.4), state.params['shared'])
    extras['uniform'] = uniform
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer, at=at))
  before = step(state, problems.batch() if kind == 'single' else problems.multi(), extras=extras)[0]  # with momentum
  after, info = step(before, batch, extras=extras)
  assert info.present.tolist() == [True, False] and info.losses[1] == 0
  assert info.weights is None or info.weights[1] == 0
  for part in ('params', 'model_state'):
    problems.leaves_close(getattr(before, part)['tasks']['size'], getattr(after, part)['tasks']['size'], rtol=0)
  own = lambda s: s.opt_state['tasks']['size']
  problems.leaves_close(own(before), own(after), rtol=0)

  # the same step of a model that never had the task
  alone = tasks[:1]
  cut = lambda tree: {**tree, 'tasks': {'digit': tree['tasks']['digit']}}
  one = mtl.task_optimizer(shared=optax.adam(0.1), tasks={'digit': optax.adam(0.1)})
  small = before.replace(
    params=cut(before.params),
    model_state=cut(before.model_state),
    opt_state=cut(before.opt_state),
    balancer_state=_first_entries(before.balancer_state),
  )
  if kind == 'single':
    data = {'inputs': batch['inputs'], 'labels': {'digit': batch['labels']['digit']}}
  else:
    data = {'digit': batch['digit']}
  extras = {'order': jnp.array([[0]])} | ({'uniform': uniform} if uniform is not None else {})
  small_after, _ = jax.jit(mtl.make_train_step(net, alone, one, balancer, at=at))(small, data, extras=extras)
  problems.leaves_close(cut(after.params), small_after.params, rtol=1e-6, atol=1e-7)
  problems.leaves_close(cut(after.model_state), small_after.model_state, rtol=1e-6, atol=1e-7)
  problems.leaves_close(_first_entries(after.balancer_state), small_after.balancer_state, rtol=1e-6, atol=1e-7)


def _first_entries(tree):
  """The balancer state of the first task only."""

  def cut(x):
    for axis in range(x.ndim):
      x = x if x.shape[axis] != 2 else jnp.take(x, jnp.array([0]), axis=axis)
    return x

  return jax.tree.map(cut, tree)


def test_without_any_label_only_the_step_moves():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.famo(), net=problems.model(norm=True))
  step = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))
  before, _ = step(state, problems.batch())
  after, info = step(before, problems.batch(masks='none'))
  assert int(after.step) == int(before.step) + 1 and not info.present.any()
  problems.leaves_close(after.replace(step=before.step), before, rtol=0)


def test_weight_zero_counts_as_absent():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda(), task_list=problems.tasks(weight=0.0))
  after, info = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))(state, problems.batch())
  assert info.present.tolist() == [False, True] and info.weights.tolist() == [0.0, 1.0] and info.losses[0] == 0
  problems.leaves_close(after.params['tasks']['digit'], state.params['tasks']['digit'], rtol=0)


def test_schedule_as_loss_weight():
  schedule = optax.linear_schedule(0.0, 1.0, 4)
  out, *_ = run(mtl.balancing.equal(), problems.batch(), tasks=problems.tasks(weight=schedule))
  assert out.present.tolist() == [False, True]
  assert gradients.task_weights(problems.tasks(weight=schedule), jnp.int32(2)).tolist() == [0.5, 1.0]


ROWS = [('params', 'equal'), ('params', 'mgda'), ('features', 'mgda'), ('params', 'graddrop')]
PENALISED = [('params', 'equal', 'multi'), ('params', 'mgda', 'single'), ('features', 'mgda', 'single')]
PENALISED += [('params', 'graddrop', 'multi')]


@pytest.mark.parametrize(
  'at, balancer, kind', rotated([(*row, kind) for row in ROWS for kind in ('single', 'multi')], PENALISED)
)
def test_penalty_on_outputs_is_one_more_row_outside_the_balancer(at, balancer, kind):
  if (kind, at) == ('multi', 'features'):
    pytest.skip('features are shared by the tasks of a single input only')
  batch = BATCHES[kind]()
  value = lambda params, outputs: jnp.mean(outputs['digit'] ** 2) + jnp.sum(params['shared']['Dense_0']['bias'] + 1.0)
  make = getattr(mtl.balancing, balancer)
  plain, state, net = run(make(), batch, at=at)
  found, *_ = run(make(), batch, at=at, penalties=(mtl.Penalty(0.7, value, on='outputs'),))

  def by_hand(params):
    x = batch['inputs'] if kind == 'single' else batch['digit']['inputs']
    z, _ = net.trunk(params['shared'], {}, x, tasks=('digit',), train=False, key=None)
    return 0.7 * value(
      params, {'digit': net.head(params['tasks']['digit'], {}, z, task='digit', train=False, key=None)[0]}
    )

  penalty, extra = jax.jit(jax.value_and_grad(by_hand))(state.params)
  problems.leaves_close(found.grads, jax.tree.map(jnp.add, plain.grads, extra), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found.penalty, penalty, rtol=1e-6)
  if plain.gramian is not None:
    np.testing.assert_allclose(found.gramian, plain.gramian, rtol=1e-6)


@pytest.mark.parametrize('kind', ['single', 'multi'])
def test_dropout_and_batch_norm_run_once(kind):
  """All rows of J see one forward pass: the same dropout mask, statistics moved once (per task when multi-input)."""
  net = problems.model(norm=True, dropout=0.5)
  batch = BATCHES[kind]()
  rows, state, _ = run(fixed('gramian', jnp.ones(2)), batch, net=net)
  total, *_ = run(fixed('losses', jnp.ones(2)), batch, net=net)
  problems.leaves_close(rows.grads, total.grads, rtol=1e-4, atol=1e-6)
  problems.leaves_close(rows.model_state, total.model_state, rtol=1e-6)
  mean = lambda s: s['shared']['batch_stats']['BatchNorm_0']
  x = [batch['inputs']] if kind == 'single' else [batch[n]['inputs'] for n in problems.NAMES]
  first = jax.tree.leaves(mean(state.model_state))
  moved = jax.tree.leaves(mean(rows.model_state))
  assert len(x) in (1, 2) and any(not np.allclose(a, b) for a, b in zip(first, moved, strict=True))


REFUSED = {
  'level': (lambda: mtl.balancing.graddrop(), None, None, r"level 'jacobian'"),
  'multi-input': (lambda: mtl.balancing.mgda(), None, lambda: problems.multi(), 'multi-input'),
  'no floats': (lambda: mtl.balancing.mgda(), lambda z, p: jnp.zeros(8, jnp.int32), None, 'no floating feature'),
  'no batch axis': (lambda: mtl.balancing.mgda(), lambda z, p: {'z': z, 'p': p['Dense_0']['kernel']}, None, "'p'"),
  'own features': (lambda: mtl.balancing.mgda(), lambda z, p: {'digit': z, 'size': z}, None, "'size'.*'digit'"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_features_does_not_take_is_refused(case):
  balancer, wrap, data, message = REFUSED[case]
  net = problems.model()
  if wrap:
    hard = net

    def trunk(shared, state, x, **kwargs):
      z, state = hard.trunk(shared, state, x, **kwargs)
      return wrap(z, shared), state

    def head(own, state, features, *, task, **kwargs):
      z = features if not isinstance(features, dict) else features.get(task, features.get('z'))
      return hard.head(own, state, z.astype(jnp.float32) if z.ndim > 1 else jnp.ones((8, 4)), task=task, **kwargs)

    net = net._replace(trunk=trunk, head=head)
  with pytest.raises(mtl.InputError, match=message):
    run(balancer(), data() if data else problems.batch(), at='features', net=net)


BAD = {
  'labels misspelt': (
    lambda b: b['labels'].update(sise=b['labels'].pop('size')),
    "labels.*unknown \\['sise'\\], missing \\['size'\\]",
  ),
  'mask misspelt': (lambda b: b.update(mask={'sise': jnp.ones(8, bool)}), "mask.*unknown \\['sise'\\]"),
  'key of batch': (lambda b: b.update(weights=1), "found \\['inputs', 'labels', 'weights'\\]"),
  'label rows': (lambda b: b['labels'].update(size=b['labels']['size'][:5]), r"labels of task 'size'.*\(5, 2\).*8"),
  'label dtype': (lambda b: b['labels'].update(digit=jnp.ones(8)), 'float'),
  'label shape': (lambda b: b['labels'].update(size=jnp.ones((8, 3))), r'\(8, 3\)|\[8, 3\]'),
  'mask dtype': (lambda b: b.update(mask={'size': jnp.ones(8)}), "mask of task 'size'.*float32.*bool"),
  'mask shape': (lambda b: b.update(mask={'size': jnp.ones((8, 3), bool)}), r"mask of task 'size'.*\(8, 3\)"),
  'empty': (lambda b: b.update(inputs=jnp.ones((0, 5))), 'empty batch'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_batch_is_named(case):
  spoil, message = BAD[case]
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  data = problems.batch()
  data = {**data, 'labels': dict(data['labels'])}
  spoil(data)
  with pytest.raises(mtl.InputError, match=message):
    mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer))(state, data)


def test_a_loss_that_is_already_reduced_is_named():
  tasks = (problems.tasks()[0], mtl.Task('size', loss=lambda y, z: jnp.mean((y - z) ** 2)))
  with pytest.raises(mtl.InputError, match=r"loss of task 'size'.*one floating value per example"):
    run(mtl.balancing.equal(), problems.batch(), tasks=tasks)


def test_bool_labels_stay_bool_under_a_mask():
  tasks = (problems.tasks()[0], mtl.Task('size', loss=lambda y, z: jnp.where(~z, y, 0.0)))
  batch = problems.batch()
  batch['labels'] = {**batch['labels'], 'size': batch['labels']['size'] > 0}
  plain, *_ = run(mtl.balancing.equal(), batch, tasks=tasks)
  masked, *_ = run(mtl.balancing.equal(), {**batch, 'mask': {'size': jnp.ones(8, bool)}}, tasks=tasks)
  np.testing.assert_allclose(plain.losses, masked.losses, rtol=1e-6)


def test_a_task_of_weight_zero_is_absent_whatever_it_gives():
  """Its loss may be NaN, and it leaves no trace in the shared statistics of a multi-input batch."""
  broken = mtl.Task('size', loss=lambda y, z: (y - z) ** 2 * jnp.nan, weight=0.0)
  batch = problems.multi()
  gone = {**batch, 'size': {**batch['size'], 'mask': jnp.zeros(8, bool)}}
  net = problems.model(norm=True)
  found, *_ = run(mtl.balancing.mgda(), batch, net=net, tasks=(problems.tasks()[0], broken))
  expected, *_ = run(mtl.balancing.mgda(), gone, net=net)
  problems.leaves_close(found.grads, expected.grads, rtol=1e-6)
  problems.leaves_close(found.model_state, expected.model_state, rtol=1e-6)
  assert found.losses.tolist() == expected.losses.tolist()


@pytest.mark.parametrize('on', ['params', 'outputs'])
def test_a_penalty_that_is_off_is_nowhere(on):
  """0 * NaN is not 0: the gradient of a norm at 0, outputs on rows that are no data."""
  value = lambda params, outputs=None: jnp.sqrt(jnp.sum(params['shared']['Dense_0']['bias'] ** 2))  # 0 at the start
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  batch = problems.batch(masks='absent')
  plain, _ = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer))(state, batch)
  penalty = mtl.Penalty(0.1, value, task='size', on=on)
  off, info = jax.jit(mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(penalty,)))(state, batch)
  assert info.finite and info.penalty == 0
  problems.leaves_close(off, plain, rtol=1e-6)


def test_heads_without_shared_parameters():
  net = problems.model()._replace(trunk=lambda p, s, x, **_: (x, s))
  heads = mtl.sharing.hard(problems.Trunk(), {'digit': nn.Dense(3), 'size': nn.Dense(2)})

  def init(key, inputs):
    params, state = heads.init(key, {n: jnp.ones((8, 4)) @ jnp.ones((4, 5)) for n in inputs})
    own = {n: {'kernel': jnp.ones((5, k)), 'bias': jnp.zeros(k)} for n, k in (('digit', 3), ('size', 2))}
    return {'shared': {}, 'tasks': own}, state

  for make in (mtl.balancing.equal, mtl.balancing.mgda):
    out, *_ = run(make(), problems.batch(), net=net._replace(init=init))
    assert out.grads['shared'] == {} and all(jnp.isfinite(x).all() for x in jax.tree.leaves(out.grads))
