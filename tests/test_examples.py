"""Examples as objectives: the Gramian without per-example gradients, against vmap(grad) written out."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import mtljax as mtl
from mtljax import gradients

NAMES = problems.NAMES
WEIGHTS = {'digit': 0.5, 'size': 1.0}


def share(name, params, net, batch, i):
  """alpha_t l_ti / count_t by hand: what example i has of alpha_t L_t."""
  part = batch[name] if 'inputs' not in batch else {'inputs': batch['inputs'], 'labels': batch['labels'][name]}
  masks = batch[name].get('mask') if 'inputs' not in batch else batch.get('mask', {}).get(name)
  z, _ = net.trunk(params['shared'], {}, part['inputs'], tasks=NAMES, train=False, key=None)
  y, _ = net.head(params['tasks'][name], {}, z, task=name, train=False, key=None)
  labels = jnp.nan_to_num(part['labels']) if name == 'size' else part['labels']
  if name == 'digit':
    values = -jax.nn.log_softmax(y)[jnp.arange(len(labels)), labels]
  else:
    values = (y - labels) ** 2
  mask = jnp.ones(values.shape, bool) if masks is None else masks
  mask = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape)
  return WEIGHTS[name] * jnp.where(mask, values, 0)[i].sum() / jnp.maximum(mask.sum(), 1)


@functools.partial(jax.jit, static_argnums=(1, 3))
def by_hand(params, net, batch, objectives):
  """Rows of per-example gradients f[m, P] and their losses."""
  size = len(jax.tree.leaves(batch)[0])
  groups = [NAMES] if objectives == 'examples' else [(name,) for name in NAMES]

  def rows(names):
    loss = lambda shared, i: sum(share(n, {**params, 'shared': shared}, net, batch, i) for n in names)
    losses, grads = jax.vmap(jax.value_and_grad(loss), (None, 0))(params['shared'], jnp.arange(size))
    return losses, jnp.concatenate([leaf.reshape(size, -1) for leaf in jax.tree.leaves(grads)], 1)

  losses, J = (jnp.concatenate(x) for x in zip(*map(rows, groups), strict=True))
  return J, losses


def spy(weights):
  """Level gramian, with given weights, keeping what it was shown."""

  def update(G, state, /, *, losses, present, **_):
    return weights, (G, losses, present)

  return mtl.Balancer(lambda G: (jnp.zeros(G.shape), jnp.zeros(len(G)), jnp.zeros(len(G), bool)), update, 'gramian')


def step_once(balancer, batch, objectives, *, net=None, mode='jit', optimizer=None):
  optimizer = optimizer or mtl.task_optimizer(shared=optax.sgd(1.0), tasks={n: optax.sgd(1.0) for n in NAMES})
  net, tasks = net or problems.model(), problems.tasks(weight=0.5)
  state = mtl.init_state(net, tasks, optimizer, balancer, batch, jax.random.key(0), objectives=objectives)
  step = mtl.make_train_step(net, tasks, optimizer, balancer, objectives=objectives)
  return state, *mtl.compile_step(step, mode=mode, donate=False)(state, batch)


class Sequence(nn.Module):
  """A kernel applied at several positions (3), a convolution, an embedding and a shared kernel used twice."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = x[:, :, None] * jnp.linspace(0.5, 1.5, 3)[None, None]  # [B, 5, 3]
    x = nn.tanh(nn.Dense(16, name='positions')(jnp.swapaxes(x, 1, 2)))  # [B, 3, 16]
    x = nn.tanh(nn.Conv(6, (2,), name='conv')(x)).reshape(x.shape[0], -1)
    twice = nn.Dense(18, name='twice')
    x = nn.LayerNorm(name='norm')(x + twice(nn.tanh(twice(x))))
    rows = (jnp.abs(x[:, :4]) * 3).astype(jnp.int32) % 5
    return jnp.concatenate([nn.Dense(12, name='out')(x), nn.Embed(5, 3, name='embed')(rows).reshape(len(x), -1)], 1)


NETS = {
  'dense': lambda: problems.model(),
  'sequence': lambda: mtl.sharing.hard(Sequence(), {'digit': nn.Dense(3), 'size': nn.Dense(2)}),
}
CASES = [
  ('examples', 'single', 'dense'),
  ('examples', 'items', 'sequence'),
  ('examples_tasks', 'items', 'dense'),
  ('examples_tasks', 'examples', 'sequence'),
  ('examples_tasks', 'multi', 'dense'),
]


@pytest.mark.parametrize('objectives, kind, net', CASES)
def test_gramian_losses_and_direction_are_those_of_vmap_grad(objectives, kind, net, x64):
  net = NETS[net]()
  batch = problems.multi(masks='items') if kind == 'multi' else problems.batch(masks=None if kind == 'single' else kind)
  batch = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, batch)
  m = gradients.count_objectives(batch, NAMES, objectives)
  weights = jnp.linspace(-0.5, 1.5, m)
  state, after, info = step_once(spy(weights), batch, objectives, net=net)
  G, losses, present = after.balancer_state
  J, want = by_hand(jax.tree.map(lambda p: p.astype(jnp.float64), state.params), net, batch, objectives)
  np.testing.assert_allclose(G, J @ J.T, rtol=1e-5, atol=1e-9)
  np.testing.assert_allclose(losses, np.where(present, want, losses), rtol=1e-6)
  np.testing.assert_allclose(info.weights, np.where(present, weights, 0))
  assert info.gramian.shape == (m, m) and info.norms.shape == (m,) and info.losses.shape == (2,)
  direction = jax.tree.map(lambda a, b: a - b, state.params['shared'], after.params['shared'])
  flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(direction)])
  np.testing.assert_allclose(flat, jnp.where(present, weights, 0) @ J, rtol=1e-4, atol=1e-7)


class Tied(nn.Module):
  """One square kernel, read as it is and transposed by different tasks."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    W = self.param('W', nn.initializers.normal(0.5), (5, 5))
    return {'digit': jnp.tanh(x @ W), 'size': jnp.tanh(x @ W.T)}


class Pick(nn.Module):
  name_of: str
  width: int

  @nn.compact
  def __call__(self, z):
    return nn.Dense(self.width)(z[self.name_of])


def test_a_kernel_read_in_two_ways(x64):
  """The factors of one task are those of the other, swapped."""
  net = mtl.sharing.hard(Tied(), {'digit': Pick('digit', 3), 'size': Pick('size', 2)})
  batch = problems.batch()
  state, after, info = step_once(spy(jnp.ones(16)), batch, 'examples_tasks', net=net)
  J, _ = by_hand(state.params, net, batch, 'examples_tasks')
  np.testing.assert_allclose(info.gramian, J @ J.T, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('objectives', ['examples', 'examples_tasks'])
def test_the_direction_has_the_dropout_of_the_gramian(objectives):
  batch = problems.batch()
  weights = jnp.linspace(0.1, 1.0, gradients.count_objectives(batch, NAMES, objectives))
  state, after, info = step_once(spy(weights), batch, objectives, net=problems.model(dropout=0.5))
  direction = jax.tree.map(lambda a, b: a - b, state.params['shared'], after.params['shared'])
  length = sum(jnp.vdot(g, g) for g in jax.tree.leaves(direction))
  np.testing.assert_allclose(length, weights @ info.gramian @ weights, rtol=1e-3)


def test_what_an_absent_task_holds_leaves_no_trace():
  batch = problems.multi(masks='examples')
  batch['size'] = {**batch['size'], 'mask': jnp.zeros(8, bool)}
  _, want, _ = step_once(spy(jnp.ones(16)), batch, 'examples_tasks')
  batch['size'] = {**batch['size'], 'inputs': batch['size']['inputs'] * jnp.nan}
  _, after, info = step_once(spy(jnp.ones(16)), batch, 'examples_tasks')
  assert info.finite and not info.gramian[8:].any()
  problems.leaves_close(after, want, rtol=0)


def test_masked_examples_are_absent():
  batch = problems.batch(masks='examples')
  for objectives, want in (('examples', np.ones(8)), ('examples_tasks', np.r_[np.arange(8) < 3, np.arange(8) >= 3])):
    m = gradients.count_objectives(batch, NAMES, objectives)
    _, after, info = step_once(spy(jnp.ones(m)), batch, objectives)
    np.testing.assert_array_equal(after.balancer_state[2], want)
    np.testing.assert_array_equal(info.weights, want)


def test_shares_sum_to_the_tasks():
  """With weights of one it is the plain step, and the Gramian of the tasks is that of blocks summed."""
  batch = problems.batch(masks='items')
  state, after, info = step_once(spy(jnp.ones(16)), batch, 'examples_tasks')
  _, want, tasks = step_once(spy(jnp.ones(2)), batch, 'tasks')
  problems.leaves_close(after.params, want.params, rtol=1e-5, atol=1e-6)
  blocks = info.gramian.reshape(2, 8, 2, 8).sum(axis=(1, 3))
  np.testing.assert_allclose(blocks, tasks.gramian, rtol=1e-4)
  problems.leaves_close((info.losses, info.present), (tasks.losses, tasks.present), rtol=1e-6)


@pytest.mark.parametrize('method', ['upgrad', 'gradnorm'])
def test_gramian_methods_learn_from_examples(method):
  batch = problems.batch(size=6)
  net, tasks, optimizer = problems.model(), problems.tasks(weight=0.5), problems.optimizer(0.02)
  balancer = mtl.balancing.METHODS[method]()
  state = mtl.init_state(net, tasks, optimizer, balancer, batch, jax.random.key(0), objectives='examples')
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer, objectives='examples'))
  infos = []
  for _ in range(30):
    state, info = step(state, batch)
    infos.append(info)
  assert infos[-1].finite and jnp.all(infos[-1].losses < infos[0].losses)


def test_one_program_and_no_rows_of_a_wide_kernel():
  """Nothing as large as batch x kernel is made: a kernel of 512 x 512 in a batch of 8 has 8.4 MB of rows."""
  wide = mtl.sharing.hard(mtl.trunks.MLP((512, 512)), {'digit': nn.Dense(3), 'size': nn.Dense(2)})
  batch, balancer, tasks = problems.batch(), mtl.balancing.mgda(), problems.tasks()
  optimizer = problems.optimizer()
  state = mtl.init_state(wide, tasks, optimizer, balancer, batch, jax.random.key(0), objectives='examples')
  step = mtl.make_train_step(wide, tasks, optimizer, balancer, objectives='examples')
  text = jax.jit(step).lower(state, batch).compile().as_text()
  assert 'f32[512,512]' in text and 'f32[8,512,512]' not in text and 'f32[512,8,512]' not in text


def test_sharded_is_the_same():
  batch = problems.batch(masks='items')
  balancer = mtl.balancing.mgda()
  problems.leaves_close(
    step_once(balancer, batch, 'examples', mode='sharded')[1:],
    step_once(balancer, batch, 'examples')[1:],
    rtol=1e-4,
    atol=1e-5,
  )


BAD = {
  'level': (lambda: step_once(mtl.balancing.equal(), problems.batch(), 'examples'), "level 'losses', expected"),
  'name': (lambda: step_once(mtl.balancing.mgda(), problems.batch(), 'example'), "objectives: found 'example'"),
  'multi': (lambda: step_once(mtl.balancing.mgda(), problems.multi(), 'examples'), "expected 'examples_tasks'"),
  'axis': (
    lambda: step_once(mtl.balancing.mgda(), problems.batch(), 'examples', mode='shard_map'),
    "expected mode 'jit' or 'sharded'",
  ),
  'batch norm': (
    lambda: step_once(mtl.balancing.mgda(), problems.batch(), 'examples', net=problems.model(norm=True)),
    'changes with the batch, expected layers that see one example',
  ),
  'features': (
    lambda: mtl.make_train_step(
      problems.model(),
      problems.tasks(),
      problems.optimizer(),
      mtl.balancing.mgda(),
      at='features',
      objectives='examples',
    ),
    "objectives: found 'examples' with at='features'",
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  call, message = BAD[name]
  with pytest.raises(mtl.InputError, match=message):
    call()
