"""A GPU or a TPU gives the numbers of the CPU beside it: `JAX_PLATFORMS=cuda,cpu pytest -m accelerator`.

The rows of `parity_cases.py` in their modes on all devices of the accelerator, then what it computes in another way
than a CPU: convolutions, products of float32 on tensor cores, solvers in loops.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity_cases import ARCHITECTURES, METHODS, NAMES, ROTATION, Case, check_same, train

import mtljax as mtl
from mtljax import linalg

pytestmark = pytest.mark.accelerator


@pytest.fixture(autouse=True)
def cpu():
  """The device to compare with; float32 is float32 on the other one as well."""
  if jax.default_backend() == 'cpu':
    pytest.fail('tests marked `accelerator` need one: JAX_PLATFORMS=cuda,cpu (or tpu,cpu) pytest -m accelerator')
  with jax.default_matmul_precision('float32'):
    yield jax.local_devices(backend='cpu')[0]


def check(mode, case, cpu):
  if case.dtype == 'float64' and jax.default_backend() == 'tpu':
    case = case._replace(dtype='float32')
  with jax.default_device(cpu):
    expected = train('jit', case)
  check_same(train(mode, case), expected, 20 * case.tolerance)  # not one routine of the two is the same


@pytest.mark.parametrize('mode, case', [pytest.param(*row, id='-'.join((row[0], *row[1]))) for row in ROTATION])
def test_modes(mode, case, cpu):
  check(mode, case, cpu)


@pytest.mark.parametrize('method', METHODS)
def test_methods(method, cpu):
  check('jit', Case('hard', method, 'rows', 'float64'), cpu)


@pytest.mark.parametrize('architecture', [name for name in ARCHITECTURES if not name.endswith('-stems')])
def test_architectures(architecture, cpu):
  check('jit', Case(architecture, 'pcgrad', 'rows', 'float64'), cpu)


TRUNKS = {
  'lenet': lambda: (mtl.trunks.LeNet((4, 8), 16), (12, 12, 1)),
  'resnet18': lambda: (mtl.trunks.resnet18(width=8, groups=4), (16, 16, 3)),
  'resnet18-batch_norm': lambda: (mtl.trunks.resnet18(width=8, norm='batch'), (16, 16, 3)),
}


@pytest.mark.parametrize('at', ['params', 'features'])
@pytest.mark.parametrize('trunk', TRUNKS)
def test_convolutions(trunk, at, cpu):
  """The same state and batch: losses, Gramian, weights and the step in double precision."""
  with jax.enable_x64(True):
    net, shape = TRUNKS[trunk]()
    draw = np.random.default_rng(0)
    batch = {
      'inputs': draw.normal(size=(16, *shape)),
      'labels': {name: draw.integers(0, 3, 16) for name in NAMES},
    }
    tasks = tuple(mtl.Task(name, loss=mtl.losses.softmax_cross_entropy) for name in NAMES)
    model = mtl.sharing.hard(net, {name: nn.Dense(3) for name in NAMES})
    optimizer = mtl.task_optimizer(shared=optax.sgd(0.1), tasks={name: optax.sgd(0.1) for name in NAMES})
    parts = model, tasks, optimizer, mtl.balancing.upgrad()
    wide = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf
    with jax.default_device(cpu):
      state = mtl.init_state(*parts, batch, jax.random.key(0)).replace(key=None)
      state = jax.tree.map(wide, jax.device_get(state))

    def steps():
      step, found = mtl.compile_step(mtl.make_train_step(*parts, at=at)), []
      current = jax.tree.map(jnp.asarray, state).replace(key=jax.random.key(0))
      for _ in range(3):
        current, info = step(current, batch)
        found.append(jax.device_get((current.replace(key=None), info)))
      return found

    with jax.default_device(cpu):
      expected = steps()
    check_same(steps(), expected, 1e-9)


@pytest.mark.parametrize('precision', ['default', 'tensorfloat32'])
def test_gramian_is_of_float32(precision):
  """Whatever products of the net use: its entries decide who is in conflict."""
  rows = np.random.default_rng(0).normal(size=(5, 40, 300)).astype(np.float32)
  flat = np.float64(rows.reshape(5, -1))
  with jax.default_matmul_precision(precision):
    G = jax.jit(linalg.gramian)({'a': rows})
    d = jax.jit(linalg.combine)(jnp.arange(5.0), {'a': rows})['a']
  assert np.abs(G - flat @ flat.T).max() < 2e-6 * np.square(flat).sum(axis=1).max()
  assert np.abs(d.reshape(-1) - np.arange(5) @ flat).max() < 1e-5


def test_step_stays_on_the_device():
  """Nothing of a batch or a result passes through the host; the old state's memory is used again."""
  tasks = tuple(mtl.Task(name, loss=mtl.losses.softmax_cross_entropy) for name in NAMES)
  model = mtl.sharing.hard(mtl.trunks.MLP((64, 64)), {name: nn.Dense(3) for name in NAMES})
  optimizer = mtl.task_optimizer(shared=optax.adam(1e-3), tasks={name: optax.adam(1e-3) for name in NAMES})
  parts = model, tasks, optimizer, mtl.balancing.upgrad()
  batch = {'inputs': jnp.ones((32, 8)), 'labels': {name: jnp.zeros(32, jnp.int32) for name in NAMES}}
  state = mtl.init_state(*parts, batch, jax.random.key(0))
  step = mtl.compile_step(mtl.make_train_step(*parts))
  state, _ = step(state, batch)
  memory = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.params)}
  with jax.transfer_guard('disallow'):
    for _ in range(3):
      old, (state, info) = state, step(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
  assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.params)} == memory
  assert np.isfinite(jax.device_get(info.losses)).all()
