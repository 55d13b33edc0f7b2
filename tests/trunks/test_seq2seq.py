"""Encoder and decoder as one trunk: the same numbers as the parts, padding, training and decoding through `hard`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

import mtljax as mtl
from mtljax import heads, trunks
from mtljax.base import InputError
from mtljax.inputs import check_features
from mtljax.trunks.decoders import BoundDecoder

BOS, EOS, PAD = 1, 2, 0
ENCODER = trunks.Transformer(8, depth=1, heads=2, vocabulary=7)
DECODER = trunks.TransformerDecoder(6, 8, depth=1, heads=2)
TRUNK = trunks.Seq2Seq(ENCODER, DECODER)
INPUTS = {
  'x': jnp.array([[1, 2, 3, 4], [5, 6, 0, 0], [2, 2, 6, 0]]),
  'mask': jnp.array([[True] * 4, [True, True, False, False], [True] * 3 + [False]]),
  'targets': jnp.array([[BOS, 3, 4, 5], [BOS, 5, EOS, PAD], [BOS, 4, 4, EOS]]),
}
SEARCH = heads.Search(5, width=2)


@functools.cache
def parameters(module=TRUNK):
  return jax.tree.map(lambda leaf: 2 * leaf, random_variables(module, INPUTS))['params']


@functools.cache
def jitted():
  return jax.jit(lambda params, inputs, train: TRUNK.apply({'params': params}, inputs, train), static_argnums=2)


def test_source_gives_any_trunk_its_part():
  x = jax.random.normal(jax.random.key(0), (3, 5))
  net = trunks.MLP((4, 2))
  wrapped = trunks.Source(net)
  own = random_variables(net, x)
  inputs = {'x': x, 'targets': INPUTS['targets']}
  expected = net.apply(own, x)
  np.testing.assert_array_equal(wrapped.apply({'params': {'trunk': own['params']}}, inputs), expected)
  np.testing.assert_array_equal(wrapped.apply({'params': {'trunk': own['params']}}, x), expected)
  for index, (name, stage) in enumerate(wrapped.stages.items()):
    layer = {'Dense_0': own['params'][f'Dense_{index}']}
    inputs = stage.apply({'params': {'trunk': layer} if index == 0 else layer}, inputs)
    assert name == f'layer_{index}'
  np.testing.assert_array_equal(inputs, expected)
  with pytest.raises(InputError, match=r"^inputs: found a dictionary with \['targets'\], expected a dictionary {'x'"):
    wrapped.init(jax.random.key(0), {'targets': INPUTS['targets']})


def test_it_is_its_parts_and_its_stages_one_after_another():
  params = parameters()
  whole = jitted()(params, INPUTS, False)
  assert whole['x'].shape == (3, 4, 8)
  np.testing.assert_array_equal(whole['mask'], INPUTS['targets'] != PAD)
  assert list(TRUNK.stages) == ['embed', 'block_0', 'norm', 'decoder']

  @jax.jit
  def one_by_one(params, z):
    for name, stage in TRUNK.stages.items():
      own = {'decoder': params['decoder']} if name == 'decoder' else {'stage': params['encoder'][name]}
      z = stage.apply({'params': own}, z)
    return z

  staged = one_by_one(params, INPUTS)
  np.testing.assert_allclose(staged['x'], whole['x'], atol=1e-5)
  np.testing.assert_allclose(staged['decoder'].memory, whole['decoder'].memory, atol=1e-5)
  assert list(trunks.Seq2Seq(trunks.MLP((4,)).clone(), DECODER).stages) == ['layer_0', 'decoder']
  assert set(jax.eval_shape(lambda: TRUNK.apply({'params': params}, INPUTS, True))) == {'x', 'mask'}  # in training


def test_a_head_on_it_is_a_decoder_on_the_encoder():
  params, layer = parameters(), random_variables(nn.Dense(6), jnp.ones((1, 8)))['params']
  features = jitted()(params, INPUTS, False)
  shared = functools.partial(heads.NextToken(6).apply, {'params': {'logits': layer}}, features)
  own = functools.partial(
    heads.Decoder(DECODER).apply,
    {'params': {'decoder': params['decoder'], 'logits': layer}},
    {'x': features['decoder'].memory, 'mask': features['decoder'].mask},
  )
  np.testing.assert_allclose(*jax.jit(lambda x: (shared(x), own(x)))(INPUTS), atol=1e-5)
  found, expected = (head({**INPUTS, 'decode': SEARCH}) for head in (shared, own))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert found['tokens'].shape == (3, 2, 5)

  # A smaller vocabulary of the task's own, and a begin that only the shared decoder knows.
  few = jax.tree.map(lambda leaf: leaf[..., :4], layer)
  other = heads.NextToken(4, bos=5).apply({'params': {'logits': few}}, features, {'decode': SEARCH})
  assert other['tokens'].max() < 4 and np.isfinite(other['scores']).all()


def test_targets_are_not_needed_to_decode():
  params, layer = parameters(), random_variables(nn.Dense(6), jnp.ones((1, 8)))
  head = {'params': {'logits': layer['params']}}
  source = {name: INPUTS[name] for name in ('x', 'mask')}
  features = jitted()(params, source, False)
  assert set(features) == {'decoder'} and isinstance(features['decoder'], BoundDecoder)
  expected = heads.NextToken(6).apply(head, jitted()(params, INPUTS, False), {'decode': SEARCH})
  found = heads.NextToken(6).apply(head, features, {'decode': SEARCH})
  np.testing.assert_array_equal(found['tokens'], expected['tokens'])
  with pytest.raises(
    InputError, match=r"^Seq2Seq: inputs are a dictionary with \['mask', 'x'\], expected a dictionary"
  ):
    jitted()(params, source, True)
  with pytest.raises(
    InputError, match=r"^Seq2Seq: inputs are a dictionary with \['mask', 'x'\], expected a dictionary"
  ):
    TRUNK.init(jax.random.key(0), source)
  with pytest.raises(InputError, match=r'^NextToken: the features hold no states, expected inputs with'):
    heads.NextToken(6).apply(head, features, source)
  with pytest.raises(InputError, match=r'^NextToken: the features hold no decoder, expected those of trunks.Seq2Seq'):
    heads.NextToken(6).apply(head, jnp.ones((3, 4, 8)), {'decode': SEARCH})
  with pytest.raises(InputError, match=r'^NextToken: vocabulary is 9, expected at most 6, that of the decoder'):
    heads.NextToken(9).apply(head, features, {'decode': SEARCH})


def test_padding_of_either_side_has_no_influence():
  whole = jitted()(parameters(), INPUTS, False)
  padded = {
    **INPUTS,
    'x': jnp.where(INPUTS['mask'], INPUTS['x'], 5),
    'targets': jnp.where(INPUTS['targets'] == PAD, 3, INPUTS['targets']),
  }
  other = jitted()(parameters(), padded, False)
  np.testing.assert_array_equal(other['x'][whole['mask']], whole['x'][whole['mask']])
  unmasked = jitted()(parameters(), {**INPUTS, 'mask': jnp.ones((3, 4), bool)}, False)
  assert np.abs(unmasked['x'] - whole['x'])[1:].max() > 1e-3


def test_features_in_training_are_those_that_balancing_at_features_takes():
  model = mtl.sharing.hard(TRUNK, {'words': heads.NextToken(6), 'tags': heads.NextToken(3)})
  params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), {'words': INPUTS, 'tags': INPUTS}))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, state))
  check_features(model, ('words', 'tags'), *zeros, {'inputs': INPUTS, 'labels': {}}, 'gramian')


def trained(model, tasks, batch, steps):
  adam = optax.adam(1e-2)
  optimizer = mtl.task_optimizer(shared=adam, tasks={task.name: adam for task in tasks})
  balancer = mtl.balancing.equal()
  state = jax.jit(lambda key: mtl.init_state(model, tasks, optimizer, balancer, batch, key))(jax.random.key(0))
  step = mtl.make_train_step(model, tasks, optimizer, balancer)
  run = jax.jit(
    lambda state: jax.lax.scan(lambda s, _: (lambda s, info: (s, info.losses))(*step(s, batch)), state, length=steps)
  )
  state, losses = run(state)
  return state, np.array(losses)


def decoded_accuracy(model, state, task, batch):
  """Share of the right tokens among what `task.decode` says; what `evaluate` does, in one compiled function."""
  how = {'task': task.name, 'train': False, 'key': None}
  x, labels, mask = (batch[task.name][name] for name in ('inputs', 'labels', 'mask'))

  @jax.jit
  def decoded(params, own_state, x):
    own, z = params['tasks'][task.name], x
    if model.stem is not None:
      z, _ = model.stem(own, own_state, x, **how)
    z, _ = model.trunk(params['shared'], {}, z, tasks=(task.name,), train=False, key=None)
    return task.decode(lambda x: model.head(own, own_state, z, inputs=x, **how)[0], x)

  found = decoded(state.params, state.model_state['tasks'][task.name], x)
  assert found.shape == labels.shape
  return (found == labels)[mask].mean()


def language(source, begin, translate):
  """A batch of sources of up to three words 3 to 6 and their translations."""
  lengths = 1 + np.arange(len(source)) % 3
  words = np.zeros((len(source), 5), int)
  for row, (x, n) in enumerate(zip(source, lengths)):
    words[row, : n + 2] = [begin, *translate(x[:n]), EOS]
  targets, labels, mask = heads.shifted(words)
  seen = np.arange(3)[None] < lengths[:, None]
  return {'inputs': {'x': np.where(seen, source, 0), 'mask': seen, 'targets': targets}, 'labels': labels, 'mask': mask}


SOURCE = np.random.default_rng(0).integers(3, 7, size=(24, 3))


def test_two_languages_share_a_decoder():
  encoder = trunks.Transformer(16, depth=1, heads=2, vocabulary=7)
  trunk = trunks.Seq2Seq(encoder, trunks.TransformerDecoder(8, 16, depth=1, heads=2))
  model = mtl.sharing.hard(trunk, {'back': heads.NextToken(7), 'up': heads.NextToken(7, bos=7)})
  batch = {'back': language(SOURCE, BOS, lambda x: x[::-1]), 'up': language(SOURCE, 7, lambda x: 3 + (x - 2) % 4)}
  loss = mtl.losses.softmax_cross_entropy
  tasks = tuple(mtl.Task(t, loss, decode=heads.Search(4, width=2)) for t in batch)
  state, losses = trained(model, tasks, batch, 120)
  assert (losses[-1] < 0.2 * losses[0]).all()
  assert min(decoded_accuracy(model, state, task, batch) for task in tasks) > 0.9  # 1/5 by chance


class Entry(nn.Module):
  """A stem of the test: reads its part of the inputs, whatever else there is."""

  @nn.compact
  def __call__(self, inputs):
    x = nn.one_hot(inputs['x'], 7) if jnp.issubdtype(inputs['x'].dtype, jnp.integer) else inputs['x']
    return {'x': nn.Dense(8)(x), 'mask': inputs['mask']}


def test_stems_of_two_modalities_and_a_decoder_for_each():
  text = language(SOURCE, BOS, lambda x: x)
  speech = language(SOURCE, BOS, lambda x: x)
  sound = np.eye(4, dtype=np.float32)[np.maximum(speech['inputs']['x'] - 3, 0)]
  batch = {'text': text, 'speech': {**speech, 'inputs': {**speech['inputs'], 'x': sound}}}
  model = mtl.sharing.hard(
    trunks.Transformer(8, depth=1, heads=2),
    {t: heads.Decoder(trunks.RecurrentDecoder(7, 8)) for t in batch},
    stems={t: Entry() for t in batch},
  )
  tasks = tuple(mtl.Task(t, mtl.losses.softmax_cross_entropy, decode=heads.Search(4)) for t in batch)
  state, losses = trained(model, tasks, batch, 60)
  assert (losses[-1] < 0.7 * losses[0]).all()
  assert decoded_accuracy(model, state, tasks[1], batch) > 0.4  # 1/5 by chance
