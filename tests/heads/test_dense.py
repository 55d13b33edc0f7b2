"""Dense heads: shapes, dtypes, options, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from mtljax import heads
from mtljax.base import InputError

KEY = jax.random.key(0)
FEATURES = jax.random.normal(KEY, (4, 3, 2))


@pytest.mark.parametrize(
  'head, shape',
  [
    (heads.classify(5), (4, 5)),
    (heads.multilabel(3), (4, 3)),
    (heads.regress(), (4,)),
    (heads.regress(1), (4, 1)),
    (heads.regress(2, hidden=(7,)), (4, 2)),
  ],
)
def test_features_are_flattened_and_outputs_have_their_shape(head, shape):
  variables = random_variables(head, FEATURES)
  outputs = head.apply(variables, FEATURES)
  assert outputs.shape == shape and outputs.dtype == jnp.float32
  assert variables['params']['Dense_0']['kernel'].shape[0] == 6


@pytest.mark.parametrize('hidden', [(), (7,)])
def test_outputs_are_float32_whatever_the_compute_dtype(hidden):
  head = heads.classify(5, hidden=hidden, dtype=jnp.bfloat16)
  variables = random_variables(head, FEATURES)
  half = head.apply(variables, FEATURES.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(half, heads.classify(5, hidden=hidden).apply(variables, FEATURES), atol=0.05)


def test_double_precision_stays(x64):
  head = heads.regress(hidden=(7,))
  variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), head.init(KEY, FEATURES))
  assert head.apply(variables, FEATURES.astype(jnp.float64)).dtype == jnp.float64


def test_dropout_acts_on_hidden_layers_while_training():
  head = heads.classify(5, hidden=(64,), dropout=0.5)
  variables = random_variables(head, FEATURES)
  still = head.apply(variables, FEATURES)
  np.testing.assert_array_equal(still, heads.classify(5, hidden=(64,)).apply(variables, FEATURES, train=True))
  assert np.any(still != head.apply(variables, FEATURES, train=True, rngs={'dropout': KEY}))


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^heads.classify: num_classes is 1, expected a whole number of at least 2'):
    heads.classify(1)
  with pytest.raises(InputError, match=r'^heads.regress: outputs is 0, '):
    heads.regress(0)
  with pytest.raises(InputError, match=r'^heads.multilabel: num_labels is 2.5, '):
    heads.multilabel(2.5)
  with pytest.raises(InputError, match=r'^Dense: hidden is 32, expected a sequence'):
    heads.classify(3, hidden=32).init(KEY, FEATURES)
  with pytest.raises(InputError, match=r'^Dense: features are a dict, expected an array .* heads.pooled'):
    heads.classify(3).init(KEY, {'x': FEATURES})
  assert heads.classify(np.int64(3)).outputs == 3
