"""The result on four devices is the result on one, in every mode, to float rounding."""

import flax.linen as nn
import jax
import numpy as np
import problems
import pytest
from jax.sharding import Mesh

import mtljax as mtl

MODES = ('pmap', 'shard_map', 'sharded')
MASKS = (None, 'examples', 'items', 'absent')


def train(mode, balancer, at, batches, net, mesh=None):
  """Two steps; adaptive optimisers see the second one's momentum."""
  net, tasks, optimizer, balancer, state = problems.setup(balancer, net=net, data=batches[0])
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer, at=at), mode=mode, mesh=mesh)
  for batch in batches:
    state, info = step(state, batch)
  return jax.device_get((state.replace(key=None), info))


def compare(mode, name, masks, kind='single', norm=True, mesh=None):
  make, at = problems.BALANCERS[name]
  data = problems.batch if kind == 'single' else problems.multi
  batches = [data(0), data(1, masks=masks)]
  net = problems.model(norm=norm)
  one = train('jit', make(), at, batches, net)
  many = train(mode, make(), at, batches, net, mesh)
  problems.leaves_close(many, one, rtol=2e-4, atol=2e-5)


# every mode meets every balancer and every kind of mask; the full product runs under the marker `full`
ROTATION = [
  (mode, name, MASKS[(i + j) % len(MASKS)], 'multi' if (i + j) % 3 == 0 and 'features' not in name else 'single')
  for i, mode in enumerate(MODES)
  for j, name in enumerate(problems.BALANCERS)
]


@pytest.mark.parametrize('mode, name, masks, kind', ROTATION)
def test_parity(mode, name, masks, kind):
  compare(mode, name, masks, kind)


@pytest.mark.full
@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('kind', ['single', 'multi'])
@pytest.mark.parametrize('masks', MASKS)
@pytest.mark.parametrize('name', problems.BALANCERS)
@pytest.mark.parametrize('mode', MODES)
def test_parity_full(mode, name, masks, kind, norm):
  if kind == 'multi' and 'features' in name:
    pytest.skip('features are shared by the tasks of a single input only')
  compare(mode, name, masks, kind, norm)


def test_sharded_parameters_are_split_over_the_model_axis():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
  compare('sharded', 'mgda', 'examples', mesh=mesh)
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda())
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer), mode='sharded', mesh=mesh)
  state, _ = step(state, problems.batch())
  kernel = state.params['shared']['Dense_0']['kernel']  # [5, 6]
  assert kernel.sharding.shard_shape(kernel.shape) == (5, 3)


@pytest.mark.parametrize('mode', ['jit', *MODES])
def test_donation_takes_nothing_of_the_user_with_it(mode):
  net, tasks, optimizer, balancer, _ = problems.setup(mtl.balancing.uncertainty())
  params, model_state = net.init(jax.random.key(7), {n: problems.batch()['inputs'] for n in problems.NAMES})
  given = net._replace(init=lambda key, inputs: (params, model_state))  # a user's own arrays
  key = jax.random.key(3)
  step = mtl.compile_step(mtl.make_train_step(given, tasks, optimizer, balancer), mode=mode, donate=True)
  finals = []
  for _ in range(2):
    state = mtl.init_state(given, tasks, optimizer, balancer, problems.batch(), key)
    for seed in range(2):
      state, _ = step(state, problems.batch(seed))
    finals.append(jax.device_get(state.params))
  problems.leaves_close(*finals, rtol=0)
  assert not any(x.is_deleted() for x in jax.tree.leaves(params)) and not key.is_deleted()


def test_donated_state_is_gone():
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer))(state, problems.batch())
  assert state.params['shared']['Dense_0']['kernel'].is_deleted()
  state = problems.setup(mtl.balancing.equal())[-1]
  mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer), donate=False)(state, problems.batch())
  assert not state.params['shared']['Dense_0']['kernel'].is_deleted()


@pytest.mark.parametrize('mode', MODES)
def test_rows_that_the_devices_do_not_divide_are_named(mode):
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal())
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer), mode=mode)
  with pytest.raises(mtl.InputError, match=r"'inputs'.*\(6, 5\).*divisible by 4 devices"):
    step(state, problems.batch(size=6))


def test_options_are_checked():
  with pytest.raises(mtl.InputError, match="mode: found 'ddp'"):
    mtl.compile_step(lambda s, b: (s, b), mode='ddp')
  with pytest.raises(mtl.InputError, match='mesh'):
    mtl.compile_step(lambda s, b: (s, b), mode='jit', mesh=Mesh(np.array(jax.devices()), ('data',)))
  with pytest.raises(mtl.InputError, match='one axis'):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('a', 'b'))
    mtl.compile_step(lambda s, b: (s, b), mode='shard_map', mesh=mesh)


class PlainNorm(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))


def test_plain_batch_norm_under_several_devices_warns():
  net = mtl.sharing.hard(PlainNorm(), {'digit': nn.Dense(3), 'size': nn.Dense(2)})
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.equal(), net=net)
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer), mode='shard_map')
  with pytest.warns(UserWarning, match='BatchNorm'):
    step(state, problems.batch())
