"""Metrics against scikit-learn, under masks, merging, jit and vmap; measures that compare methods by hand and scipy."""

import functools
import math

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as oracle

from mtljax import Task, losses, metrics
from mtljax.base import InputError

N, CLASSES = 60, 5
RANDOM = np.random.default_rng(0)
MASK = RANDOM.random(N) < 0.7
LOGITS = RANDOM.normal(size=(N, CLASSES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES - 1, size=N)  # the last class is predicted only
SCORES = RANDOM.normal(size=N).astype(np.float32) * 3
BINARY = (SCORES + RANDOM.normal(size=N) * 4 > 0).astype(np.int32)
REAL = (SCORES + RANDOM.normal(size=N)).astype(np.float32)


def mean_iou_oracle(labels, logits):
  return oracle.jaccard_score(labels, logits.argmax(-1), average='macro')


CASES = {
  'accuracy': (metrics.accuracy(), LOGITS, LABELS, lambda y, z: oracle.accuracy_score(y, z.argmax(-1))),
  'binary_accuracy': (metrics.binary_accuracy(), SCORES, BINARY, lambda y, z: oracle.accuracy_score(y, z > 0)),
  'mse': (metrics.mse(), SCORES, REAL, oracle.mean_squared_error),
  'rmse': (metrics.rmse(), SCORES, REAL, oracle.root_mean_squared_error),
  'mae': (metrics.mae(), SCORES, REAL, oracle.mean_absolute_error),
  'r2': (metrics.r2(), SCORES, REAL, oracle.r2_score),
  'precision': (metrics.precision(), SCORES, BINARY, lambda y, z: oracle.precision_score(y, z > 0)),
  'recall': (metrics.recall(0.5), SCORES, BINARY, lambda y, z: oracle.recall_score(y, z > 0.5)),
  'f1': (metrics.f1(), SCORES, BINARY, lambda y, z: oracle.f1_score(y, z > 0)),
  'auc': (metrics.auc(), SCORES, BINARY, oracle.roc_auc_score),
  'mean_iou': (metrics.mean_iou(CLASSES), LOGITS, LABELS, mean_iou_oracle),
}
TOLERANCE = {'auc': 4e-3}  # pairs of scores between two thresholds count as ties
LOWER = {'mse', 'rmse', 'mae'}


@pytest.fixture(params=CASES)
def name(request):
  return request.param


@functools.cache
def jitted(name):
  metric = CASES[name][0]
  return jax.jit(metric.update), jax.jit(metric.compute)


def batches(name, size):
  """Three batches of one shape; the rows that nobody may count hold NaN, or labels from elsewhere."""
  _, outputs, labels, _ = CASES[name]
  outputs = np.where(MASK.reshape(-1, *[1] * (outputs.ndim - 1)), outputs, np.nan)
  for start in range(0, N, size):
    yield outputs[start : start + size], labels[start : start + size], MASK[start : start + size]


def test_masked_and_merged_against_sklearn(name):
  metric, outputs, labels, expected = CASES[name]
  update, compute = jitted(name)
  parts = [update(*batch) for batch in batches(name, N // 3)]
  expected = expected(labels[MASK], outputs[MASK])
  for sums in (functools.reduce(metric.merge, parts), functools.reduce(metric.merge, parts[::-1])):
    np.testing.assert_allclose(compute(sums), expected, rtol=TOLERANCE.get(name, 1e-5))
  assert metric.higher_is_better == (name not in LOWER)


def test_padding_counts_nothing(name):
  """What the masked rows hold is the same to the bit as other values there, labels too."""
  _, outputs, labels, _ = CASES[name]
  update, _ = jitted(name)
  other = np.where(MASK, labels, 1 - np.clip(labels, 0, 1)).astype(labels.dtype)
  for a, b in zip(jax.tree.leaves(update(outputs, labels, MASK)), jax.tree.leaves(update(outputs, other, MASK))):
    np.testing.assert_array_equal(a, b)


def test_lanes(name):
  """A stack of models (vmap) gives what each gives alone."""
  metric, outputs, labels, _ = CASES[name]
  stack = np.stack([outputs, outputs[::-1], 2 * outputs])
  update = jax.jit(jax.vmap(metric.update, in_axes=(0, None, None)))
  sums = update(stack, labels, MASK)
  found = jax.vmap(metric.compute)(metric.merge(sums, sums))
  one, compute = jitted(name)
  expected = [compute(one(outputs, labels, MASK)) for outputs in stack]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_any_label(name):
  _, outputs, labels, _ = CASES[name]
  update, compute = jitted(name)
  value = compute(update(outputs, labels, np.zeros(N, bool)))
  assert value == 0 if name in ('precision', 'recall', 'f1') else np.isnan(value)


def test_shapes_that_differ(name):
  metric, outputs, labels, _ = CASES[name]
  with pytest.raises(InputError, match='labels'):
    metric.update(outputs, labels[:-1], MASK)
  with pytest.raises(InputError, match='mask'):
    metric.update(outputs, labels, MASK[:-1])


def test_mask_per_item():
  outputs, labels, mask = LOGITS.reshape(20, 3, CLASSES), LABELS.reshape(20, 3), MASK.reshape(20, 3)
  update, compute = jitted('accuracy')
  found = compute(update(outputs, labels, mask))
  np.testing.assert_allclose(found, oracle.accuracy_score(LABELS[MASK], LOGITS[MASK].argmax(-1)), rtol=1e-6)
  rows = MASK[:20]
  found = compute(update(outputs, labels, rows))
  expected = oracle.accuracy_score(labels[rows].ravel(), outputs[rows].argmax(-1).ravel())
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_accuracy_of_distributions_and_of_predictions():
  metric = metrics.accuracy()
  expected = metric.compute(metric.update(LOGITS, LABELS, MASK))
  one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
  assert metric.compute(metric.update(LOGITS, one_hot, MASK)) == expected
  assert metric.compute(metric.update(LOGITS.argmax(-1), LABELS, MASK)) == expected
  with pytest.raises(InputError, match='accuracy: labels are float32'):
    metric.update(LOGITS, LABELS.astype(np.float32), MASK)


def test_multilabel_counts_every_answer():
  outputs, labels = SCORES.reshape(20, 3), BINARY.reshape(20, 3)
  for name in ('binary_accuracy', 'precision', 'recall', 'f1', 'auc'):
    update, compute = jitted(name)
    found = compute(update(outputs, labels, np.ones(20, bool)))
    np.testing.assert_allclose(found, CASES[name][3](BINARY, SCORES), rtol=TOLERANCE.get(name, 1e-5))


def test_auc_of_scores_far_from_zero():
  """Rare positives have probabilities near 0, where evenly spaced thresholds see nothing."""
  scores, (update, compute) = SCORES - 9, jitted('auc')
  found = compute(update(scores, BINARY, MASK))
  np.testing.assert_allclose(found, oracle.roc_auc_score(BINARY[MASK], scores[MASK]), atol=3e-3)


def test_r2_of_labels_with_a_large_mean():
  labels, metric = REAL + 1000, metrics.r2()
  parts = [metric.update(SCORES[i::2] + 1000, labels[i::2], MASK[i::2]) for i in range(2)]
  expected = oracle.r2_score(labels[MASK].astype(float), (SCORES + 1000)[MASK].astype(float))
  np.testing.assert_allclose(metric.compute(metric.merge(*parts)), expected, rtol=1e-4)


def test_mean_iou_leaves_out_void():
  labels, (update, compute) = np.where(MASK, LABELS, 255), jitted('mean_iou')
  found = compute(update(LOGITS, labels, np.ones(N, bool)))
  np.testing.assert_allclose(found, mean_iou_oracle(LABELS[MASK], LOGITS[MASK]), rtol=1e-6)
  with pytest.raises(InputError, match=r'mean_iou: outputs have shape \(60, 5\)'):
    metrics.mean_iou(4).update(LOGITS, labels, MASK)


BETTER = {'a': {'accuracy': True}, 'b': {'mse': False, 'r2': True}}
BASE = {'a': {'loss': 9.0, 'accuracy': 0.8}, 'b': {'loss': 9.0, 'r2': 0.1, 'mse': 2.0}}


def test_directions():
  measures = {'mse': metrics.mse(), 'r2': metrics.r2()}
  tasks = (
    Task('a', losses.softmax_cross_entropy, metrics={'accuracy': metrics.accuracy()}),
    Task('b', losses.l1, metrics=measures),
  )
  assert metrics.directions(tasks) == {'a': {'accuracy': True}, 'b': {'mse': False}}
  with pytest.raises(InputError, match="Task 'c': metrics are empty"):
    metrics.directions((Task('c', losses.l1),))


def test_delta_m():
  values = {'a': {'accuracy': 0.9}, 'b': {'mse': 2.5}}
  assert metrics.delta_m(values, BASE, BETTER) == pytest.approx((12.5 - 25) / 2)
  assert metrics.delta_m(BASE, BASE, BETTER) == 0
  seeds = {'a': {'accuracy': np.array([0.9, 0.8])}, 'b': {'mse': np.array([2.5, 1.0])}}
  np.testing.assert_allclose(metrics.delta_m(seeds, BASE, BETTER), [-6.25, 25.0])
  zero = {'a': {'accuracy': 0.0}, 'b': {'mse': 2.0}}
  assert math.isnan(metrics.delta_m(values, zero, BETTER))
  with pytest.raises(InputError, match=r"baseline: .*missing \['b'\]"):
    metrics.delta_m(values, {'a': {'accuracy': 0.8}}, BETTER)
  with pytest.raises(InputError, match=r"values\['b'\]: .*missing \['mse'\]"):
    metrics.delta_m({'a': {'accuracy': 0.9}, 'b': {'r2': 0.9}}, BASE, BETTER)


def test_delta_m_of_a_negative_baseline():
  better = {'a': {'r2': True}}
  assert metrics.delta_m({'a': {'r2': -0.5}}, {'a': {'r2': -1.0}}, better) == pytest.approx(50)


def test_mean_rank():
  values = {
    'x': {'a': {'accuracy': 0.9}, 'b': {'mse': 3.0}},
    'y': {'a': {'accuracy': 0.8}, 'b': {'mse': 1.0}},
    'z': {'a': {'accuracy': math.nan}, 'b': {'mse': 1.0}},
  }
  assert metrics.mean_rank(values, BETTER) == {'x': 2.0, 'y': 1.75, 'z': 2.25}


@pytest.mark.parametrize('level', [0.5, 0.95, 0.999])
@pytest.mark.parametrize('size', [2, 3, 4, 5, 10, 31])
def test_confidence_interval(size, level):
  values = np.random.default_rng(size).normal(size=size)
  mean, half = metrics.confidence_interval(values, level)
  low, high = scipy.stats.t.interval(level, size - 1, loc=values.mean(), scale=scipy.stats.sem(values))
  np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-9)


def test_confidence_interval_of_one_value():
  mean, half = metrics.confidence_interval([0.5])
  assert mean == 0.5 and math.isnan(half)


@pytest.mark.parametrize(('values', 'level'), [([], 0.95), ([[1.0, 2.0]], 0.95), ([1.0, 2.0], 95)])
def test_confidence_interval_refuses(values, level):
  with pytest.raises(InputError, match='confidence_interval'):
    metrics.confidence_interval(values, level)


def test_float64(x64):
  metric = metrics.mse()
  found = metric.compute(jax.jit(metric.update)(np.array([1 + 1e-9]), np.array([1.0]), np.array([True])))
  np.testing.assert_allclose(found, 1e-18, rtol=1e-6)
