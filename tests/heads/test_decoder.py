"""Decoders of a task's own: teacher forcing, greedy and beam search with a cache, against plain recomputation."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables
from scipy.special import log_softmax

import mtljax as mtl
from mtljax import evaluate, heads, trunks
from mtljax.base import InputError
from mtljax.heads.beam import beam_search
from mtljax.trunks.decoders import as_memory

BOS, EOS, PAD = 1, 2, 0
DECODERS = {
  'sinusoidal': trunks.TransformerDecoder(6, 8, depth=1, heads=2, hidden=12),
  'rotary': trunks.TransformerDecoder(6, 8, depth=2, heads=2, hidden=12, positions='rotary'),
  'gru': trunks.RecurrentDecoder(6, 8),
  'lstm': trunks.RecurrentDecoder(6, 8, cell='lstm'),
}
MEMORY = {
  'x': np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32),
  'mask': np.array([[True] * 4, [True, True, False, False], [True] * 3 + [False]]),
}
TOKENS = {'targets': np.array([[BOS, 3, 4, 5], [BOS, 5, EOS, PAD], [BOS, 4, 4, EOS]])}
LENGTH = 7


def decoders(*default):
  """Programs take seconds to compile: some decoders by default, the others with -m full."""
  rows = [name if name in default else pytest.param(name, marks=pytest.mark.full) for name in DECODERS]
  return pytest.mark.parametrize('name', rows)


@functools.cache
def variables(head):
  # Larger than random_variables: flat distributions would make every search alike.
  return jax.tree.map(lambda leaf: 2 * leaf, random_variables(head, MEMORY, TOKENS))


@functools.cache
def compiled(head, search=None):
  """Jitted `(variables, features, targets) -> logits`, or hypotheses."""
  return jax.jit(lambda own, z, y: head.apply(own, z, {'targets': y} if search is None else {'decode': search}))


def teacher(head, features, targets, own=None):
  """Logits; short targets are filled up, so that there is one program (padding at the end has no influence)."""
  padded = np.pad(targets, ((0, 0), (0, max(LENGTH - targets.shape[1], 0))), constant_values=PAD)
  return np.asarray(compiled(head)(variables(head) if own is None else own, features, padded))[:, : targets.shape[1]]


def look(head, search, features=MEMORY, own=None):
  found = compiled(head, search)(variables(head) if own is None else own, features, None)
  return jax.tree.map(np.asarray, found)


def random_parameters(model, inputs):
  """What the model's init returns, drawn by numpy."""
  draw = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
  return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape), leaf.dtype), shapes)


def said(logits, ids=(BOS, PAD)):
  """Log probabilities of what may be said."""
  log_probs = log_softmax(logits, axis=-1)
  log_probs[..., list(ids)] = -np.inf
  return log_probs


def log_prob(head, features, tokens, bos=BOS):
  """Sum of the log probabilities of int[B, L] up to the end, by teacher forcing, and lengths."""
  read = np.concatenate([np.full((len(tokens), 1), bos), tokens[:, :-1]], axis=1)
  steps = log_softmax(teacher(head, features, read), axis=-1)
  steps = np.take_along_axis(steps, tokens[..., None], axis=-1)[..., 0]
  live = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) == 0
  return (steps * live).sum(axis=1), live.sum(axis=1)


def test_shifted_gives_what_is_read_what_is_said_and_where_it_counts():
  targets, labels, mask = heads.shifted(np.array([[1, 5, 6, 2], [1, 5, 2, 0], [1, 2, 0, 0]]))
  np.testing.assert_array_equal(targets, [[1, 5, 6], [1, 5, 2], [1, 2, 0]])
  np.testing.assert_array_equal(labels, [[5, 6, 2], [5, 2, 0], [2, 0, 0]])
  np.testing.assert_array_equal(mask, [[True, True, True], [True, True, False], [True, False, False]])
  assert isinstance(targets, np.ndarray)
  with pytest.raises(InputError, match=r'^shifted: tokens have shape \(3, 1\), expected \[B, L \+ 1\]'):
    heads.shifted(np.ones((3, 1), int))


@decoders('rotary', 'lstm')
def test_output_i_reads_targets_up_to_i_only(name):
  head, targets = heads.Decoder(DECODERS[name]), TOKENS['targets']
  logits = teacher(head, MEMORY, targets)
  assert logits.shape == (3, 4, 6) and logits.dtype == jnp.float32
  for position in range(4):
    changed = np.where(np.arange(4)[None] == position, 3 + (targets + 1) % 3, targets)
    other = teacher(head, MEMORY, changed)
    np.testing.assert_array_equal(other[:, :position], logits[:, :position])
    assert (np.abs(other - logits)[:, position:].max(axis=(1, 2)) > 1e-4).any()


@decoders('rotary', 'lstm')
def test_cached_greedy_search_is_argmax_recomputed_from_scratch(name):
  head, length = heads.Decoder(DECODERS[name]), LENGTH
  found = look(head, heads.Search(length))
  tokens, total, done = np.full((3, length), PAD), np.zeros(3), np.zeros(3, bool)
  for i in range(length):
    read = np.concatenate([np.full((3, 1), BOS), tokens[:, :-1]], axis=1)  # what is not yet known has no influence
    log_probs = said(teacher(head, MEMORY, read))[:, i]
    best = log_probs.argmax(axis=-1)
    tokens[~done, i] = best[~done]
    total[~done] += log_probs.max(axis=-1)[~done]
    done |= best == EOS
  np.testing.assert_array_equal(found['tokens'][:, 0], tokens)
  np.testing.assert_allclose(found['log_probs'][:, 0], total, rtol=2e-5)


@pytest.mark.parametrize(
  'kind, alpha',
  [('transformer', 0.6), *(pytest.param('gru', alpha, marks=pytest.mark.full) for alpha in (0.0, 2.0))],
)
def test_a_beam_wide_enough_finds_what_enumeration_finds(kind, alpha):
  decoder = {'transformer': trunks.TransformerDecoder(4, 8, 1, 2), 'gru': trunks.RecurrentDecoder(4, 8)}[kind]
  head, length = heads.Decoder(decoder, bos=EOS), 4  # begin = end: both other tokens are words
  tokens = {
    (*words, *end, *[PAD] * (length - n - len(end)))
    for n in range(length + 1)
    for words in itertools.product([1, 3], repeat=n)
    for end in ([(EOS,)] if n < length else [()])
  }
  assert len(tokens) == 1 + 2 + 4 + 8 + 16
  tokens = np.array(sorted(tokens))
  memory = {name: MEMORY[name][:2] for name in MEMORY}
  found = look(head, heads.Search(length, len(tokens) + 2, alpha), memory)
  for row in range(2):
    copies = jax.tree.map(lambda leaf, row=row: np.repeat(leaf[row : row + 1], len(tokens), axis=0), memory)
    total, lengths = log_prob(head, copies, tokens, bos=EOS)
    scores = total / ((5 + lengths) / 6) ** alpha
    order = np.argsort(-scores)
    np.testing.assert_allclose(found['scores'][row, :-2], scores[order], rtol=1e-4, atol=1e-5)
    assert np.diff(scores[order][:5]).max() < -1e-4, 'ties: choose another seed'
    np.testing.assert_array_equal(found['tokens'][row, :5], tokens[order][:5])
    assert {tuple(x) for x in found['tokens'][row, :-2]} == {tuple(x) for x in tokens}
  assert np.isneginf(found['scores'][:, -2:]).all() and (found['tokens'][:, -2:] == PAD).all()


@decoders('lstm')
def test_scores_are_those_of_the_hypotheses_returned(name):
  head, search = heads.Decoder(DECODERS[name]), heads.Search(LENGTH, width=3)
  found = look(head, search)
  assert (np.diff(found['scores'], axis=1) <= 0).all()
  for k in range(3):
    total, lengths = log_prob(head, MEMORY, found['tokens'][:, k])
    np.testing.assert_allclose(found['log_probs'][:, k], total, rtol=2e-5)
    np.testing.assert_allclose(found['scores'][:, k], total / ((5 + lengths) / 6) ** 0.6, rtol=2e-5)
  assert not np.isin(found['tokens'], [BOS]).any()
  assert (found['scores'][:, 0] >= look(head, heads.Search(LENGTH))['scores'][:, 0] - 1e-6).all()


def reference_beam(table, width, length, alpha):
  """Beam search in plain Python over a second-order chain: log p(next | last two)."""
  beam = [(0.0, (), 0.0)]  # score, tokens, log probability
  for _ in range(length):
    candidates = []
    for score, tokens, total in beam:
      if tokens and tokens[-1] == EOS:
        candidates.append((score, tokens, total))
        continue
      a, b = ((BOS, BOS) + tokens)[-2:]
      for token, log_prob in enumerate(table[a, b]):
        penalty = ((5 + len(tokens) + 1) / 6) ** alpha
        candidates.append(((total + log_prob) / penalty, (*tokens, token), total + log_prob))
    beam = sorted(candidates, key=lambda c: -c[0])[:width]
  return beam


@pytest.mark.parametrize('width, alpha', [pytest.param(2, 0.0, marks=pytest.mark.full), (3, 0.6)])
def test_a_narrow_beam_is_that_of_plain_python_and_carries_its_cache(width, alpha):
  draw, length = np.random.default_rng(0), 6
  tables = log_softmax(2 * draw.normal(size=(8, 5, 5, 5)), axis=-1).astype(np.float32)
  tables[..., PAD] = -np.inf

  def step(tokens, index, before):  # the cache is the token before the last
    return jax.vmap(lambda table, a, b: table[a, b])(tables, before, tokens), tokens

  search = lambda cache: beam_search(step, cache, 8, heads.Search(length, width, alpha), bos=BOS, eos=EOS, pad=PAD)
  found = jax.tree.map(np.asarray, jax.jit(search)(np.full((8, width), BOS, np.int32)))
  for row in range(8):
    for k, (score, tokens, total) in enumerate(reference_beam(tables[row], width, length, alpha)):
      np.testing.assert_array_equal(found['tokens'][row, k], tokens + (PAD,) * (length - len(tokens)))
      np.testing.assert_allclose([found['scores'][row, k], found['log_probs'][row, k]], [score, total], rtol=1e-5)


def test_a_finished_hypothesis_stays_and_the_search_stops_when_all_are():
  steps = []
  log_probs = jnp.log(jnp.array([[1e-9, 1e-9, 0.6, 0.4], [1e-9, 1e-9, 0.5, 0.5]]))  # first token, all later ones

  def step(tokens, index, cache):
    jax.debug.callback(lambda i: steps.append(int(i)), index)
    return jnp.broadcast_to(log_probs[jnp.minimum(index, 1)][None, None], (1, 2, 4)), cache

  search = lambda: beam_search(step, (), 1, heads.Search(9, 2, 0.0), bos=BOS, eos=EOS, pad=PAD)
  found = jax.tree.map(np.asarray, jax.jit(search)())
  jax.effects_barrier()
  np.testing.assert_array_equal(found['tokens'][0, :, :3], [[EOS, PAD, PAD], [3, EOS, PAD]])
  np.testing.assert_allclose(found['log_probs'][0], np.log([0.6, 0.2]), rtol=1e-5)
  assert steps == [0, 1]


@decoders('lstm')
def test_examples_are_independent_and_padding_of_the_source_has_no_influence(name):
  head, search, targets = heads.Decoder(DECODERS[name]), heads.Search(LENGTH, width=3), TOKENS['targets']
  logits, found = teacher(head, MEMORY, targets), look(head, search)
  alone, others = slice(1, 2), np.arange(3)[:, None, None] != 1
  garbage = {'x': np.where(MEMORY['mask'][..., None], MEMORY['x'], np.float32(np.nan)), 'mask': MEMORY['mask']}
  garbage['x'] = np.where(others, MEMORY['x'][::-1] + 1, garbage['x'])
  short = MEMORY['x'][alone, :2]  # without the padding
  for features, y, row in ((garbage, targets, alone), (short, targets[alone], slice(None))):
    np.testing.assert_allclose(teacher(head, features, y)[row], logits[alone], atol=2e-5)
    other = look(head, search, features)
    np.testing.assert_array_equal(other['tokens'][row], found['tokens'][alone])
    np.testing.assert_allclose(other['scores'][row], found['scores'][alone], rtol=1e-4)
  unmasked = {**MEMORY, 'mask': np.ones_like(MEMORY['mask'])}
  assert np.abs(teacher(head, unmasked, targets) - logits)[1].max() > 1e-3  # unmasked it has


def test_pooled_features_are_one_item_and_images_many():
  x = MEMORY['x']
  for features, expected in ((x[:, 0], x[:, :1]), (x.reshape(3, 2, 2, 5), x), ({'x': x}, x)):
    memory, mask = as_memory(features)
    np.testing.assert_array_equal(memory, expected)
    assert mask.shape == expected.shape[:2] and mask.all()
  head, search = heads.Decoder(DECODERS['gru']), {'decode': heads.Search(2)}
  own = variables(head)
  run = lambda z: (head.apply(own, z, TOKENS), head.apply(own, z, search)['tokens'])
  assert [y.shape for y in jax.eval_shape(run, x[:, 0])] == [(3, 4, 6), (3, 1, 2)]


@decoders('lstm')
def test_bfloat16_computes_and_what_comes_out_is_float32(name):
  full = heads.Decoder(DECODERS[name])
  half = heads.Decoder(DECODERS[name].clone(dtype=jnp.bfloat16))
  small = jax.tree.map(lambda leaf: leaf / 4, variables(full))
  outputs = teacher(half, MEMORY, TOKENS['targets'], small)
  assert outputs.dtype == jnp.float32
  np.testing.assert_allclose(outputs, teacher(full, MEMORY, TOKENS['targets'], small), atol=0.06)
  found = look(half, heads.Search(4, width=2), own=small)
  assert found['scores'].dtype == jnp.float32 and np.isfinite(found['scores']).all()
  params = {'params': small['params']['decoder']}
  start = lambda: half.decoder.apply(params, MEMORY['x'], MEMORY['mask'], 2, 4, method='start')[1]
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(start))} == {jnp.dtype('bfloat16')}


@decoders('sinusoidal')
def test_every_parameter_learns_and_dropout_acts_in_training_only(name):
  head = heads.Decoder(DECODERS[name].clone(dropout=0.5))
  params = variables(heads.Decoder(DECODERS[name]))['params']
  one, two = (jax.random.key(seed, impl='unsafe_rbg') for seed in (0, 1))  # threefry takes seconds to compile

  def loss(params, key, train):
    logits = head.apply({'params': params}, MEMORY, TOKENS, train=train, rngs={'dropout': key})
    return (jnp.sin(logits) * jnp.arange(6.0)[None, None]).sum()

  grads = jax.jit(jax.grad(lambda params: loss(params, one, False)))(params)
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
  assert dead == []
  noisy = jax.jit(lambda params, key: loss(params, key, True))
  assert noisy(params, one) != noisy(params, two)
  still, drawn = (str(jax.make_jaxpr(loss, static_argnums=2)(params, one, train)) for train in (False, True))
  assert 'random_bits' in drawn and 'random_bits' not in still


def test_the_recurrent_decoder_is_its_formula():
  decoder, (memory, mask) = DECODERS['gru'], as_memory(MEMORY)
  params = variables(heads.Decoder(decoder))['params']['decoder']
  dense = lambda name, x: x @ params[name]['kernel'] + params[name].get('bias', 0)

  @jax.jit
  def formula(memory, mask, targets):
    h = jnp.tanh(dense('first', memory.sum(axis=1) / mask.sum(axis=1, keepdims=True)))
    state, states = jnp.zeros_like(h), []
    for i in range(targets.shape[1]):
      x = jnp.concatenate([params['embed']['table']['embedding'][targets[:, i]], state], axis=-1)
      h, _ = nn.GRUCell(8).apply({'params': params['recurrence']}, h, x)
      scores = jnp.einsum('bc,bmc->bm', h, memory @ params['score']['kernel'])
      weights = jnp.exp(scores) * mask / (jnp.exp(scores) * mask).sum(axis=1, keepdims=True)
      state = jnp.tanh(dense('mix', jnp.concatenate([jnp.einsum('bm,bmc->bc', weights, memory), h], axis=-1)))
      states.append(state)
    return jnp.stack(states, axis=1)

  with jax.numpy_rank_promotion('allow'):
    expected = formula(memory, mask, TOKENS['targets'])
  found = jax.jit(decoder.apply)({'params': params}, TOKENS['targets'], memory, mask)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_search_compiles_once_for_all_batches():
  head = heads.Decoder(trunks.RecurrentDecoder(6, 4))
  own = random_variables(head, MEMORY, TOKENS)
  before = heads.decoder.search_tokens._cache_size()
  for scale in (1.0, 2.0):
    features = {**MEMORY, 'x': scale * MEMORY['x']}
    head.apply(own, features, {'decode': heads.Search(2, width=1)})
  assert heads.decoder.search_tokens._cache_size() == before + 1


def test_captions_and_classes_in_one_step_and_their_decoded_evaluation():
  # The caption of a one-hot vector i: word i, then the word of the next class; single-input, pooled features.
  kinds = np.arange(16) % 4
  words = np.stack([np.full(16, BOS), 3 + kinds, 3 + (kinds + 1) % 4, np.full(16, EOS), np.full(16, PAD)], axis=1)
  words[kinds == 3, 2:] = [EOS, PAD, PAD]  # one is shorter
  targets, labels, mask = heads.shifted(words)
  batch = {
    'inputs': {'x': np.eye(4, dtype=np.float32)[kinds], 'caption': targets},
    'labels': {'caption': labels, 'kind': kinds},
    'mask': {'caption': mask},
  }
  decoder = trunks.RecurrentDecoder(7, 8)
  model = mtl.sharing.hard(
    trunks.Source(trunks.MLP((16,))),
    {'caption': heads.Decoder(decoder, targets='caption'), 'kind': heads.classify(4)},
  )
  loss, accuracy = mtl.losses.softmax_cross_entropy, {'accuracy': mtl.metrics.accuracy()}
  tasks = (mtl.Task('caption', loss, metrics=accuracy, decode=heads.Search(4, width=2)), mtl.Task('kind', loss))
  sgd = optax.sgd(0.3, momentum=0.9)
  optimizer = mtl.task_optimizer(shared=sgd, tasks={'caption': sgd, 'kind': sgd})
  balancer = mtl.balancing.equal()
  drawn = random_parameters(model, dict.fromkeys(('caption', 'kind'), batch['inputs']))
  model = model._replace(init=lambda key, inputs: drawn)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  step = jax.jit(mtl.make_train_step(model, tasks, optimizer, balancer))
  first = step(state, batch)[1].losses
  for _ in range(80):
    state, info = step(state, batch)
  assert (np.array(info.losses) < 0.1 * np.array(first)).all()
  found = evaluate.evaluate(model, tasks, state.params, state.model_state, [batch])
  assert found['caption']['accuracy'] == 1.0
  assert not np.isin(targets, labels[mask]).all()  # BOS is read and never said


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: heads.Search(0), r'^Search: max_length is 0, expected a positive whole number'),
    (lambda: heads.Search(3, width=True), r'^Search: width is True, expected a positive'),
    (lambda: heads.Search(3, alpha=-1.0), r'^Search: alpha is -1.0, expected a number >= 0'),
    (lambda: heads.Search(3, alpha=float('nan')), r'^Search: alpha is nan, '),
  ],
)
def test_bad_searches_are_named(make, message):
  with pytest.raises(InputError, match=message):
    make()


@pytest.mark.parametrize(
  'head, features, inputs, message',
  [
    ({}, MEMORY, {'x': 1}, r"^Decoder: inputs are a dictionary with \['x'\], expected a dictionary {'x': source"),
    ({'targets': 'de'}, MEMORY, {'targets': 1}, r"with \['targets'\], expected .*'de': int\[B, L\]"),
    ({}, MEMORY, None, r'^Decoder: inputs are NoneType, expected'),
    ({}, MEMORY, {'targets': jnp.ones((3, 4))}, r"^Decoder: inputs\['targets'\] are float32\[3, 4\], expected int\[B"),
    ({}, MEMORY, {'decode': 5}, r"^inputs\['decode'\]: found 5, expected an mtljax.heads.Search"),
    ({}, jnp.ones((3, 4), int), TOKENS, r'^decoder: features are int32\[3, 4\], expected floats \[B, ..., C\]'),
    ({}, {**MEMORY, 'mask': MEMORY['mask'][:, :2]}, TOKENS, r'^decoder: mask is bool\[3, 2\], expected bool\[3, 4\]'),
    ({'eos': 6}, MEMORY, TOKENS, r'^Decoder: bos, eos, pad are \(1, 6, 0\), expected tokens of a vocabulary of 6'),
    ({'pad': 2}, MEMORY, TOKENS, r'^Decoder: bos, eos, pad are \(1, 2, 2\), .* pad unlike the others'),
  ],
)
def test_bad_arguments_are_named(head, features, inputs, message):
  with pytest.raises(InputError, match=message):
    heads.Decoder(DECODERS['gru'], **head).init(jax.random.key(0), features, inputs)


@pytest.mark.parametrize(
  'decoder, message',
  [
    (trunks.TransformerDecoder(0), r'^TransformerDecoder: vocabulary is 0, expected a positive whole number'),
    (trunks.TransformerDecoder(6, 8, heads=3), r'^TransformerDecoder: heads is 3, expected a divisor of features=8'),
    (
      trunks.TransformerDecoder(6, 8, positions='learned'),
      r"^TransformerDecoder: positions is 'learned', ",
    ),
    (trunks.RecurrentDecoder(6, 8, cell='rnn'), r"^RecurrentDecoder: cell is 'rnn', expected one of \('gru', 'lstm'\)"),
  ],
)
def test_bad_decoders_are_named(decoder, message):
  with pytest.raises(InputError, match=message):
    decoder.init(jax.random.key(0), TOKENS['targets'], *MEMORY.values())
