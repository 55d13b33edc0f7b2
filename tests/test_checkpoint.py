import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtljax import checkpoint
from mtljax.base import InputError, TrainState


def make_state(seed=0, width=3, dtype=jnp.float32, balancer_state=(), tasks=('a', 'b')):
  key = jax.random.key(seed)
  params = {
    'shared': {'w': jax.random.normal(key, (4, width)).astype(dtype), 'none': jnp.zeros((0, 2))},
    'tasks': {task: {'w': jax.random.normal(key, (width,)).astype(dtype)} for task in tasks},
  }
  labels = {'shared': 'x', 'tasks': {task: 'y' for task in tasks}}
  optimizer = optax.multi_transform({'x': optax.adam(1e-3), 'y': optax.sgd(0.1, momentum=0.9)}, labels)
  return TrainState(
    step=jnp.int32(seed),
    params=params,
    model_state={'shared': {'frozen': jnp.array([True, False])}, 'tasks': {task: {} for task in tasks}},
    opt_state=optimizer.init(params),
    balancer_state=balancer_state,
    key=key,
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  a, b = checkpoint.flatten(a), checkpoint.flatten(b)
  for name, leaf in a.items():
    assert leaf.dtype == b[name].dtype and leaf.shape == b[name].shape, name
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf, b[name] = jax.random.key_data(leaf), jax.random.key_data(b[name])
    assert np.asarray(leaf).tobytes() == np.asarray(b[name]).tobytes(), name


def save(directory, states, scores=None, keep=2, manifest=None):
  checkpoints = checkpoint.Checkpoints(directory, keep=keep)
  for step, state in states.items():
    checkpoints.save(step, state, manifest, (scores or {}).get(step))
  checkpoints.close()


def damage(folder, how):
  """The three ways files break: cut off, flipped, gone."""
  files = [path for path in pathlib.Path(folder).rglob('*') if path.is_file()]
  for path in files:
    data = bytearray(path.read_bytes())
    if how == 'gone':
      path.unlink()
    elif how == 'truncated':
      path.write_bytes(data[: len(data) // 2])
    elif how == 'flipped' and data:
      data[len(data) // 2] ^= 0x10
      path.write_bytes(data)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_round_trip_is_bit_exact(tmp_path, dtype):
  state = make_state(7, dtype=dtype, balancer_state={'z': jnp.arange(3.0), 'none': None})
  save(tmp_path, {7: state}, manifest={'balancer': 'cagrad(c=0.2)'})
  target = make_state(0, dtype=dtype, balancer_state={'z': jnp.zeros(3), 'none': None})
  restored, manifest, step = checkpoint.restore_latest(tmp_path, target)
  assert step == 7 and manifest['balancer'] == 'cagrad(c=0.2)' and manifest['tree'] == checkpoint.describe(state)
  assert_same(restored, state)
  assert not any(leaf.committed for leaf in jax.tree.leaves(restored))
  abstract = jax.eval_shape(lambda: target)
  assert_same(checkpoint.restore(tmp_path / '7', abstract)[0], state)


def test_restores_onto_the_sharding_of_the_target(tmp_path):
  state = make_state(1)
  save(tmp_path, {1: state})
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  target = jax.device_put(make_state(0), sharding)
  restored = checkpoint.restore(tmp_path / '1', target)[0]
  assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(restored))
  assert_same(restored, state)


def test_saving_survives_donation(tmp_path):
  state = {'w': jnp.arange(200_000.0)}
  move = jax.jit(lambda s: {'w': s['w'] * -1 - 1}, donate_argnums=0)
  expected = {}
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=5)
  for step in range(1, 6):
    state = move(state)
    expected[step] = np.array(state['w'])
    checkpoints.save(step, state)
    for _ in range(4):
      state = move(state)
  checkpoints.close()
  for step, value in expected.items():
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / str(step), state)[0]['w'], value)


def test_keeps_the_newest_and_the_best_also_after_reopening(tmp_path):
  states = {step: {'w': jnp.full(3, step)} for step in range(1, 8)}
  save(tmp_path, {step: states[step] for step in (1, 2, 3)}, {1: 0.1, 2: 0.9, 3: 0.5})
  assert checkpoint.steps(tmp_path) == [3, 2]
  save(tmp_path, {step: states[step] for step in (4, 5, 6, 7)}, {5: 0.6})
  assert checkpoint.steps(tmp_path) == [7, 6, 2] and checkpoint.best_step(tmp_path) == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '6', '7']


@pytest.mark.parametrize('how', ['gone', 'truncated', 'flipped'])
def test_damaged_newest_is_passed_over_with_a_warning(tmp_path, how):
  states = {step: make_state(step) for step in (1, 2, 3)}
  save(tmp_path, states, keep=3)
  (tmp_path / '9').mkdir()  # a folder without anything counts for orbax
  damage(tmp_path / '3', how)
  with pytest.warns(UserWarning, match='damaged') as record:
    restored, _, step = checkpoint.restore_latest(tmp_path, make_state(0))
  assert step == 2 and len(record) == 2
  assert_same(restored, states[2])
  checkpoint.discard_after(tmp_path, 2)
  assert checkpoint.steps(tmp_path) == [2, 1]


def test_a_single_flipped_bit_is_noticed_in_any_file(tmp_path):
  save(tmp_path, {5: make_state(5)})
  files = [path for part in ('state', 'manifest') for path in (tmp_path / '5' / part).rglob('*') if path.is_file()]
  for path in files:
    data = path.read_bytes()
    if path.name != 'commit_success.txt':
      path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
      with pytest.raises(checkpoint.DamagedError, match='5 is damaged: '):
        checkpoint.restore(tmp_path / '5', make_state(0))
      path.write_bytes(data)
  assert len(files) > 5
  assert_same(checkpoint.restore(tmp_path / '5', make_state(0))[0], make_state(5))


def test_all_damaged_is_an_error(tmp_path):
  save(tmp_path, {1: make_state(1), 2: make_state(2)})
  damage(tmp_path, 'truncated')
  with pytest.warns(UserWarning), pytest.raises(InputError, match=r'all checkpoints in .* are damaged: \[1, 2\]'):
    checkpoint.restore_latest(tmp_path, make_state(0))


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match='no checkpoint in'):
    checkpoint.restore_latest(tmp_path / 'absent', make_state(0))
  with pytest.raises(InputError, match='not found'):
    checkpoint.restore(tmp_path / '3', make_state(0))


@pytest.mark.parametrize(
  'target, message',
  [
    (dict(width=5), r'another model: params/shared/w is float32\[4, 3\], expected float32\[4, 5\]'),
    (dict(dtype=jnp.bfloat16), r'another model: params/shared/w is float32\[4, 3\], expected bfloat16\[4, 3\]'),
    (dict(tasks=('a', 'b', 'c')), r'another model: params/tasks/c/w is expected and not in it'),
    (dict(tasks=('a',)), r'another model: it has params/tasks/b/w, which is not expected'),
    (dict(balancer_state=jnp.zeros(2)), r'another model: balancer_state is expected and not in it'),
  ],
)
def test_another_model_is_one_sentence(tmp_path, target, message):
  save(tmp_path, {1: make_state(1)})
  with pytest.raises(InputError, match=message) as error:
    checkpoint.restore_latest(tmp_path, make_state(0, **target))
  assert '\n' not in str(error.value) and not isinstance(error.value, checkpoint.DamagedError)


def test_manifest_is_plain_json(tmp_path):
  save(tmp_path, {1: make_state(1)}, {1: 0.5}, manifest={'config': {'width': 3}, 'tasks': ['a', 'b']})
  manifest = json.loads((tmp_path / '1' / 'manifest' / 'metadata').read_text())
  assert manifest['config'] == {'width': 3} and manifest['tasks'] == ['a', 'b'] and manifest['score'] == 0.5
  assert manifest['tree']['key'] == [[], 'key<fry>']


def test_params_sha256_sees_every_bit_and_no_order():
  params = {'b': jnp.zeros(2), 'a': {'w': jnp.ones((2, 1))}}
  digest = checkpoint.params_sha256(params)
  assert digest == checkpoint.params_sha256({'a': {'w': np.ones((2, 1), np.float32)}, 'b': np.zeros(2, np.float32)})
  assert len(digest) == 64
  others = [
    {**params, 'b': jnp.array([0.0, -0.0])},
    {**params, 'b': jnp.zeros((2, 1))},
    {**params, 'c': jnp.zeros(0)},
    {**params, 'b': jnp.zeros(2, jnp.int32)},
  ]
  assert digest not in [checkpoint.params_sha256(other) for other in others]


def test_paths_must_not_collide():
  with pytest.raises(InputError, match='same path'):
    checkpoint.flatten({'a': {'b': 1}, 'a/b': 2})
