"""What every method owes to the compiler: nothing on the host, numbers as arrays, a state that can be saved."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balancing_cases import CASES

from mtljax import balancing as b
from mtljax import checkpoint
from mtljax.base import TrainState

J, LOSSES = jax.ShapeDtypeStruct((4, 6), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
COUNTS = {  # whole numbers that shape the program
  *('steps', 'steps_per_epoch', 'warmup_steps', 'inner_steps', 'update_every', 'k', 'groups', 'primary', 'rescale'),
  *('n_byzantine', 'n_selected', 'trim_number', 'normalize', 'scale_mode', 'optimizer', 'inner'),
}
NEEDS = {'dwa': {'steps_per_epoch': 3}, 'constant': {'weights': (1.0, 2.0, 3.0, 4.0)}}


@pytest.mark.parametrize('name', CASES)
def test_nothing_runs_on_the_host(name):
  """Two steps as one program without a callback; numpy would fail on what is traced."""

  def steps(J, losses, present):
    balancer = CASES[name].make()
    first = b.aggregate(balancer, J, losses, present=present, losses_after=losses)
    return b.aggregate(balancer, J, losses, first.state, present=present, step=1).direction

  text = str(jax.make_jaxpr(steps)(J, LOSSES, jax.ShapeDtypeStruct((4,), bool)))
  assert 'callback' not in text and 'infeed' not in text


def swept():
  """(method, argument, value) of every hyper-parameter that is a number and not a count."""
  for name, factory in b.METHODS.items():
    inner = {'inner': b.mgda()} if 'inner' in inspect.signature(factory).parameters else {}
    for argument, parameter in inspect.signature(factory).parameters.items():
      if argument not in COUNTS and isinstance(parameter.default, float):
        yield name, argument, parameter.default, {**inner, **NEEDS.get(name, {})}


@pytest.mark.parametrize(
  ('name', 'argument', 'value', 'needs'), [pytest.param(*s, id=f'{s[0]}-{s[1]}') for s in swept()]
)
def test_a_number_can_be_an_array(name, argument, value, needs):
  """So that a sweep is a vmap, and another value compiles nothing."""

  def run(value, J, losses):
    return b.aggregate(b.METHODS[name](**needs, **{argument: value}), J, losses).direction

  found = jax.eval_shape(jax.vmap(run, (0, None, None)), jax.ShapeDtypeStruct((3,), jnp.float32), J, LOSSES)
  assert found.shape == (3, 6) and value is not None


def test_states_survive_a_checkpoint(tmp_path):
  """The states of all methods in one checkpoint, bit for bit, of the same types."""
  shapes = {'losses': (4,), 'gramian': (4, 4), 'jacobian': (4, 6), 'oracle': (4, 6)}
  states = {}
  for name, case in CASES.items():
    balancer = case.make()
    state = balancer.init(jax.ShapeDtypeStruct(shapes[balancer.level], jnp.float32))
    leaves, tree = jax.tree.flatten(state)
    noise = [np.random.default_rng(i).uniform(1, 9, np.shape(x)).astype(x.dtype) for i, x in enumerate(leaves)]
    states[name] = tree.unflatten([jnp.asarray(x) for x in noise])
    assert all(x.shape[0] == 4 for x in leaves), f'{name}: a leaf does not lead with the tasks'
  state = TrainState(jnp.int32(1), {}, {}, (), states, jax.random.key(0))
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run')
  checkpoints.save(1, state)
  checkpoints.close()
  empty = jax.eval_shape(lambda: state)
  restored = checkpoint.restore_latest(tmp_path / 'run', empty)[0].balancer_state
  assert jax.tree.structure(restored) == jax.tree.structure(states)
  jax.tree.map(np.testing.assert_array_equal, restored, states)
