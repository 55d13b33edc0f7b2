"""A task whose loss or gradient is not finite: reported in any case, dropped on request."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import mtljax as mtl

NAMES = problems.NAMES


def setup(name, *, on_nonfinite='drop', batch=None, net=None):
  make, at = problems.BALANCERS[name]
  batch = problems.batch() if batch is None else batch
  net, tasks, optimizer, balancer, state = problems.setup(make(), net=net, data=batch)
  step = mtl.make_train_step(net, tasks, optimizer, balancer, at=at, on_nonfinite=on_nonfinite)
  return state, mtl.compile_step(step, donate=False), batch


def spoilt(batch):
  """One NaN among the labels of 'size'."""
  multi = 'inputs' not in batch
  y = (batch['size']['labels'] if multi else batch['labels']['size']).at[1, 0].set(jnp.nan)
  return (
    batch | {'size': {**batch['size'], 'labels': y}} if multi else batch | {'labels': {**batch['labels'], 'size': y}}
  )


def without_size(batch):
  if 'inputs' not in batch:
    return batch | {'size': {**batch['size'], 'mask': jnp.zeros(problems.B, bool)}}
  return batch | {'mask': {'size': jnp.zeros(problems.B, bool)}}


PAIRS = [('famo', 'multi'), ('mgda', 'multi'), ('equal-features', 'single'), ('graddrop', 'single')]


@pytest.mark.parametrize('name, kind', PAIRS)
def test_a_dropped_task_is_an_absent_one(name, kind):
  batch = problems.batch() if kind == 'single' else problems.multi()
  net = problems.model(norm=True)
  state, step, _ = setup(name, batch=batch, net=net)
  state, _ = step(state, batch)
  after, info = step(state, spoilt(batch))
  want, absent = step(state, without_size(batch))
  problems.leaves_close(after, want, rtol=1e-6, atol=1e-7)
  assert info.finite and info.present.tolist() == [True, False] and info.nonfinite.tolist() == [False, True]
  assert info.losses[1] == 0 and not absent.nonfinite.any()


@pytest.mark.parametrize('name', ['equal', 'mgda'])
def test_a_task_is_dropped_where_nothing_is_shared(name):
  net = mtl.sharing.soft(nn.Dense(4), {'digit': nn.Dense(3), 'size': nn.Dense(2)}, beta=0.1)
  state, step, batch = setup(name, net=net)
  after, info = step(state, spoilt(batch))
  want, _ = step(state, without_size(batch))
  problems.leaves_close(after, want, rtol=1e-6, atol=1e-7)
  assert info.finite and info.present.tolist() == [True, False] and info.nonfinite.tolist() == [False, True]


@pytest.mark.parametrize('name', ['equal', 'graddrop'])
def test_an_error_stands_still_and_names_the_task(name):
  state, step, batch = setup(name, on_nonfinite='error')
  after, info = step(state, spoilt(batch))
  assert not info.finite and info.nonfinite.tolist() == [False, True] and jnp.isnan(info.losses[1])
  problems.leaves_close(after.replace(step=state.step), state, rtol=0)
  assert int(after.step) == 1
  assert not step(state, batch)[1].nonfinite.any()


class Steep(nn.Module):
  """A parameter at 0 times 1e60: a finite value with an infinite gradient, and zero for a zero cotangent."""

  trunk: bool

  @nn.compact
  def __call__(self, x, train: bool = False):
    y = nn.Dense(4)(x)
    large = 1e30 + 0 * x[:1, :1]  # no constant, which would be folded
    steep = self.param('steep', nn.initializers.zeros, (1, 4)) * large * large
    return jnp.stack([y, steep + y], 1) if self.trunk else y + steep


def steep_net(trunk):
  """The steep parameter in the trunk, read by the head of 'size', or in that head."""
  if not trunk:
    return mtl.sharing.hard(nn.Dense(4), {'digit': nn.Dense(3), 'size': Headed()})

  def reads(i, features):
    def init(key, z):
      return {'w': jax.random.normal(key, (4, features))}

    def apply(params, z):
      return z[:, i] @ params['w']

    return init, apply

  return mtl.sharing.hard(Steep(trunk=True), {'digit': reads(0, 3), 'size': reads(1, 2)})


class Headed(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.Dense(2)(Steep(trunk=False)(x))


@pytest.mark.parametrize('name', ['equal'])
def test_an_infinite_gradient_of_a_head(name):
  net = steep_net(trunk=False)
  state, step, batch = setup(name, net=net)
  after, info = step(state, batch)
  assert info.finite and info.nonfinite.tolist() == [False, True] and info.present.tolist() == [True, False]
  problems.leaves_close(after, step(state, without_size(batch))[0], rtol=1e-6, atol=1e-7)
  state, step, batch = setup(name, net=net, on_nonfinite='error')
  after, info = step(state, batch)
  assert not info.finite and info.nonfinite.tolist() == [False, True]


@pytest.mark.parametrize('name', ['graddrop'])
def test_an_infinite_row_of_the_trunk(name):
  net = steep_net(trunk=True)
  state, step, batch = setup(name, net=net)
  after, info = step(state, batch)
  assert info.finite and info.nonfinite.tolist() == [False, True]
  problems.leaves_close(after, step(state, without_size(batch))[0], rtol=1e-6, atol=1e-7)
  _, info = setup(name, net=net, on_nonfinite='error')[1](state, batch)
  assert not info.finite and info.nonfinite.tolist() == [False, True]


def test_a_dropped_task_takes_its_penalties_with_it():
  net = steep_net(trunk=True)
  batch = problems.batch()
  penalty = mtl.Penalty(0.1, lambda params, outputs: jnp.sum(outputs['size'] ** 2), task='size', on='outputs')
  net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda(), net=net, data=batch)
  step = mtl.make_train_step(net, tasks, optimizer, balancer, penalties=(penalty,), on_nonfinite='drop')
  step = mtl.compile_step(step, donate=False)
  (after, info), (want, _) = step(state, batch), step(state, without_size(batch))
  assert info.finite and info.penalty == 0
  problems.leaves_close(after, want, rtol=1e-6, atol=1e-7)


def test_a_trunk_that_is_not_finite_at_level_losses_stands_still():
  """There are no rows to tell the tasks apart."""
  state, step, batch = setup('equal', net=steep_net(trunk=True))
  after, info = step(state, batch)
  assert not info.finite
  problems.leaves_close(after.params, state.params, rtol=0)


def test_all_dropped_rests():
  state, step, batch = setup('mgda')
  after, info = step(state, batch | {'inputs': batch['inputs'].at[0].set(jnp.inf)})
  assert info.nonfinite.all() and not info.present.any() and int(after.step) == 1
  problems.leaves_close(after.replace(step=state.step), state, rtol=0)


@pytest.mark.parametrize('mode', ['shard_map', 'sharded'])
def test_devices_agree(mode):
  batch = problems.batch()
  results = []
  for m in ('jit', mode):
    net, tasks, optimizer, balancer, state = problems.setup(mtl.balancing.mgda(), data=batch)
    step = mtl.make_train_step(net, tasks, optimizer, balancer, on_nonfinite='drop')
    state, info = mtl.compile_step(step, mode=m)(state, spoilt(batch))
    assert info.nonfinite.tolist() == [False, True]
    results.append(jax.device_get(state.replace(key=None)))
  problems.leaves_close(*results, rtol=1e-4, atol=1e-5)
  assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(results[1].params)])).all()


def test_a_choice_that_does_not_exist():
  with pytest.raises(mtl.InputError, match="on_nonfinite: found 'skip', expected one of"):
    setup('mgda', on_nonfinite='skip')
