"""F1 of tags: token by token, and of whole spans."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import InputError, Metric
from mtljax.metrics._sums import classes, masked


def token_f1(ignore: int | Sequence[int] = 0) -> Metric:
  """Micro F1 over places: 2 TP / (predicted + labelled) of all tags that are not ignored (O); 0 without a hit.

  >>> metric = token_f1()
  >>> tags, labels = jnp.array([[1, 2, 0, 0]]), jnp.array([[1, 1, 0, 1]])
  >>> metric.compute(metric.update(tags, labels, jnp.array([True]))).item()  # one of two, one of three
  0.4000000059604645

  Args:
    ignore: the tag, or tags, that say nothing.

  `update` takes logits f[B, N, C] or tags int[B, N], tags int[B, N] and a mask, bool[B] or bool[B, N].
  """
  ignored = np.atleast_1d(np.asarray(ignore))
  if ignored.ndim != 1 or not np.issubdtype(ignored.dtype, np.integer):
    raise InputError(f'token_f1: ignore is {ignore!r}, expected a tag or several, as whole numbers.')

  def update(outputs, labels, mask):
    tags, labels, mask = masked(*classes('token_f1', jnp.asarray(outputs), jnp.asarray(labels)), mask)
    said, true = (mask & ~jnp.isin(x, ignored) for x in (tags, labels))
    return _counts(said & (tags == labels), said, true)

  return Metric(update, jnp.add, _f1)


def span_f1(tags: Sequence[str]) -> Metric:
  """Micro F1 over spans (entities): one is found if its type, its begin and its end are; 0 without a hit.

  Tags are IOB2, 'O', 'B-type', 'I-type'. As in conlleval, an I- that continues no span of its type begins one, in the
  labels and in what is predicted. A place that the mask leaves out is in no span.

  >>> metric = span_f1(('O', 'B-place', 'I-place', 'B-person', 'I-person'))
  >>> found, labels = jnp.array([[1, 2, 0, 3, 4]]), jnp.array([[1, 2, 0, 3, 0]])
  >>> metric.compute(metric.update(found, labels, jnp.array([True]))).item()
  0.5

  Args:
    tags: the name of every tag, in the order of the classes.

  Raises:
    InputError: names of another form.

  `update` takes logits f[B, N, C] or tags int[B, N], tags int[B, N] and a mask, bool[B] or bool[B, N].

  Reference: Tjong Kim Sang & De Meulder, Introduction to the CoNLL-2003 Shared Task (2003),
  https://aclanthology.org/W03-0419.
  """
  wrong = [tag for tag in tags if tag != 'O' and (tag[:2] not in ('B-', 'I-') or len(tag) < 3)]
  if wrong or isinstance(tags, str) or not len(tags):
    raise InputError(f"span_f1: tags are {wrong or tags!r}, expected 'O', 'B-type' and 'I-type'.")
  types = sorted({tag[2:] for tag in tags if tag != 'O'})
  kind = np.array([0 if tag == 'O' else 1 + types.index(tag[2:]) for tag in tags])  # 0 is outside
  begins = np.array([tag.startswith('B-') for tag in tags])
  outside = len(tags)  # a class of its own for what does not count

  def spans(x):
    """Type of the span that begins at a place (or 0), and where it ends."""
    of, first = jnp.asarray(np.append(kind, 0))[x], jnp.asarray(np.append(begins, False))[x]
    before = jnp.pad(of[:, :-1], ((0, 0), (1, 0)))
    goes_on = (of > 0) & ~first & (of == before)
    ends = (of > 0) & ~jnp.pad(goes_on[:, 1:], ((0, 0), (0, 1)))
    place = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape)
    end = jax.lax.cummin(jnp.where(ends, place, x.shape[1]), axis=1, reverse=True)
    return jnp.where(goes_on, 0, of), end

  def update(outputs, labels, mask):
    outputs, labels = jnp.asarray(outputs), jnp.asarray(labels)
    if jnp.issubdtype(outputs.dtype, jnp.floating) and outputs.shape[-1] != len(tags):
      raise InputError(f'span_f1: outputs have shape {outputs.shape}, expected [B, N, {len(tags)}].')
    if labels.ndim != 2:
      raise InputError(f'span_f1: labels have shape {labels.shape}, expected [B, N].')
    found, labels, mask = masked(*classes('span_f1', outputs, labels), mask)
    (said, said_end), (true, true_end) = (spans(jnp.where(mask, x, outside)) for x in (found, labels))
    hits = (said > 0) & (said == true) & (said_end == true_end)
    return _counts(hits, said > 0, true > 0)

  return Metric(update, jnp.add, _f1)


def _counts(hits, said, true):
  return jnp.stack([x.sum(dtype=jnp.int32) for x in (hits, said, true)])


def _f1(sums):
  return 2 * sums[0] / jnp.maximum(sums[1] + sums[2], 1)
