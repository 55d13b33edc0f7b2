import functools

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

from mtljax import metrics
from mtljax.base import InputError

TAGS = ('O', 'B-a', 'I-a', 'B-b', 'I-b', 'I-c')  # c never begins: I-c does
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(6, size=(40, 12), p=[0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
FOUND = np.where(RANDOM.random((40, 12)) < 0.8, LABELS, RANDOM.choice(6, size=(40, 12)))
MASK = np.arange(12) < RANDOM.integers(0, 13, size=40)[:, None]


def spans(tags):
  """(type, begin, end) of a sentence, tag by tag, as the script of CoNLL-2003 goes through them."""
  found, start, kind = [], None, None
  for place, tag in enumerate([*tags, 'O']):
    prefix, _, of = tag.partition('-')
    if kind is not None and (prefix != 'I' or of != kind):
      found.append((kind, start, place))
      kind = None
    if prefix != 'O' and kind is None:
      start, kind = place, of
  return set(found)


def oracle(found, labels, mask):
  hits = said = true = 0
  for x, y, m in zip(found, labels, mask):
    a, b = (spans([TAGS[i] for i in row[m]]) for row in (x, y))
    hits, said, true = hits + len(a & b), said + len(a), true + len(b)
  return 2 * hits / (said + true)


def value(metric, found, labels, mask):
  return metric.compute(jax.jit(metric.update)(found, labels, mask))


def test_spans_by_hand():
  labels = np.array([[1, 2, 0, 3, 4, 3], [0, 4, 4, 1, 1, 0]])  # a: 0-1; b: 3-4, 5 | b: 1-2 (begun by I); a: 3, 4
  found = np.array([[1, 2, 2, 3, 4, 3], [0, 3, 4, 1, 2, 0]])  # too long, right, right | right, too long
  update = value(metrics.span_f1(TAGS), found, labels, np.ones(2, bool))
  np.testing.assert_allclose(update, 2 * 3 / (5 + 6), rtol=1e-6)


def test_spans_against_a_walk_over_the_tags():
  metric = metrics.span_f1(TAGS)
  expected = oracle(FOUND, LABELS, MASK)
  assert 0.2 < expected < 0.9
  np.testing.assert_allclose(value(metric, FOUND, LABELS, MASK), expected, rtol=1e-6)
  parts = [metric.update(FOUND[i::3], LABELS[i::3], MASK[i::3]) for i in range(3)]
  np.testing.assert_allclose(metric.compute(functools.reduce(metric.merge, parts)), expected, rtol=1e-6)
  logits = np.where(MASK[..., None], np.eye(6, dtype=np.float32)[FOUND], np.nan)
  np.testing.assert_allclose(value(metric, logits, LABELS, MASK), expected, rtol=1e-6)
  rows = MASK[:, 0]
  found = value(metric, FOUND, LABELS, rows)
  np.testing.assert_allclose(found, oracle(FOUND, LABELS, np.broadcast_to(rows[:, None], MASK.shape)), rtol=1e-6)


def test_tokens_against_sklearn():
  for ignore, counted in ((0, [1, 2, 3, 4, 5]), ((0, 5), [1, 2, 3, 4])):
    metric = metrics.token_f1(ignore)
    expected = f1_score(LABELS[MASK], FOUND[MASK], labels=counted, average='micro')
    np.testing.assert_allclose(value(metric, FOUND, LABELS, MASK), expected, rtol=1e-6)
    parts = [metric.update(FOUND[i::2], LABELS[i::2], MASK[i::2]) for i in range(2)]
    np.testing.assert_allclose(metric.compute(metric.merge(*parts)), expected, rtol=1e-6)


@pytest.mark.parametrize('make', [lambda: metrics.span_f1(TAGS), metrics.token_f1])
def test_lanes_and_nothing(make):
  metric = make()
  stack = np.stack([FOUND, LABELS])
  found = jax.vmap(metric.compute)(jax.vmap(metric.update, (0, None, None))(stack, LABELS, MASK))
  np.testing.assert_allclose(found, [value(metric, FOUND, LABELS, MASK), 1.0], rtol=1e-6)
  assert value(metric, FOUND, LABELS, np.zeros_like(MASK)) == 0


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: metrics.span_f1(('O', 'person')), r"span_f1: tags are \['person'\], expected 'O', 'B-type'"),
    (lambda: metrics.span_f1('OB'), 'span_f1: tags are'),
    (lambda: metrics.span_f1(TAGS).update(np.zeros((2, 3, 5)), LABELS[:2, :3], None), r'expected \[B, N, 6\]'),
    (lambda: metrics.span_f1(TAGS).update(FOUND[0], LABELS[0], None), r'labels have shape \(12,\), expected \[B, N\]'),
    (lambda: metrics.token_f1('O'), "token_f1: ignore is 'O'"),
  ],
)
def test_refuses(call, message):
  with pytest.raises(InputError, match=message):
    call()
