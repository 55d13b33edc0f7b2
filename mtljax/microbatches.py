"""A model whose passes need less memory: rematerialised, and run on a part of the batch at a time.

Gradients of many tasks cannot be accumulated the usual way, balanced part by part and then summed: the Gramian of a
sum is not the sum of the Gramians, and weights need the losses of the whole batch. So the passes are split, not the
step: trunk and heads run over the parts in a scan that keeps what they return and makes the rest again for the
pullback. Losses, balancing and optimiser see the whole batch once, whatever the method, its level and the place of
its rows, and a loss that compares examples of a batch still sees all of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs
from mtljax.base import InputError, Model, PyTree


def split(model: Model, accumulate: int = 1, remat: bool = False) -> Model:
  """The model with the same numbers and less memory.

  What a layer draws (dropout) and what it computes over a batch (BatchNorm, which normalises a part) is that of the
  parts; counters in the model state advance once a step.

  Args:
    model: any architecture; accumulation needs one whose trunk and heads return what leads with the batch.
    accumulate: in how many parts of equal size the batch is run; peak memory of a pass falls with it.
    remat: makes what a pass holds again when it is pulled back (one more forward pass); always so in parts.

  Returns:
    A `Model` with the parameters and states of `model`.

  Raises:
    InputError: `accumulate` below 1; while tracing, a batch that it does not divide, an architecture that hands on what
      does not lead with the batch.
  """
  if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
    raise InputError(f'accumulate: found {accumulate!r}, expected a positive integer.')
  if not isinstance(remat, bool):
    raise InputError(f'remat: found {remat!r}, expected a bool.')
  if accumulate == 1 and not remat:
    return model

  def trunk(shared, state, x, *, tasks, train, key):
    call = lambda state, x, key: model.trunk(shared, state, x, tasks=tasks, train=train, key=key)
    return _run('the trunk', call, state, x, key, accumulate)

  def head(params, state, features, *, inputs=None, task, train, key):
    def call(state, given, key):
      features, x = given
      return model.head(params, state, features, inputs=x, task=task, train=train, key=key)

    return _run(f'the head of task {task!r}', call, state, (features, inputs), key, accumulate)

  def stem(params, state, x, *, task, train, key):
    call = lambda state, x, key: model.stem(params, state, x, task=task, train=train, key=key)
    return _run(f'the stem of task {task!r}', call, state, x, key, accumulate)

  return model._replace(trunk=trunk, head=head, stem=None if model.stem is None else stem)


def _run(owner: str, call: Callable, state: PyTree, x: PyTree, key, parts: int) -> tuple[PyTree, PyTree]:
  """`call(state, x, key) -> (result, state)` over parts of x, each made again when it is pulled back."""
  if parts == 1:
    return jax.checkpoint(call)(state, x, key)
  size = inputs.batch_size(x)
  if size % parts:
    raise InputError(f'accumulate: found {parts} with a batch of {size}, expected a number that divides it.')
  _check(owner, 'is given', x, size)
  _check(owner, 'returns', jax.eval_shape(call, state, x, key)[0], size)
  floats, counters, merge = arrays.split_floats(state)

  def part(floats, numbered):
    index, some = numbered
    own = key if key is None else jax.random.fold_in(key, index)
    result, new = jax.checkpoint(call, prevent_cse=False)(merge(floats, counters), some, own)
    floats, others, _ = arrays.split_floats(new)
    return floats, (result, others)

  # every `parts`-th row, so that a batch that is dealt out to devices stays where it is
  deal = lambda leaf: leaf.reshape(size // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)
  floats, (result, others) = jax.lax.scan(part, floats, (jnp.arange(parts), jax.tree.map(deal, x)))
  join = lambda leaf: leaf.swapaxes(0, 1).reshape(size, *leaf.shape[2:])
  return jax.tree.map(join, result), merge(floats, [other[-1] for other in others])


def _check(owner: str, verb: str, tree: PyTree, size: int) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if leaf.shape[:1] != (size,):
      what = arrays.path_label(path) or 'an array'
      raise InputError(
        f'accumulate: {owner} {verb} {what!r} of shape {leaf.shape}, expected a leading '
        f'batch axis of {size}: the architecture hands on what is no feature.'
      )
