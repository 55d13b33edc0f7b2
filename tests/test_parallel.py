"""`compile_step`: what it takes, where it puts it, and what it leaves of the user's."""

import flax.linen as nn
import jax
import numpy as np
import problems
import pytest
from jax.sharding import Mesh

import mtljax as mtl

MODES = ('pmap', 'shard_map', 'sharded')


def test_sharded_parameters_are_split_over_the_model_axis():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda())
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer), mode='sharded', mesh=mesh, split_from=1)
  state, _ = step(state, problems.batch())
  kernel = state.params['shared']['Dense_0']['kernel']  # [5, 6]
  assert kernel.sharding.shard_shape(kernel.shape) == (5, 3)


def test_rows_are_dealt_out():
  """Of the Jacobian a device sums and keeps a part, of large leaves: nothing of T whole rows is summed."""
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda())
  step = mtl.make_train_step(net, tasks, optimizer, balancer)

  def collectives(split_from):
    run = mtl.compile_step(step, mode='shard_map', donate=False, split_from=split_from)
    run(state, problems.batch())
    args = state.replace(key=None), jax.random.key_data(state.key), problems.batch(), {}
    return run.compiled.lower(*args).as_text()

  kernels = [leaf.size for leaf in jax.tree.leaves(state.params['shared']) if leaf.ndim == 2]
  for split_from, dealt in ((8, len(kernels)), (max(kernels) + 1, 0)):
    text = collectives(split_from)
    assert text.count('"stablehlo.reduce_scatter"') == text.count('"stablehlo.all_gather"') == dealt


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
  step = mtl.compile_step(mtl.make_train_step(net, tasks, optimizer, balancer))
  step(state, problems.batch())
  assert state.params['shared']['Dense_0']['kernel'].is_deleted()
  with pytest.raises(mtl.InputError, match='found one that an earlier call took'):
    step(state, problems.batch())
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


def test_frozen_weights_keep_their_bits_on_three_devices():
  mesh = Mesh(np.array(jax.devices()[:3]), ('data',))
  net = problems.model()
  frozen = jax.random.normal(jax.random.key(1), (1000,))

  def init(key, inputs):
    params, state = net.init(key, inputs)
    return params, {**state, 'shared': {'frozen': frozen}}

  given = net._replace(init=init, trunk=lambda p, s, x, **k: (net.trunk(p, {}, x, **k)[0], s))
  given, tasks, optimizer, balancer, state = problems.setup(
    mtl.balancing.equal(), net=given, data=problems.batch(size=6)
  )
  step = mtl.compile_step(mtl.make_train_step(given, tasks, optimizer, balancer), mode='shard_map', mesh=mesh)
  for seed in range(3):
    state, _ = step(state, problems.batch(seed, size=6))
  np.testing.assert_array_equal(state.model_state['shared']['frozen'], frozen)
