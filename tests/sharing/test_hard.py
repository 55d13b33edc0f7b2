"""Hard sharing: keys of the parts, stems, what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import counting_module, pair

from mtljax import arrays, sharing, trunks
from mtljax.base import InputError

KEY = jax.random.key(3)
X = jnp.ones((4, 5))


def test_parts_are_drawn_from_the_name_of_the_task():
  model = sharing.hard(pair(8), {'a': pair(2), 'b': pair(2)})
  params, _ = model.init(KEY, {'b': X, 'a': X})
  features = jnp.tanh(X @ params['shared']['w'])
  expected = pair(2)[0](arrays.name_key(KEY, 'b'), features)
  np.testing.assert_array_equal(params['tasks']['b']['w'], expected['w'])
  np.testing.assert_array_equal(params['shared']['w'], pair(8)[0](arrays.name_key(KEY, 'shared'), X)['w'])
  renamed, _ = sharing.hard(pair(8), {'z': pair(2), 'b': pair(2)}).init(KEY, {'z': X, 'b': X})
  np.testing.assert_array_equal(renamed['tasks']['b']['w'], params['tasks']['b']['w'])
  assert np.any(renamed['tasks']['z']['w'] != params['tasks']['a']['w'])


def test_one_instance_may_be_the_head_of_several_tasks():
  head = nn.Dense(2)
  params, _ = sharing.hard(nn.Dense(3), {'a': head, 'b': head}).init(KEY, {'a': X, 'b': X})
  assert np.any(params['tasks']['a']['kernel'] != params['tasks']['b']['kernel'])


def test_the_trunk_is_initialised_once_and_runs_once_for_one_array():
  calls = []

  def init(key, x):
    calls.append('init')
    return {}

  def apply(params, x):
    calls.append('apply')
    return x

  model = sharing.hard((init, apply), {task: pair(2) for task in 'abc'})
  model.init(KEY, dict.fromkeys('abc', X))
  assert calls == ['init', 'apply']


def test_a_head_that_names_inputs_gets_those_before_the_stem():
  tokens = jnp.array([[1, 2, 3]] * 4)
  stem = (lambda key, x: {'embed': jnp.ones((4, 5))}, lambda params, x: params['embed'][x].mean(axis=1))

  def apply(params, features, *, inputs):
    return params['w'] * features.mean(axis=1), inputs

  head = (lambda key, features, *, inputs: {'w': jnp.full((), inputs.shape[1])}, apply)
  model = sharing.hard(pair(6), {'a': head}, stems={'a': stem})
  params, state = model.init(KEY, {'a': tokens})
  assert params['tasks']['a']['head']['w'] == 3
  own = params['tasks']['a'], state['tasks']['a'], jnp.ones((4, 6))
  outputs, given = model.head(*own, inputs=tokens, task='a', train=False, key=None)[0]
  assert given is tokens and outputs.shape == (4,)


def test_the_state_of_a_stem_and_of_a_head_change_apart():
  model = sharing.hard(pair(6), {'a': counting_module(2)}, stems={'a': counting_module(3)})
  params, state = model.init(KEY, {'a': X})
  own = dict(task='a', train=True, key=KEY)
  z, after_stem = model.stem(params['tasks']['a'], state['tasks']['a'], X, **own)
  features, _ = model.trunk(params['shared'], state['shared'], z, tasks=('a',), train=True, key=KEY)
  _, after_head = model.head(params['tasks']['a'], after_stem, features, **own)
  assert after_stem == {'stem': {'count': 1}, 'head': {'count': 0}}
  assert after_head == {'stem': {'count': 1}, 'head': {'count': 1}}


def test_features_may_be_any_pytree():
  trunk = (lambda key, x: {}, lambda params, x: {'z': x, 'length': jnp.full((4,), 5)})
  head = (lambda key, f: {'w': jnp.ones(())}, lambda params, f: params['w'] * f['z'].sum(axis=1) / f['length'])
  model = sharing.hard(trunk, {'a': head})
  params, state = model.init(KEY, {'a': X})
  features, _ = model.trunk(params['shared'], state['shared'], X, tasks=('a',), train=False, key=None)
  outputs, _ = model.head(params['tasks']['a'], state['tasks']['a'], features, task='a', train=False, key=None)
  np.testing.assert_allclose(outputs, np.ones(4))


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^trunk: found 3, expected a flax linen module'):
    sharing.hard(3, {'a': nn.Dense(2)})
  with pytest.raises(InputError, match=r"^heads\['a'\]: found <class .*Dense.*>, expected .* \(an instance\)"):
    sharing.hard(nn.Dense(2), {'a': nn.Dense})
  with pytest.raises(InputError, match=r'^heads: found \{\}, expected a non-empty dictionary'):
    sharing.hard(nn.Dense(2), {})
  with pytest.raises(InputError, match=r'^heads: found Dense'):
    sharing.hard(nn.Dense(2), nn.Dense(2))
  with pytest.raises(InputError, match=r"^stems: found \['b'\], expected \['a'\]"):
    sharing.hard(nn.Dense(2), {'a': nn.Dense(2)}, stems={'b': nn.Dense(2)})


def test_inputs_of_a_task_without_a_head_name_both():
  model = sharing.hard(nn.Dense(2), {'a': nn.Dense(2), 'b': nn.Dense(2)})
  with pytest.raises(InputError, match=r"heads: found \['a', 'b'\], .* no head for \['parity'\]"):
    model.init(KEY, {'a': X, 'parity': X})
  with pytest.raises(InputError, match=r"heads: found \['a', 'b'\], inputs are for \[\]"):
    model.init(KEY, {})


def test_a_part_that_cannot_take_its_input_is_named_with_the_shape():
  with pytest.raises(InputError, match=r"heads\['a'\] cannot take float32\[4, 3\]: .*IndexError|TypeError"):
    sharing.hard(nn.Dense(3), {'a': pair(None)}).init(KEY, {'a': X})
  with pytest.raises(InputError, match=r"trunk \(inputs of 'a'\) cannot take int32\[\]"):
    sharing.hard(trunks.MLP((3,)), {'a': nn.Dense(2)}).init(KEY, {'a': jnp.zeros((), jnp.int32)})
  stems = {'a': nn.Dense(5), 'b': nn.Dense(6)}
  with pytest.raises(InputError, match=r"trunk \(inputs of 'b'\) cannot take float32\[4, 6\]: ScopeParamShapeError"):
    sharing.hard(nn.Dense(3), {'a': nn.Dense(2), 'b': nn.Dense(2)}, stems=stems).init(KEY, {'a': X, 'b': X})
