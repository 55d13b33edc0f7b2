"""Errors of depth, angles of normals and boundaries: by hand, against NumPy and scikit-image, merged and masked."""

import functools

import jax
import numpy as np
import pytest
from skimage import morphology

from mtljax import metrics
from mtljax.base import InputError

RANDOM = np.random.default_rng(0)
B, H, W = 4, 7, 9
MASK = RANDOM.random((B, H, W)) < 0.8
DEPTH = np.where(RANDOM.random((B, H, W)) < 0.1, 0, RANDOM.random((B, H, W)) * 9 + 0.5).astype(np.float32)
GUESS = (DEPTH + RANDOM.normal(size=DEPTH.shape)).astype(np.float32)
NORMALS = RANDOM.normal(size=(B, H, W, 3)).astype(np.float32)
NORMALS[0, 0] = 0  # no label
TURNED = ((NORMALS + 0.5 * RANDOM.normal(size=NORMALS.shape)) * 3).astype(np.float32)
EDGES = (RANDOM.random((B, H, W)) < 0.15).astype(np.int32)
LOGITS = (RANDOM.normal(size=EDGES.shape) - 1 + EDGES).astype(np.float32)


def angles(outputs, labels, mask):
  mask = mask & (labels != 0).any(-1)
  u, v = outputs[mask].astype(np.float64), labels[mask].astype(np.float64)
  return np.degrees(np.arccos((u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)))


def relative(outputs, labels, mask):
  mask = mask & (labels != 0)
  return (np.abs(outputs - labels)[mask] / labels[mask]).mean()


def boundary(outputs, labels, mask, tolerance):
  found, true = mask & (outputs > 0), mask & (labels == 1)
  near = lambda edges: np.stack([morphology.dilation(e, np.ones((2 * tolerance + 1,) * 2)) for e in edges]) > 0
  precision, recall = (found & near(true)).sum() / found.sum(), (true & near(found)).sum() / true.sum()
  return 2 * precision * recall / (precision + recall)


CASES = {
  'relative_error': (metrics.relative_error(), GUESS, DEPTH, relative),
  'mean_angle': (metrics.mean_angle(), TURNED, NORMALS, lambda *a: angles(*a).mean()),
  'median_angle': (metrics.median_angle(), TURNED, NORMALS, lambda *a: np.median(angles(*a))),
  'within_11': (metrics.within_angle(11.25), TURNED, NORMALS, lambda *a: (angles(*a) < 11.25).mean()),
  'within_30': (metrics.within_angle(30), TURNED, NORMALS, lambda *a: (angles(*a) < 30).mean()),
  'boundary_0': (metrics.boundary_f1(0), LOGITS, EDGES, functools.partial(boundary, tolerance=0)),
  'boundary_1': (metrics.boundary_f1(1), LOGITS, EDGES, functools.partial(boundary, tolerance=1)),
  'boundary_2': (metrics.boundary_f1(2), LOGITS, EDGES, functools.partial(boundary, tolerance=2)),
}
TOLERANCE = {'median_angle': 0.05}
LOWER = {'relative_error', 'mean_angle', 'median_angle'}


def blanked(outputs, fill):
  mask = MASK if outputs.ndim == 3 else MASK[..., None]
  return np.where(mask, outputs, fill)


@pytest.mark.parametrize('name', CASES)
def test_masked_and_merged_against_numpy(name):
  """What is masked holds NaN; two batches merged are one."""
  metric, outputs, labels, oracle = CASES[name]
  update = jax.jit(metric.update)
  given = blanked(outputs, np.nan).astype(np.float32)
  parts = [update(given[i : i + 2], labels[i : i + 2], MASK[i : i + 2]) for i in (0, 2)]
  found, expected = jax.jit(metric.compute)(metric.merge(*parts)), oracle(outputs, labels, MASK)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=TOLERANCE.get(name, 0))
  assert metric.higher_is_better == (name not in LOWER)
  whole = metric.compute(update(outputs, labels, np.ones(B, bool)))
  np.testing.assert_allclose(whole, oracle(outputs, labels, np.ones_like(MASK)), rtol=1e-5, atol=TOLERANCE.get(name, 0))


@pytest.mark.parametrize('name', CASES)
def test_lanes_and_nothing(name):
  metric, outputs, labels, _ = CASES[name]
  stack = np.stack([outputs, outputs[::-1]])
  run = jax.jit(lambda outputs, mask: metric.compute(metric.update(outputs, labels, mask)))
  lanes = jax.jit(jax.vmap(run, (0, None)))(stack, MASK)
  np.testing.assert_allclose(lanes, [run(one, MASK) for one in stack], rtol=1e-5)
  nothing = run(outputs, np.zeros(B, bool))
  assert nothing == 0 if 'boundary' in name else np.isnan(nothing)


def test_angles_by_hand():
  """0, 45, 90, 180 degrees, an output of length 0 (90), a label of length 0 (does not count), lengths from 1e-30 on."""
  labels = np.array([[1, 0, 0]] * 5 + [[0, 0, 0]], np.float32)
  outputs = np.array([[1e-30, 0, 0], [5, 5, 0], [0, 0, 1e30], [-2, 0, 0], [0, 0, 0], [1, 0, 0]], np.float32)
  run = lambda metric: float(metric.compute(metric.update(outputs, labels, np.ones(6, bool))))
  assert run(metrics.mean_angle()) == pytest.approx((0 + 45 + 90 + 180 + 90) / 5, rel=1e-5)
  assert run(metrics.within_angle(60)) == pytest.approx(2 / 5)
  assert run(metrics.median_angle()) == pytest.approx(90, abs=0.06)
  assert run(metrics.median_angle(18)) == pytest.approx(90, abs=10)


def test_small_angles_are_exact():
  labels = np.array([[1.0, 0, 0]], np.float32)
  outputs = np.array([[1.0, 1e-4, 0]], np.float32)
  metric = metrics.mean_angle()
  np.testing.assert_allclose(metric.compute(metric.update(outputs, labels, None)), np.degrees(1e-4), rtol=1e-4)


def test_boundaries_by_hand():
  """Two of three predicted pixels are near a true one; one of two true ones is near a predicted one."""
  labels = np.zeros((1, 5, 9), np.int32)
  labels[0, 0, 0] = labels[0, 4, 8] = 1
  outputs = np.full((1, 5, 9), -1, np.float32)
  outputs[0, 1, 1] = outputs[0, 0, 1] = outputs[0, 2, 5] = 1
  run = lambda tolerance: metrics.boundary_f1(tolerance).compute(
    metrics.boundary_f1(tolerance).update(outputs, labels, np.ones(1, bool))
  )
  precision, recall = 2 / 3, 1 / 2
  np.testing.assert_allclose(run(1), 2 * precision * recall / (precision + recall), rtol=1e-6)
  assert run(0) == 0
  np.testing.assert_allclose(run(3), 1, rtol=1e-6)


def test_median_of_many_batches():
  metric = metrics.median_angle()
  turns = RANDOM.random((3, 500)) * 60
  outputs = np.stack([np.cos(np.radians(turns)), np.sin(np.radians(turns))], -1)
  labels = np.broadcast_to(np.array([1.0, 0]), outputs.shape)
  sums = functools.reduce(metric.merge, [metric.update(u, v, None) for u, v in zip(outputs, labels)])
  np.testing.assert_allclose(metric.compute(sums), np.median(turns), atol=0.1)


BAD = {
  'shape': (lambda: metrics.mean_angle().update(NORMALS, NORMALS[:2], MASK), 'mean_angle: labels have shape'),
  'scalar': (
    lambda: metrics.mean_angle().update(DEPTH[:, 0, 0], DEPTH[:, 0, 0], None),
    r'expected vectors \[B, ..., D\]',
  ),
  'mask': (
    lambda: metrics.mean_angle().update(NORMALS, NORMALS, MASK[:, :2]),
    r'mean_angle: mask has shape \(4, 2, 9\)',
  ),
  'images': (
    lambda: metrics.boundary_f1().update(LOGITS[0], EDGES[0], None),
    r'labels have shape \(7, 9\), expected \[B, H',
  ),
  'tolerance': (lambda: metrics.boundary_f1(-1), 'boundary_f1 tolerance: found -1'),
  'degrees': (lambda: metrics.within_angle(0), r'within_angle degrees: found 0, expected a number in \(0, 180\]'),
  'bins': (lambda: metrics.median_angle(0), 'median_angle bins: found 0'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  call, message = BAD[name]
  with pytest.raises(InputError, match=message):
    call()
