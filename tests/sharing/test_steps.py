"""Every architecture in the compiled step: Gramian methods, two tasks and more, devices, checkpoints.

By default each architecture meets one method, two or three tasks, one kind of batch and one mode, all in rotation; the
product with every Gramian method, with two and five tasks, runs with `pytest -m full tests/sharing/test_steps.py`.
"""

import contextlib
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from sharing_cases import forward

import mtljax as mtl
from mtljax import checkpoint, sharing

BATCH = 8
MODES = ('pmap', 'shard_map', 'sharded')
# Noise differs from device to device, as that of dropout does: within the warm-up nothing is drawn.
WITHOUT_NOISE = {'learning_to_branch': 'learning_to_branch(warmup=9)', 'adashare': 'adashare(warmup=9)'}


@functools.cache
def gramian_methods():
  """Names that need no argument."""
  found = []
  for name in mtl.balancing.METHODS:
    with contextlib.suppress(mtl.InputError):
      found += [name] if mtl.balancing.parse(name, steps_per_epoch=10).level == 'gramian' else []
  return found


def make_batch(names, kind, seed):
  draw = np.random.default_rng(seed)

  def part(task, x):
    labels = {'inputs': x, 'labels': jnp.asarray(draw.integers(0, 3, BATCH), jnp.int32)}
    return labels | ({'mask': jnp.arange(BATCH) % 5 < 3} if task == 'a' else {})  # uneven over the devices

  inputs = lambda: jnp.asarray(draw.normal(size=(BATCH, 5)).astype(np.float32))
  x = inputs()
  parts = {task: part(task, x if kind == 'single' else inputs()) for task in names}
  if kind == 'multi':
    return parts
  turned = {key: {t: p[key] for t, p in parts.items() if key in p} for key in ('labels', 'mask')}
  return {'inputs': x, **turned}


def setup(architecture, names, kind, method):
  """A compiled step for a mode, the first state on the host, two batches."""
  trunk = mtl.trunks.MLP((6, 6))
  model = sharing.parse(WITHOUT_NOISE.get(architecture, architecture))(trunk, {t: nn.Dense(3) for t in names})
  tasks = tuple(mtl.Task(t, mtl.losses.softmax_cross_entropy) for t in names)
  optimizer = mtl.task_optimizer(shared=optax.sgd(0.3), tasks=dict.fromkeys(names, optax.sgd(0.1)))
  balancer = mtl.balancing.parse(method, steps_per_epoch=10)
  batches = [make_batch(names, kind, seed) for seed in (0, 1)]
  state = mtl.init_state(model, tasks, optimizer, balancer, batches[0], jax.random.key(3))
  state = jax.device_get(state.replace(key=None))
  step = mtl.make_train_step(model, tasks, optimizer, balancer)
  return step, state, batches


def train(step, state, batches, mode):
  """Two steps; the second one moves what is zero at the start."""
  step, state = mtl.compile_step(step, mode=mode), state.replace(key=jax.random.key(3))
  for batch in batches:
    state, info = step(state, batch)
  return state, info


def check(architecture, count, kind, method, folder=None, mode=None):
  made = setup(architecture, tuple('cabde'[:count]), kind, method)
  state, info = train(*made, 'jit')
  assert info.weights.shape == (count,) and np.all(np.isfinite(info.weights)) and info.finite
  values = np.linalg.eigvalsh(np.asarray(info.gramian, float))
  assert values.min() >= -1e-5 * max(values.max(), 1e-9)
  assert (values.max() > 0) == bool(jax.tree.leaves(state.params['shared'])), 'what is shared has gradients'
  if folder is not None:
    manager = checkpoint.Checkpoints(folder)
    manager.save(2, state)
    manager.close()
    restored, _, step = checkpoint.restore_latest(folder, jax.eval_shape(lambda s: s, state))
    assert step == 2
    for a, b in zip(*map(jax.tree.leaves, (state.replace(key=None), restored.replace(key=None))), strict=True):
      np.testing.assert_array_equal(a, b)
  if mode is not None:
    several = train(*made, mode)
    one, several = (jax.device_get((s.replace(key=None), i.losses)) for s, i in ((state, info), several))
    problems.leaves_close(several, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('index, architecture', list(enumerate(sharing.ARCHITECTURES)))
def test_a_step_on_one_device_on_four_and_from_a_checkpoint(index, architecture, tmp_path):
  methods = gramian_methods()
  count, kind = (2, 3)[index % 2], ('single', 'multi')[index // 2 % 2]
  check(architecture, count, kind, methods[index % len(methods)], tmp_path, MODES[index % 3])


@pytest.mark.parametrize('architecture', sharing.ARCHITECTURES)
def test_batch_norm_and_dropout_work_in_bfloat16(architecture):
  trunk = mtl.trunks.MLP((6, 6), batch_norm=True, dropout=0.3, dtype=jnp.bfloat16)
  heads = {t: mtl.heads.classify(3, hidden=(4,), dtype=jnp.bfloat16) for t in 'ab'}
  model, x = sharing.parse(architecture)(trunk, heads), make_batch('ab', 'single', 0)['inputs']
  params, state = model.init(jax.random.key(0), dict.fromkeys('ab', x))
  run = jax.jit(lambda params, key: forward(model, params, state, dict.fromkeys('ab', x), train=True, key=key))
  products = re.findall(r'bf16\[[\d,]*\] = dot_general', str(jax.make_jaxpr(run)(params, jax.random.key(1))))
  assert products, 'nothing is multiplied in bfloat16'
  (outputs, new), (others, _) = run(params, jax.random.key(1)), run(params, jax.random.key(2))
  assert all(y.dtype == jnp.float32 and np.all(np.isfinite(y)) for y in outputs.values())
  assert all(np.any(outputs[t] != others[t]) for t in outputs), 'no dropout'
  statistics = [leaf for leaf in jax.tree.leaves((params, state)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert {leaf.dtype for leaf in statistics} == {np.dtype('float32')}
  jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), state, new)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state, new)))), 'no statistics'


@pytest.mark.full
@pytest.mark.parametrize('method', gramian_methods())
@pytest.mark.parametrize('architecture', sharing.ARCHITECTURES)
def test_every_gramian_method_runs_on_every_architecture(architecture, method):
  index = gramian_methods().index(method) + list(sharing.ARCHITECTURES).index(architecture)
  check(architecture, (5, 2)[index % 2], ('single', 'multi')[index // 2 % 2], method)


@pytest.mark.full
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', ['single', 'multi'])
@pytest.mark.parametrize('count', [2, 5])
@pytest.mark.parametrize('architecture', sharing.ARCHITECTURES)
def test_every_architecture_in_every_mode(architecture, count, kind, mode):
  check(architecture, count, kind, 'mgda', mode=mode)
