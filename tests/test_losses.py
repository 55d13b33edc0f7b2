"""Losses against closed forms, their dtypes, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mtljax import losses
from mtljax.base import InputError

RANDOM = np.random.default_rng(0)
OUTPUTS = RANDOM.normal(size=(4, 3, 5)).astype(np.float32) * 3
CLASSES = RANDOM.integers(0, 5, size=(4, 3))
BINARY = RANDOM.integers(0, 2, size=OUTPUTS.shape)
REAL = RANDOM.normal(size=OUTPUTS.shape).astype(np.float32)
ALIKE = {
  'sigmoid_cross_entropy': (losses.sigmoid_cross_entropy, BINARY),
  'sigmoid_focal': (losses.sigmoid_focal, BINARY),
  'hinge': (losses.hinge, BINARY),
  'squared_error': (losses.squared_error, REAL),
  'l1': (losses.l1, REAL),
  'huber': (losses.huber, REAL),
  'cosine_distance': (losses.cosine_distance, REAL),
}
ALL = ALIKE | {'softmax_cross_entropy': (losses.softmax_cross_entropy, CLASSES)}


def test_softmax_cross_entropy():
  expected = -np.take_along_axis(scipy.special.log_softmax(OUTPUTS, -1), CLASSES[..., None], -1)[..., 0]
  np.testing.assert_allclose(losses.softmax_cross_entropy(OUTPUTS, CLASSES), expected, rtol=1e-5)
  one_hot = np.eye(5, dtype=np.float32)[CLASSES]
  np.testing.assert_allclose(losses.softmax_cross_entropy(OUTPUTS, one_hot), expected, rtol=1e-5)
  spread = scipy.special.softmax(REAL, -1)
  expected = -(spread * scipy.special.log_softmax(OUTPUTS, -1)).sum(-1)
  np.testing.assert_allclose(losses.softmax_cross_entropy(OUTPUTS, spread), expected, rtol=1e-5)


def test_label_smoothing():
  smooth = 0.9 * np.eye(5, dtype=np.float32)[CLASSES] + 0.1 / 5
  expected = losses.softmax_cross_entropy(OUTPUTS, smooth)
  for labels in (CLASSES, np.eye(5, dtype=np.float32)[CLASSES]):
    found = losses.softmax_cross_entropy(OUTPUTS, labels, label_smoothing=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('label', [-1, 5, 255])
def test_unknown_class_is_loud(label, label_smoothing):
  found = losses.softmax_cross_entropy(np.zeros((2, 5)), np.array([0, label]), label_smoothing=label_smoothing)
  assert np.isfinite(found[0]) and np.isnan(found[1])


def test_binary_losses():
  p = scipy.special.expit(OUTPUTS.astype(float))
  entropy = -np.where(BINARY, np.log(p), np.log1p(-p))
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(OUTPUTS, BINARY), entropy, rtol=1e-5)
  true = np.where(BINARY, p, 1 - p)
  focal = np.where(BINARY, 0.3, 0.7) * (1 - true) ** 2 * entropy
  loss = jax.jit(losses.sigmoid_focal)
  np.testing.assert_allclose(loss(OUTPUTS, BINARY, alpha=0.3), focal, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(loss(OUTPUTS, BINARY, alpha=0.5, gamma=0.0), entropy / 2, rtol=1e-5)


def test_weight_of_the_positives():
  p = scipy.special.expit(OUTPUTS.astype(float))
  weight = np.array([0.5, 1.0, 2.0, 7.0, 30.0])
  expected = -np.where(BINARY, weight * np.log(p), np.log1p(-p))
  found = jax.jit(losses.sigmoid_cross_entropy)(OUTPUTS, BINARY, pos_weight=weight)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  expected = -(3 * p * np.log(p) + (1 - p) * np.log1p(-p))  # of probabilities, as of 0 and 1
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(OUTPUTS, p, pos_weight=3), expected, rtol=1e-4)
  far = losses.sigmoid_cross_entropy(np.array([-200.0, 200.0], np.float32), np.array([1, 1]), pos_weight=2.0)
  np.testing.assert_allclose(far, [400, 0])
  for outputs, weight in ((OUTPUTS, np.ones(3)), (OUTPUTS, np.ones((3, 5))), (OUTPUTS[:, 0, 0], np.ones(4))):
    with pytest.raises(InputError, match='sigmoid_cross_entropy: pos_weight has shape'):
      losses.sigmoid_cross_entropy(outputs, np.zeros(outputs.shape), pos_weight=weight)


def test_hinge():
  expected = np.maximum(0, np.where(BINARY, 1 - OUTPUTS, 1 + OUTPUTS))
  np.testing.assert_allclose(losses.hinge(OUTPUTS, BINARY), expected, rtol=1e-6)
  np.testing.assert_allclose(losses.hinge(OUTPUTS, BINARY.astype(bool)), expected, rtol=1e-6)
  slopes = jax.grad(lambda x: losses.hinge(x, np.array([1, 1, 0])).sum())(np.array([0.5, 1.5, 0.5], np.float32))
  assert slopes.tolist() == [-1, 0, 1]


def test_regression_losses():
  error = OUTPUTS - REAL
  np.testing.assert_allclose(losses.squared_error(OUTPUTS, REAL), error**2, rtol=1e-6)
  np.testing.assert_allclose(losses.l1(OUTPUTS, REAL), abs(error), rtol=1e-6)
  huber = np.where(abs(error) <= 0.5, error**2 / 2, 0.5 * (abs(error) - 0.25))
  np.testing.assert_allclose(losses.huber(OUTPUTS, REAL, delta=0.5), huber, rtol=1e-5)


def test_cosine_distance():
  lengths = np.linalg.norm(OUTPUTS, axis=-1) * np.linalg.norm(REAL, axis=-1)
  expected = 1 - (OUTPUTS * REAL).sum(-1) / lengths
  np.testing.assert_allclose(losses.cosine_distance(OUTPUTS, REAL), expected, atol=1e-6)
  total = jax.jit(jax.value_and_grad(lambda x, y: losses.cosine_distance(x, y).sum()))
  value, gradient = total(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
  assert value == 1 and np.isfinite(gradient).all()


@pytest.mark.parametrize('name', ALL)
def test_per_example(name):
  loss, labels = ALL[name]
  found = jax.jit(loss)(OUTPUTS, labels)
  vectors = name in ('softmax_cross_entropy', 'cosine_distance')
  assert found.shape == (OUTPUTS.shape[:-1] if vectors else OUTPUTS.shape)
  np.testing.assert_allclose(found[1], loss(OUTPUTS[1:2], labels[1:2])[0], rtol=1e-5)


@pytest.mark.parametrize('name', ALL)
def test_float32_whatever_the_compute_dtype(name):
  loss, labels = ALL[name]
  outputs = jnp.asarray(OUTPUTS, jnp.bfloat16)
  found = loss(outputs, labels)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, loss(outputs.astype(jnp.float32), labels))


@pytest.mark.parametrize('name', ALL)
def test_float64(name, x64):
  loss, labels = ALL[name]
  assert jax.eval_shape(loss, OUTPUTS.astype(np.float64), labels).dtype == jnp.float64
  assert jax.eval_shape(loss, OUTPUTS, labels).dtype == jnp.float32


@pytest.mark.parametrize('name', ['squared_error', 'l1', 'huber'])
def test_integer_labels_of_a_regression(name):
  whole = np.arange(4)
  found = getattr(losses, name)(OUTPUTS[:, 0, 0], whole)
  np.testing.assert_array_equal(found, getattr(losses, name)(OUTPUTS[:, 0, 0], whole.astype(np.float32)))


@pytest.mark.parametrize('name', ALIKE)
@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 1), (4, 3, 5, 1), (3, 5)])
def test_labels_of_another_shape(name, shape):
  with pytest.raises(InputError, match=rf'{name}: labels are float32\[{", ".join(map(str, shape))}\].*\[4, 3, 5\]'):
    jax.eval_shape(ALIKE[name][0], OUTPUTS, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
  'labels',
  [
    np.zeros((4, 3), np.float32),  # floats where integers belong
    np.zeros((4, 3, 5), np.int32),  # a missing axis of classes looks like this
    np.zeros((4,), np.int32),
    np.zeros((4, 3, 1), np.int32),
    np.zeros((4, 3, 6), np.float32),
  ],
  ids=lambda labels: f'{labels.dtype}{labels.shape}',
)
def test_labels_that_are_no_classes(labels):
  with pytest.raises(InputError) as error:
    jax.eval_shape(losses.softmax_cross_entropy, OUTPUTS, labels)
  message = str(error.value)
  assert f'labels are {labels.dtype}{list(labels.shape)}' in message and 'expected integers [4, 3] or floats' in message


@pytest.mark.parametrize('name', ['softmax_cross_entropy', 'cosine_distance'])
def test_outputs_without_an_axis_to_reduce(name):
  with pytest.raises(InputError, match=rf'{name}: outputs have shape \(4,\)'):
    getattr(losses, name)(np.zeros(4), np.zeros(4))


@pytest.mark.parametrize('name', ALL)
def test_outputs_that_are_no_floats(name):
  with pytest.raises(InputError, match=f'{name}: outputs are int32'):
    ALL[name][0](np.zeros((2, 3), np.int32), np.zeros((2, 3)))


def test_options_by_partial():
  loss = functools.partial(losses.huber, delta=2.0)
  np.testing.assert_allclose(loss(jnp.array([3.0]), jnp.array([0.0])), 4.0)


WRONG = {
  'softmax_cross_entropy': ('label_smoothing', (-0.1, 1.0, np.nan)),
  'sigmoid_focal': ('gamma', (-1.0, np.nan)),
  'huber': ('delta', (0.0, -1.0, np.nan, np.inf)),
  'distillation': ('temperature', (0.0, np.nan, np.inf)),
}


@pytest.mark.parametrize('name', WRONG)
def test_options_out_of_range(name):
  option, values = WRONG[name]
  labels = np.zeros((2,), np.int32) if name == 'softmax_cross_entropy' else np.zeros((2, 3), np.float32)
  loss = lambda value: getattr(losses, name)(np.zeros((2, 3), np.float32), labels, **{option: value})
  for value in values:
    with pytest.raises(InputError, match=f'{name}: {option} is {value}, expected'):
      loss(value)
  if name != 'softmax_cross_entropy':  # which asks whether its share is 0
    jax.eval_shape(loss, 0.5)  # a traced one is not read


def test_weight_of_the_positives_of_the_focal_loss_is_a_share():
  with pytest.raises(InputError, match='sigmoid_focal: alpha is 1.5, expected a share from 0 to 1, or None'):
    losses.sigmoid_focal(np.zeros((2, 3), np.float32), np.zeros((2, 3)), alpha=1.5)
