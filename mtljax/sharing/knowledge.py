"""Shared knowledge: heads read a matrix, learned or taken from another task or model, through attention."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model
from mtljax.sharing.cross_task_attention import check_count, check_divides, projection
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, as_module, by_task, describe
from mtljax.sharing.stages import array_of, composed, no_features


def knowledge(
  trunk: Any,
  heads: Mapping[str, Any],
  *,
  matrix: Any = None,
  size: tuple[int, int] | None = None,
  num_heads: int = 1,
  width: int | None = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """y_t = h_t([z, r_t]), r_t = softmax(Q_t z (K P)' / sqrt(d)) K V: heads ask a matrix K f[N, D], a row per fact.

  z f[B, ..., C] is what the trunk gives; every position (token, pixel) asks by itself. K is either fixed: embeddings,
  prototypes (`class_prototypes`), statistics of another task or model; then it is in `model_state['shared']`, out of
  reach of gradients, balancers, optimisers and decay. Or it is learned with the trunk, in `params['shared']`. The
  projections to keys P and values V serve all tasks, so they are shared, `shared/memory/{key, value}`; what is asked is
  the task's own, `tasks/<task>/query`.

  Keys and values are handed on beside z and are no features of the batch: `at='features'` refuses the architecture.

  Args:
    trunk: inputs -> z, one array.
    heads: {task: module}, of f[B, ..., C + width].
    matrix: a fixed K, N >= 2 rows of finite floats; copied. Another one of the same width D can take its place later
      (`model_state['shared']['memory']['matrix']`).
    size: (N, D) of a learned K, where no `matrix` is given; None is (64, 64).
    num_heads: attention heads; each reads with weights of its own.
    width: of keys, values and r_t over all heads (d = width / num_heads); None is D.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` whose trunk hands on {'features': z, 'keys': f[N, num_heads, d], 'values': the same, 'scalar': 0}.

  Raises:
    InputError: both `matrix` and `size`, a matrix that is not f[N, D], a width that the heads do not divide;
      while tracing, a matrix of another width D than that of the projections, a trunk that does not give one array.

  >>> import flax.linen as nn
  >>> prototypes = class_prototypes(jnp.eye(4), jnp.array([0, 0, 1, 1]), 2)
  >>> model = knowledge(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, matrix=prototypes, width=6)
  >>> x = jnp.ones((4, 3))
  >>> params, state = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> print(state['shared']['memory']['matrix'])
  [[0.5 0.5 0.  0. ]
   [0.  0.  0.5 0.5]]
  >>> params['tasks']['parity']['query'].shape, params['tasks']['parity']['head']['kernel'].shape
  ((8, 1, 6), (14, 2))

  References: Sukhbaatar, Szlam, Weston & Fergus, End-To-End Memory Networks (NeurIPS 2015),
  https://arxiv.org/abs/1503.08895; Miller et al., Key-Value Memory Networks for Directly Reading Documents (EMNLP
  2016), https://arxiv.org/abs/1606.03126. Departs from them: one read instead of several hops; the memory is one
  matrix for all examples, read by several tasks; r_t is concatenated with z instead of added to it; scaled dot products
  and heads of Vaswani et al. (NeurIPS 2017), https://arxiv.org/abs/1706.03762.
  """
  check_count('knowledge num_heads', num_heads)
  if matrix is not None and size is not None:
    raise InputError(
      'knowledge: found matrix and size, expected a fixed matrix f[N, D] or a size (N, D) to be learned.'
    )
  matrix = None if matrix is None else _checked(matrix)
  size = (64, 64) if size is None else size
  if not isinstance(size, (tuple, list)) or len(size) != 2:
    raise InputError(f'knowledge size: found {size!r}, expected (N, D), rows and width of the matrix to be learned.')
  rows, columns = size if matrix is None else matrix.shape
  check_count('knowledge size: N', rows, at_least=2)  # one row is read whatever is asked
  check_count('knowledge size: D', columns)
  if width is not None:
    check_count('knowledge width', width)
  check_divides(num_heads, width or columns, 'knowledge: width of the matrix' if width is None else 'knowledge width')
  trunk, memory = as_module(trunk, 'trunk'), _memory(matrix, (rows, columns), num_heads, width or columns)

  def walk(call, x):
    z = call(('trunk',), trunk, x)
    keys, values = call(('memory',), memory)
    return no_features({'features': z, 'keys': keys, 'values': values})

  def own(head):
    def walk(call, seen, *, inputs):
      z, put = array_of(seen['features'])
      read = call(('query',), _read(), z, seen['keys'], seen['values'])
      return call(('head',), head, put(jnp.concatenate([z, read], axis=-1)), inputs=inputs)

    return composed(walk)

  return hard(composed(walk), {task: own(head) for task, head in by_task(heads, 'heads').items()}, stems)


def class_prototypes(features: Array, labels: Array, num_classes: int) -> Array:
  """The mean of the features of every class, f[num_classes, D]; it can be jitted with `num_classes` static.

  Args:
    features: f[B, ..., D].
    labels: classes int[B, ...]; what is outside of [0, num_classes) counts for none.
    num_classes: rows; a class without an example has zeros.

  Raises:
    InputError: labels that are no classes of the features.

  >>> print(class_prototypes(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]), jnp.array([1, 1, 0]), 3))
  [[5. 0.]
   [2. 3.]
   [0. 0.]]

  Reference: Snell, Swersky & Zemel, Prototypical Networks for Few-shot Learning (NeurIPS 2017),
  https://arxiv.org/abs/1703.05175.
  """
  return _class_means(*_by_class(features, labels, num_classes), num_classes)


def class_statistics(features: Array, labels: Array, num_classes: int) -> Array:
  """Means and standard deviations of every class side by side, f[num_classes, 2 D]; as `class_prototypes`.

  >>> print(class_statistics(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([1, 1, 0]), 2))
  [[5. 0.]
   [2. 1.]]
  """
  features, labels = _by_class(features, labels, num_classes)
  means = _class_means(features, labels, num_classes)
  centred = features - means[jnp.clip(labels, 0, num_classes - 1)]
  return jnp.concatenate([means, jnp.sqrt(_class_means(centred**2, labels, num_classes))], axis=-1)


def _by_class(features, labels, num_classes):
  check_count('num_classes', num_classes)
  features, labels = jnp.asarray(features), jnp.asarray(labels)
  if (
    features.ndim < 2
    or not arrays.is_float(features)
    or labels.shape != features.shape[:-1]
    or not jnp.issubdtype(labels.dtype, jnp.integer)
  ):
    raise InputError(
      f'class_prototypes: found features {describe(features)} and labels {describe(labels)}, expected floats '
      '[B, ..., D] and integers [B, ...].'
    )
  labels = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes).ravel()
  return features.reshape(-1, features.shape[-1]).astype(arrays.real_dtype()), labels


def _class_means(features, labels, num_classes):
  totals = jax.ops.segment_sum(features, labels, num_classes)
  counts = jax.ops.segment_sum(jnp.ones(labels.shape, features.dtype), labels, num_classes)
  return totals / jnp.maximum(counts, 1)[:, None]


def _checked(matrix) -> np.ndarray:
  try:
    given = np.asarray(matrix)
  except ValueError as error:  # rows of different length
    raise InputError(f'knowledge matrix: found {type(matrix).__name__}, expected floats [N, D]: {error}') from error
  shape, dtype = given.shape, given.dtype
  if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating) or shape[0] < 2 or shape[1] < 1:
    raise InputError(f'knowledge matrix: found {dtype}{list(shape)}, expected floats [N, D] with N >= 2 rows, D >= 1.')
  matrix = np.array(given, np.float32)  # a copy, so that a donated array can be given
  if not np.isfinite(matrix).all():
    raise InputError(f'knowledge matrix: found NaN or infinity in {dtype}{list(shape)}, expected finite numbers.')
  return matrix


def _memory(matrix, size, num_heads: int, width: int) -> Module:
  """() -> keys and values f[N, num_heads, d]."""
  shape = (size[1], num_heads, width // num_heads)

  def init(key):
    draw = lambda name, shape, fan_in: projection(arrays.name_key(key, name), shape, fan_in)
    params = {name: draw(name, shape, size[1]) for name in ('key', 'value')}
    if matrix is not None:
      return params, {'matrix': jnp.asarray(matrix)}
    return {**params, 'matrix': draw('matrix', size, 1)}, {}

  def apply(params, state, *, train, key):
    K = params['matrix'] if matrix is None else state['matrix']
    if K.ndim != 2 or K.shape[1] != size[1]:
      raise InputError(f'knowledge matrix: found shape {list(K.shape)}, expected [N, {size[1]}], as the projections.')
    return tuple(jnp.einsum('nd,dhe->nhe', K, params[name]) for name in ('key', 'value')), state

  return Module(init, apply)


def _read() -> Module:
  """z f[B, ..., C], keys and values f[N, H, d] -> r f[B, ..., H d]."""

  def init(key, z, keys, values):
    if not hasattr(z, 'shape') or z.ndim < 2 or not arrays.is_float(z):
      raise InputError(f'knowledge trunk: found features {describe(z)}, expected one floating array [B, ..., C].')
    return projection(key, (z.shape[-1], *keys.shape[1:]), z.shape[-1]), {}

  def apply(params, state, z, keys, values, *, train, key):
    q = jnp.einsum('...c,chd->...hd', z, params.astype(z.dtype))
    logits = jnp.einsum('...hd,nhd->...hn', q, keys.astype(z.dtype)).astype(arrays.real_dtype())
    weights = jax.nn.softmax(logits / math.sqrt(keys.shape[-1]), axis=-1)
    answers = jnp.einsum('...hn,nhd->...hd', weights.astype(z.dtype), values.astype(z.dtype))
    return answers.reshape(*z.shape[:-1], -1), state

  return Module(init, apply)
