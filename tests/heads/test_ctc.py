"""CTC: the loss against all paths, greedy decoding by hand, a training step with masks among the outputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

import mtljax as mtl
from mtljax import balancing, evaluate, gradients, heads, losses, sharing, trunks
from mtljax.base import InputError

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(size=(6, 4, 3)).astype(np.float32)
MASK = np.ones((6, 4), bool)
MASK[4, 3] = MASK[5, 1] = False  # an end, and a gap
LABELS = np.array([[1, 2], [1, 1], [2, 0], [-1, 0], [2, 1], [0, 1]])
SYMBOLS = [(1, 2), (1, 1), (2,), (), (2, 1), (1,)]


def collapsed(path):
  return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def by_enumeration(logits):
  """-log of the summed probability of all paths that collapse to the symbols."""
  found = []
  for row, symbols in enumerate(SYMBOLS):
    frames = np.flatnonzero(MASK[row])
    paths = [path for path in itertools.product(range(3), repeat=len(frames)) if collapsed(path) == symbols]
    scores = jax.nn.log_softmax(logits[row, frames])
    scores = jnp.stack([scores[np.arange(len(frames)), np.array(path)].sum() for path in paths])
    found.append(-jax.nn.logsumexp(scores))
  return jnp.stack(found)


def test_loss_and_gradient_are_those_of_all_paths():
  weights = jnp.arange(1.0, 7.0)
  both = lambda loss: jax.value_and_grad(lambda x: (loss(x) @ weights, loss(x)), has_aux=True)

  @jax.jit
  def run(logits):
    ours = lambda x: losses.ctc({'logits': x, 'mask': MASK}, LABELS)
    return both(ours)(logits), both(by_enumeration)(logits)

  ((_, found), gradient), ((_, expected), expected_gradient) = run(LOGITS)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4)
  assert not gradient[~MASK].any()


def test_loss_of_plain_logits_dtypes_and_labels_that_do_not_fit():
  labels = np.array([[1, 2, 0], [1, 3, 0], [1, -2, 0], [2, 2, 2]])
  half = LOGITS[:4].astype(jnp.bfloat16)
  both = jax.jit(lambda x: (losses.ctc(x, labels), losses.ctc({'logits': x, 'mask': MASK[:4]}, labels)))
  found, masked = both(half)
  assert found.dtype == jnp.float32 and np.isfinite(found[0])
  assert np.isnan(found[1:3]).all()  # unknown symbols are loud
  assert 5e4 < found[3] < np.inf  # three equal symbols want five frames
  np.testing.assert_array_equal(found, masked)
  with jax.enable_x64(True):
    assert jax.eval_shape(losses.ctc, LOGITS.astype(np.float64), LABELS).dtype == np.float64
    assert jax.eval_shape(losses.ctc, LOGITS, LABELS).dtype == np.float32


def test_greedy_decoding_by_hand():
  frames = np.array([[0, 1, 1, 0, 1, 2], [2, 2, 0, 0, 2, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 2, 2, 1]])
  mask = np.ones((4, 6), bool)
  mask[1, 4:] = mask[3, 1] = False  # a frame that does not count parts no repeat
  found = jax.jit(heads.ctc_greedy)({'logits': 5 * jax.nn.one_hot(frames, 3), 'mask': mask})
  expected = [[1, 1, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0], [0] * 6, [1, 2, 1, 0, 0, 0]]
  np.testing.assert_array_equal(found['symbols'], expected)
  np.testing.assert_array_equal(found['lengths'], [3, 1, 0, 3])
  assert found['symbols'].dtype == found['lengths'].dtype == jnp.int32


def test_head_gives_float32_logits_and_a_mask():
  head = heads.ctc(4)
  x = DRAW.normal(size=(2, 5, 3)).astype(np.float32)
  variables = random_variables(head, x)
  y = head.apply(variables, x.astype(jnp.bfloat16))
  assert y['logits'].shape == (2, 5, 5) and y['logits'].dtype == jnp.float32 and y['mask'].all()
  mask = np.arange(5)[None] < np.array([[2], [5]])
  masked = head.apply(variables, {'x': np.where(mask[..., None], x, np.nan), 'mask': mask})
  np.testing.assert_array_equal(masked['mask'], mask)
  np.testing.assert_allclose(masked['logits'][mask], head.apply(variables, x)['logits'][mask], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def problem():
  """A recurrent trunk with a head for symbols and one for tags, on padded sequences."""
  trunk = trunks.Recurrent((4,))
  model = sharing.hard(trunk, {'symbols': heads.ctc(2), 'tags': heads.tagging(3)})
  right = mtl.Metric(
    update=lambda predictions, labels, mask: (
      (mask & (predictions['lengths'] == (labels > 0).sum(axis=1))).sum(),
      mask.sum(),
    ),
    merge=lambda a, b: jax.tree.map(jnp.add, a, b),
    compute=lambda sums: sums[0] / sums[1],
  )
  tasks = (
    mtl.Task('symbols', losses.ctc, metrics={'lengths': right}, decode=heads.ctc_decode),
    mtl.Task('tags', losses.softmax_cross_entropy),
  )
  draw = np.random.default_rng(1)
  mask = np.arange(5)[None] < np.array([5, 3, 4])[:, None]
  batch = {
    'inputs': {'x': jnp.asarray(draw.normal(size=(3, 5, 2)), jnp.float32), 'mask': jnp.asarray(mask)},
    'labels': {
      'symbols': jnp.array([[1, 2], [2, 0], [1, 1]], jnp.int32),
      'tags': jnp.asarray(draw.integers(0, 3, size=(3, 5)), jnp.int32),
    },
    'mask': {'symbols': jnp.array([True, True, False]), 'tags': jnp.asarray(mask)},
  }
  shapes = jax.eval_shape(lambda: model.init(KEY, dict.fromkeys(('symbols', 'tags'), batch['inputs'])))
  params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 0.5, leaf.dtype), shapes[0])
  return model, tasks, batch, params, {'shared': {}, 'tasks': {'symbols': {}, 'tags': {}}}


@pytest.mark.parametrize('at', ['params', 'features'])
def test_the_engine_takes_masks_among_features_and_outputs(problem, at):
  model, tasks, batch, params, state = problem
  balancer = balancing.mgda()

  def engine(params):
    start = balancer.init(jnp.zeros((2, 2)))
    return gradients.task_gradients(model, tasks, balancer, params, state, start, batch, key=KEY, at=at)

  def direct(params):
    x, mask = batch['inputs'], batch['mask']
    z = trunks.Recurrent((4,)).apply({'params': params['shared']}, x)
    apply = lambda head, name: head.apply({'params': params['tasks'][name]}, z)
    symbols = losses.ctc(apply(heads.ctc(2), 'symbols'), batch['labels']['symbols'])[:2].mean()
    tags = losses.softmax_cross_entropy(apply(heads.tagging(3), 'tags'), batch['labels']['tags'])
    return jnp.stack([symbols, jnp.where(mask['tags'], tags, 0).sum() / mask['tags'].sum()])

  found = jax.jit(engine)(params)
  values, jacobian = jax.jit(lambda p: (direct(p), jax.jacrev(direct)(p)))(params)
  np.testing.assert_allclose(found.losses, values, rtol=1e-5)
  for row, name in enumerate(('symbols', 'tags')):
    own = jax.tree.map(lambda leaf, row=row: leaf[row], jacobian['tasks'][name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.grads['tasks'][name], own)
  expected = jax.tree.map(lambda leaf: jnp.tensordot(found.weights, leaf, 1), jacobian['shared'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found.grads['shared'], expected)


def test_greedy_decoding_is_a_tasks_decode(problem):
  model, tasks, batch, params, state = problem
  found = evaluate.evaluate(model, tasks, params, state, [batch])
  outputs = model.head(
    params['tasks']['symbols'],
    {},
    model.trunk(params['shared'], {}, batch['inputs'], tasks=('symbols',), train=False, key=None)[0],
    task='symbols',
    train=False,
    key=None,
  )[0]
  lengths = heads.ctc_greedy(outputs)['lengths']
  right = np.asarray(lengths[:2] == np.array([2, 1]))  # the third has no label
  assert found['symbols']['lengths'] == pytest.approx(right.mean())
  assert np.isfinite(found['tags']['loss'])


@pytest.mark.parametrize(
  'outputs, labels, message',
  [
    (LOGITS[0], LABELS, r'^ctc: outputs have shape \(4, 3\), expected logits \[B, frames, symbols \+ 1\]'),
    (LOGITS, LABELS[0], r'^ctc: labels are int64\[2\], expected integers \[6, symbols\]'),
    (LOGITS, LABELS.astype(np.float32), r'^ctc: labels are float32\[6, 2\], expected integers'),
    (LOGITS, LABELS[:3], r'^ctc: labels are int64\[3, 2\]'),
    ({'logits': LOGITS, 'mask': MASK[:, :3]}, LABELS, r'^ctc: mask is bool\[6, 3\], expected bool\[6, 4\]'),
    ({'logits': LOGITS, 'mask': MASK * 1.0}, LABELS, r'^ctc: mask is float'),
    (LABELS, LABELS, r'^ctc: outputs are int'),
  ],
)
def test_bad_input_is_named(outputs, labels, message):
  with pytest.raises(InputError, match=message.replace('int64', 'int(32|64)')):
    losses.ctc(outputs, labels)


def test_bad_arguments_are_named():
  with pytest.raises(InputError, match=r'^heads.ctc: num_symbols is 0, expected a whole number of at least 1'):
    heads.ctc(0)
  with pytest.raises(InputError, match=r'^CTC: inputs are float32\[6, 4\], expected'):
    heads.ctc(2).init(KEY, LOGITS[..., 0])
