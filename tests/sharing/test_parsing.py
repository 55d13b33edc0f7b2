import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax import sharing, trunks
from mtljax.base import InputError

HEADS = {'b': nn.Dense(2), 'a': nn.Dense(3)}
X = jnp.ones((2, 4))


def shapes(model):
  return jax.eval_shape(lambda key: model.init(key, {'b': X, 'a': X}), jax.random.key(0))


@pytest.mark.parametrize('name', sharing.ARCHITECTURES)
def test_every_architecture_is_made_of_one_trunk_by_its_name_alone(name):
  params, _ = shapes(sharing.parse(name)(trunks.MLP((6, 6)), HEADS))
  assert set(params) == {'shared', 'tasks'} and set(params['tasks']) == {'a', 'b'}


def test_arguments_reach_the_architecture():
  params, _ = sharing.parse(' cross_stitch( own = 0.75 )')(trunks.MLP((6,)), HEADS).init(
    jax.random.key(0), {'b': X, 'a': X}
  )
  np.testing.assert_array_equal(params['shared']['units']['layer_0']['alpha'], [[0.75, 0.25], [0.25, 0.75]])
  params, _ = shapes(sharing.parse('cgc(num_shared=3, num_own=2)')(trunks.MLP((6,)), HEADS))
  assert params['shared']['experts']['Dense_0']['kernel'].shape == (3, 4, 6)
  assert params['tasks']['a']['experts']['Dense_0']['kernel'].shape == (2, 4, 6)
  params, _ = shapes(sharing.parse('ple')(trunks.MLP((6, 5)), HEADS))
  assert params['shared']['level1']['own']['a']['Dense_0']['kernel'].shape == (1, 4, 6)
  assert params['tasks']['a']['level2']['own']['Dense_0']['kernel'].shape == (1, 6, 5)


@pytest.mark.parametrize('name', sharing.ARCHITECTURES)
def test_stems_may_be_handed_in_beside_the_text(name):
  stems = {'a': nn.Dense(4), 'b': nn.Dense(4)}
  model = sharing.parse(name)(trunks.MLP((6, 6)), HEADS, stems=stems)
  assert model.stem is not None and set(shapes(model)[0]['tasks']['a']) == {'stem', 'head'}


@pytest.mark.parametrize(
  'text, message',
  [
    ('mmo', r"architecture: found unknown name 'mmo', expected one of .*. Did you mean 'mmoe'\?"),
    ('mmoe(num_expert=3)', "mmoe: found unknown argument 'num_expert', expected one of: .*num_experts"),
    ('mmoe(experts=3)', "mmoe: found unknown argument 'experts'"),
    ('mmoe(num_experts=open("x"))', "argument 'num_experts' is open.*expected a literal"),
    ('mmoe(', 'architecture: found .* expected a name or a call such as "mmoe'),
    (3, 'architecture: found 3'),
  ],
)
def test_what_is_wrong_is_named(text, message):
  with pytest.raises(InputError, match=message):
    sharing.parse(text)


def test_an_argument_given_twice():
  with pytest.raises(InputError, match=re.escape("found argument 'own' twice")):
    sharing.parse('cross_stitch(own=0.7)')(trunks.MLP((6,)), HEADS, own=0.8)


def test_a_recipe_takes_trunk_and_heads():
  from mtljax.sharing.parsing import OVER_A_TRUNK

  for name, recipe in OVER_A_TRUNK.items():
    assert name in sharing.ARCHITECTURES and list(inspect.signature(recipe).parameters)[:2] == ['trunk', 'heads']
