"""The adapter: linen, nnx, pairs and modules behave as one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sharing_cases import NnxTrunk

from mtljax import arrays, sharing, trunks
from mtljax.base import InputError
from mtljax.sharing.modules import as_module, named_keywords

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(0), (6, 5))


def start(module, *args, **offered):
  module = as_module(module, 'trunk')
  params, state = module.init(KEY, *args, **offered)
  return functools.partial(module.apply, params, state), params, state


class Told(nn.Module):
  """Returns what it was told about the mode."""

  @nn.compact
  def __call__(self, x, *, training, deterministic=None, use_running_average=None):
    return training, deterministic, use_running_average


class Frozen(nn.Module):
  """BatchNorm that always uses its running averages."""

  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(use_running_average=True)(x)


class Plain(nn.Module):
  """A user's own net with a plain BatchNorm."""

  @nn.compact
  def __call__(self, x, train):
    return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


def test_keywords_taken_by_position_are_not_given_again():
  offered = {'inputs': 1, 'train': True}
  assert named_keywords(nn.Dense(2).__call__, 1, offered) == {}  # its first argument is called inputs
  assert named_keywords(lambda features, inputs: None, 1, offered) == {'inputs': 1}
  assert named_keywords(lambda *args, **kwargs: None, 1, offered) == {}


def test_linen_modules_are_told_the_mode_by_the_names_they_use():
  apply, _, _ = start(Told(), X)
  assert apply(X, train=True, key=KEY)[0] == (True, False, False)
  assert apply(X, train=False, key=None)[0] == (False, True, True)


@pytest.mark.parametrize('chosen', [True, False])
def test_a_mode_that_the_user_chose_stays(chosen):
  apply, _, state = start(nn.BatchNorm(use_running_average=chosen), X)
  _, new = apply(X, train=True, key=KEY)
  assert bool(np.any(new['batch_stats']['mean'] != state['batch_stats']['mean'])) == (not chosen)


def test_a_sequential_is_given_nothing_it_does_not_name():
  apply, params, _ = start(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), X)
  outputs, state = apply(X, train=True, key=None)
  assert outputs.shape == (6, 2) and state == {} and set(params) == {'layers_0', 'layers_2'}


def test_other_streams_than_dropout_have_a_key_too():
  class Noise(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return x + jax.random.normal(self.make_rng('noise'), x.shape) if train else x

  apply, _, _ = start(Noise(), X)
  first, other = (apply(X, train=True, key=jax.random.key(n))[0] for n in (1, 2))
  assert np.any(first != other)
  np.testing.assert_array_equal(apply(X, train=False, key=None)[0], X)


def test_sown_values_leave_the_structure_of_the_state():
  class Sower(nn.Module):
    @nn.compact
    def __call__(self, x):
      self.sow('losses', 'l2', jnp.sum(x**2), init_fn=lambda: 0.0, reduce_fn=lambda a, b: b)
      return x

  module = as_module(Sower(), 'trunk')
  _, state = module.apply({}, {}, X, train=True, key=KEY)
  assert state == {}


def test_partitioned_parameters_are_plain_arrays():
  init = nn.with_partitioning(nn.initializers.ones, (None, 'model'))
  _, params, _ = start(nn.Dense(4, kernel_init=init), X)
  assert isinstance(params['kernel'], jax.Array)


def test_pairs_and_modules_get_the_keywords_they_name():
  seen = {}

  def apply(params, features, *, key, inputs):
    seen.update(key=key, inputs=inputs)
    return features

  run, _, state = start((lambda key, features: {}, apply), X, inputs=2 * X)
  run(X, train=True, key=KEY, inputs=2 * X)
  assert state == {} and seen['key'] is KEY and np.all(seen['inputs'] == 2 * X)

  module = sharing.Module(lambda key, x: ({}, {}), lambda params, state, x, *, train, key: (x, state))
  run, _, _ = start(module, X, inputs=X)
  assert run(X, train=True, key=KEY, inputs=X)[1] == {}


@pytest.mark.parametrize('source', [NnxTrunk, NnxTrunk(nnx.Rngs(1))], ids=['function', 'instance'])
def test_nnx_params_and_state_are_plain_dictionaries_without_random_streams(source):
  apply, params, state = start(source, X)
  assert jax.tree.map(jnp.shape, params) == {
    'layers': {'0': {'bias': (8,), 'kernel': (5, 8)}, '1': {'bias': (8,), 'scale': (8,)}}
  }
  assert jax.tree.map(jnp.shape, state) == {'layers': {'1': {'mean': (8,), 'var': (8,)}}}
  evaluated, _ = apply(X, train=False, key=None)
  assert evaluated.shape == (6, 8)
  with pytest.raises(InputError, match='^trunk: key is None with train=True'):
    apply(X, train=True, key=None)


def test_an_nnx_module_computes_what_it_computes_by_itself():
  instance = NnxTrunk(nnx.Rngs(1))
  apply, _, _ = start(instance, X)
  instance.eval()
  np.testing.assert_allclose(apply(X, train=False, key=None)[0], instance(X), rtol=1e-5, atol=1e-6)


def test_an_nnx_instance_is_copied():
  instance = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
  before = np.asarray(instance.kernel[...])
  module = as_module(instance, 'trunk')
  instance.kernel[...] = instance.kernel[...] + 1
  (params, _), (again, _) = module.init(KEY, X), module.init(KEY, X)
  np.testing.assert_array_equal(params['kernel'], before)
  assert params['kernel'].unsafe_buffer_pointer() != again['kernel'].unsafe_buffer_pointer()


def test_nnx_functions_may_take_rngs_by_any_name_and_way():
  sources = (
    functools.partial(nnx.Linear, 5, 2),
    functools.partial(nnx.Linear, in_features=5, out_features=2),
    lambda streams: nnx.Linear(5, 2, rngs=streams),
  )
  kernels = [start(source, X)[1]['kernel'] for source in sources]
  assert all(np.array_equal(kernels[0], kernel) for kernel in kernels[1:])


def test_nnx_layers_draw_dropout_masks_of_their_own():
  class Two(nnx.Module):
    def __init__(self, rngs):
      self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
      return self.a(x), self.b(x)

  apply, params, state = start(Two, X)
  (a, b), new = apply(X, train=True, key=KEY)
  assert np.any(a != b) and params == state == new == {}


@pytest.mark.parametrize(
  'found, message',
  [
    (None, 'found None'),
    ((nn.Dense(2), nn.relu), r'found \(Dense'),
    ((len, len, len), r'found \(<built-in'),
    ('mlp', "found 'mlp'"),
  ],
)
def test_anything_else_is_refused_by_the_name_of_the_argument(found, message):
  with pytest.raises(InputError, match=rf"^heads\['a'\]: {message}.*, expected a flax linen module"):
    as_module(found, "heads['a']")


def test_a_function_that_makes_no_nnx_module_is_refused():
  with pytest.raises(InputError, match='^trunk: the function .* returned float, expected an nnx.Module'):
    start(lambda rngs: 3.0, X)
  with pytest.raises(InputError, match='^trunk: the function .* failed as rngs -> nnx.Module'):
    start(lambda x: x.reshape(3), X)


def on_two_devices(apply, x):
  """One training pass with the rows of `x` on two devices of an axis named d."""
  with arrays.use_axis('d'):
    return jax.vmap(lambda part: apply(part, train=True, key=KEY), axis_name='d')(x.reshape(2, -1, *x.shape[1:]))


@pytest.mark.parametrize(
  'module, named',
  [(Plain(), "nn.BatchNorm 'BatchNorm_0'"), (NnxTrunk, "nnx.BatchNorm 'layers/1'")],
  ids=['linen', 'nnx'],
)
def test_a_plain_batch_norm_on_several_devices_warns(module, named):
  apply, _, _ = start(module, X)
  with pytest.warns(UserWarning, match=f'^trunk: {named} .* use mtljax.trunks.BatchNorm'):
    on_two_devices(apply, X)


@pytest.mark.parametrize('module', [trunks.MLP((4,), batch_norm=True), Frozen(), nn.Dense(2)], ids=type)
def test_what_needs_no_warning_gets_none(module):
  apply, _, _ = start(module, X)
  on_two_devices(apply, X)  # a warning is an error here


def test_one_device_gets_no_warning():
  apply, _, _ = start(Plain(), X)
  apply(X, train=True, key=KEY)


class Gated(nn.Module):
  """A head that asks for the task's inputs."""

  @nn.compact
  def __call__(self, z, *, inputs):
    return nn.Dense(2)(z) * inputs[:, :2]


@pytest.mark.parametrize('name', sharing.ARCHITECTURES)
def test_heads_that_name_inputs_get_them_in_every_architecture(name):
  model = sharing.parse(name)(trunks.MLP((6, 6)), {'a': Gated(), 'b': Gated()})
  x = jnp.ones((3, 5))
  params, state = jax.eval_shape(model.init, jax.random.key(0), {'a': x, 'b': x})

  def outputs(params, state):
    mode = dict(train=True, key=jax.random.key(1))
    z, _ = model.trunk(params['shared'], state['shared'], x, tasks=('a', 'b'), **mode)
    return model.head(params['tasks']['b'], state['tasks']['b'], z, inputs=x, task='b', **mode)[0]

  assert jax.eval_shape(outputs, params, state).shape == (3, 2)
