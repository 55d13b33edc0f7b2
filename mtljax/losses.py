"""Losses per example, `(outputs, labels) -> f[B]` or f[B, ...] (tokens, pixels), over `optax.losses`.

They are computed in float32 (float64 for float64 outputs) whatever the compute dtype. Options are keyword-only:
`functools.partial(losses.huber, delta=0.5)` is a task's loss. The engine takes the masked mean.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from mtljax.base import Array, InputError, PyTree


def softmax_cross_entropy(outputs: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
  """-log softmax(outputs)[label], or its mean under a distribution of labels.

  >>> outputs = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
  >>> print(softmax_cross_entropy(outputs, jnp.array([1, 0])).round(4))
  [0.2877 0.6931]

  Args:
    outputs: logits f[B, ..., C].
    labels: classes int[B, ...], or distributions f[B, ..., C]. A class outside [0, C) gives NaN, not another class.
    label_smoothing: this share of the probability is spread evenly over the C classes (Szegedy et al. 2016,
      https://arxiv.org/abs/1512.00567).

  Returns:
    f[B, ...].

  Raises:
    InputError: labels of another shape or dtype, outputs that are not logits, a share outside [0, 1).
  """
  outputs, labels = _outputs('softmax_cross_entropy', outputs), jnp.asarray(labels)
  _check('softmax_cross_entropy', 'label_smoothing', label_smoothing, lambda x: 0 <= x < 1, 'at least 0 and below 1')
  if outputs.ndim < 2:
    raise InputError(f'softmax_cross_entropy: outputs have shape {outputs.shape}, expected logits [B, ..., classes].')
  classes = outputs.shape[-1]
  if labels.shape == outputs.shape and jnp.issubdtype(labels.dtype, jnp.floating):
    target = labels.astype(outputs.dtype)
  elif labels.shape == outputs.shape[:-1] and not jnp.issubdtype(labels.dtype, jnp.inexact):
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < classes)
    if label_smoothing == 0:
      losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, jnp.where(known, labels, 0))
      return jnp.where(known, losses, jnp.nan)
    target = jnp.where(known[..., None], jax.nn.one_hot(labels, classes, dtype=outputs.dtype), jnp.nan)
  else:
    raise InputError(
      f'softmax_cross_entropy: labels are {labels.dtype}{list(labels.shape)}, expected integers '
      f'{list(outputs.shape[:-1])} or floats {list(outputs.shape)} for outputs {list(outputs.shape)}.'
    )
  if label_smoothing:
    target = optax.losses.smooth_labels(target, label_smoothing)
  return optax.losses.softmax_cross_entropy(outputs, target)


def sigmoid_cross_entropy(outputs: Array, labels: Array, *, pos_weight: Array | float | None = None) -> Array:
  """-w labels * log sigmoid(outputs) - (1 - labels) * log sigmoid(-outputs): one yes or no each (several at once).

  >>> print(sigmoid_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1, 0]]), pos_weight=2.0).round(4))
  [[1.3863 0.6931]]

  Args:
    outputs: logits f[B, ...].
    labels: 0/1, bool or probabilities, of the outputs' shape.
    pos_weight: w of the positives, a number or one for each label f[outputs.shape[-1]]; negatives / positives lets both
      weigh the same (`data.tables.positive_weights`). None weights both 1.

  Returns:
    f[B, ...], of the outputs' shape.

  Raises:
    InputError: labels or weights of another shape.
  """
  outputs, labels = _alike('sigmoid_cross_entropy', outputs, labels)
  losses = optax.losses.sigmoid_binary_cross_entropy(outputs, labels)
  if pos_weight is None:
    return losses
  weight = jnp.asarray(pos_weight, outputs.dtype)
  if weight.ndim and (outputs.ndim < 2 or weight.shape != outputs.shape[-1:]):
    expected = 'a number' + (f' or one for each label [{outputs.shape[-1]}]' if outputs.ndim > 1 else '')
    raise InputError(f'sigmoid_cross_entropy: pos_weight has shape {weight.shape}, expected {expected}.')
  return losses + (jnp.broadcast_to(weight, outputs.shape) - 1) * labels * jax.nn.softplus(-outputs)


def hinge(outputs: Array, labels: Array) -> Array:
  """max(0, 1 - y * outputs), y = 1 for a label of 1 and -1 for 0: the loss of support vector machines.

  >>> print(hinge(jnp.array([2.0, 0.5, 0.5]), jnp.array([1, 1, 0])))
  [0.  0.5 1.5]

  Args:
    outputs: f[B, ...].
    labels: 0/1 or bool, of the outputs' shape.

  Returns:
    f[B, ...], of the outputs' shape.

  Raises:
    InputError: labels of another shape.

  Reference: Cortes & Vapnik, Support-Vector Networks (1995), https://doi.org/10.1007/BF00994018.
  """
  outputs, labels = _alike('hinge', outputs, labels)
  return optax.losses.hinge_loss(outputs, 2 * labels - 1)


def sigmoid_focal(outputs: Array, labels: Array, *, alpha: float | None = None, gamma: float = 2.0) -> Array:
  """alpha_y * (1 - p_y)^gamma * (-log p_y), p_y the probability of the true label: rare positives.

  >>> print(sigmoid_focal(jnp.zeros((1, 2)), jnp.array([[1, 0]])).round(4))
  [[0.1733 0.1733]]

  Args:
    outputs: logits f[B, ...].
    labels: 0/1 or bool, of the outputs' shape.
    alpha: weight of the positives, 1 - alpha that of the negatives; None weights both 1.
    gamma: 0 gives `sigmoid_cross_entropy`.

  Returns:
    f[B, ...], of the outputs' shape.

  Raises:
    InputError: labels of another shape, alpha outside [0, 1], gamma below 0.

  Reference: Lin et al., Focal Loss for Dense Object Detection (2017), https://arxiv.org/abs/1708.02002.
  """
  _check('sigmoid_focal', 'alpha', 0 if alpha is None else alpha, lambda x: 0 <= x <= 1, 'a share from 0 to 1, or None')
  _check('sigmoid_focal', 'gamma', gamma, lambda x: 0 <= x < math.inf, 'a number >= 0')
  return optax.losses.sigmoid_focal_loss(*_alike('sigmoid_focal', outputs, labels), alpha=alpha, gamma=gamma)


def squared_error(outputs: Array, labels: Array) -> Array:
  """(outputs - labels)^2, without the half.

  >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([3, 2])))
  [4. 0.]

  Args:
    outputs: f[B, ...].
    labels: numbers of the outputs' shape; integers are cast.

  Returns:
    f[B, ...], of the outputs' shape.

  Raises:
    InputError: labels of another shape ([B, 1] against [B] would broadcast to [B, B]).
  """
  return optax.losses.squared_error(*_alike('squared_error', outputs, labels))


def l1(outputs: Array, labels: Array) -> Array:
  """|outputs - labels|; arguments as for `squared_error`.

  >>> print(l1(jnp.array([1.0, 2.0]), jnp.array([3, 2])))
  [2. 0.]
  """
  outputs, labels = _alike('l1', outputs, labels)
  return jnp.abs(outputs - labels)


def huber(outputs: Array, labels: Array, *, delta: float = 1.0) -> Array:
  """e^2 / 2 for |e| <= delta, else delta * (|e| - delta / 2), e = outputs - labels; arguments as for `squared_error`.

  >>> print(huber(jnp.array([0.5, 3.0]), jnp.array([0, 0])))
  [0.125 2.5  ]

  Reference: Huber, Robust Estimation of a Location Parameter (1964), https://doi.org/10.1214/aoms/1177703732.
  """
  _check('huber', 'delta', delta, lambda x: 0 < x < math.inf, 'a number > 0')
  return optax.losses.huber_loss(*_alike('huber', outputs, labels), delta=delta)


def cosine_distance(outputs: Array, labels: Array, *, epsilon: float = 1e-12) -> Array:
  """1 - cos(outputs, labels) over the last axis (surface normals).

  >>> print(cosine_distance(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])))
  [0. 1.]

  Args:
    outputs: f[B, ..., D].
    labels: f[B, ..., D].
    epsilon: a squared norm counts at least this, so that a zero vector has distance 1 and gradients are finite.

  Returns:
    f[B, ...].

  Raises:
    InputError: labels of another shape, or no axis of vectors.
  """
  outputs, labels = _alike('cosine_distance', outputs, labels)
  if outputs.ndim < 2:
    raise InputError(f'cosine_distance: outputs have shape {outputs.shape}, expected vectors [B, ..., D].')
  return optax.losses.cosine_distance(outputs, labels, epsilon=epsilon)


def ctc(outputs: PyTree, labels: Array) -> Array:
  """-log sum over paths that collapse to the labels of prod_n softmax(logits)[n, path_n]; symbol 0 is the blank.

  A path collapses by writing repeats once and dropping blanks.

  >>> logits = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]]))  # paths 11, 01 and 10 are symbol 1
  >>> print(ctc(logits, jnp.array([[1]])).round(4), -jnp.log(1 - 0.25 * 0.5).round(4))
  [0.1335] 0.1335

  Args:
    outputs: logits f[B, N, V + 1], or {'logits': those, 'mask': bool[B, N]}, frames that count.
    labels: int[B, L], symbols from 1 to V; entries of 0 and -1 are padding, wherever they stand. A symbol outside
      [-1, V] gives NaN, not another symbol.

  Returns:
    f[B], sums over the sequence. Labels that no path gives (more of them, with a blank between equal neighbours, than
    frames) cost some 1e5 and more: mask such examples.

  Raises:
    InputError: labels of another shape or dtype, outputs that are not logits.

  Reference: Graves et al., Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent
  Neural Networks (ICML 2006), https://doi.org/10.1145/1143844.1143891.
  """
  logits, mask = (outputs['logits'], outputs['mask']) if isinstance(outputs, Mapping) else (outputs, None)
  logits, labels = _outputs('ctc', logits), jnp.asarray(labels)
  if logits.ndim != 3 or logits.shape[-1] < 2:
    raise InputError(f'ctc: outputs have shape {logits.shape}, expected logits [B, frames, symbols + 1].')
  if labels.ndim != 2 or labels.shape[0] != logits.shape[0] or not jnp.issubdtype(labels.dtype, jnp.integer):
    expected = f'integers [{logits.shape[0]}, symbols]'
    raise InputError(f'ctc: labels are {labels.dtype}{list(labels.shape)}, expected {expected}.')
  mask = jnp.ones(logits.shape[:2], bool) if mask is None else jnp.asarray(mask)
  if mask.shape != logits.shape[:2] or mask.dtype != jnp.bool_:
    raise InputError(f'ctc: mask is {mask.dtype}{list(mask.shape)}, expected bool{list(logits.shape[:2])}.')
  labels = labels.astype(jnp.int32)
  known = ((labels >= -1) & (labels < logits.shape[-1])).all(axis=1)
  order = jnp.argsort(labels <= 0, axis=1, stable=True)  # optax takes padding at the end only
  labels = jnp.maximum(jnp.take_along_axis(labels, order, axis=1), 0)
  floats = lambda padding: padding.astype(logits.dtype)
  losses = optax.losses.ctc_loss(logits, floats(~mask), labels, floats(labels == 0))
  return jnp.where(known, losses, jnp.nan).astype(logits.dtype)


def distillation(outputs: Array, labels: Array, *, temperature: float = 2.0) -> Array:
  """temperature^2 * KL(softmax(labels / temperature) | softmax(outputs / temperature)): the logits of a teacher.

  The factor keeps the scale of the gradient whatever the temperature; at a high one it is that of
  |outputs - labels|^2 / 2C for logits of mean 0.

  >>> teacher = jnp.log(jnp.array([[0.75, 0.25]]))
  >>> print(distillation(jnp.zeros((1, 2)), teacher, temperature=1.0).round(4))
  [0.1308]

  Args:
    outputs: logits f[B, ..., C].
    labels: the teacher's logits f[B, ..., C]; a gradient reaches them, so stop it where the teacher is not to move.
    temperature: > 0; high ones soften both distributions.

  Returns:
    f[B, ...].

  Raises:
    InputError: labels of another shape, outputs that are not logits, a temperature that is not positive.

  Reference: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (2015),
  https://arxiv.org/abs/1503.02531.
  """
  outputs, labels = _alike('distillation', outputs, labels)
  if outputs.ndim < 2:
    raise InputError(f'distillation: outputs have shape {outputs.shape}, expected logits [B, ..., classes].')
  _check('distillation', 'temperature', temperature, lambda x: 0 < x < math.inf, 'a number > 0')
  student, teacher = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (outputs, labels))
  return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def _check(loss: str, option: str, value, holds: Callable, expected: str) -> None:
  """Raises unless the option is a number for which `holds`; a traced one is not read."""
  if not isinstance(value, jax.core.Tracer) and not holds(value):
    raise InputError(f'{loss}: {option} is {value!r}, expected {expected}.')


def _outputs(loss: str, outputs: Array) -> Array:
  outputs = jnp.asarray(outputs)
  if not jnp.issubdtype(outputs.dtype, jnp.floating):
    raise InputError(f'{loss}: outputs are {outputs.dtype}{list(outputs.shape)}, expected floats.')
  return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _alike(loss: str, outputs: Array, labels: Array) -> tuple[Array, Array]:
  outputs, labels = _outputs(loss, outputs), jnp.asarray(labels)
  if labels.shape != outputs.shape or jnp.issubdtype(labels.dtype, jnp.complexfloating):
    raise InputError(
      f'{loss}: labels are {labels.dtype}{list(labels.shape)}, expected real numbers {list(outputs.shape)}, '
      "the outputs' shape."
    )
  return outputs, labels.astype(outputs.dtype)
