"""Attention connections: one net per task, whose streams attend to each other after every stage."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import InputError, Model
from mtljax.sharing.modules import Module
from mtljax.sharing.stages import as_stages, check_fraction, stack_streams, streams, unstack_streams


def cross_task_attention(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  num_heads: int = 1,
  width: int | None = None,
  gate: float = 0.1,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """A stream of stages per task and, after every cut, x_t <- x_t + gate_t * sum_s a_ts V_s x_s.

  a_ts = softmax_s(<Q_t x_t, K_s x_s> / sqrt(d)): at every position (pixel, token) a task asks with its own vector, and
  the vectors of all tasks at that position answer, its own too: a task that wants nothing of the others listens to
  itself. The softmax is over the T tasks, T^2 numbers a position; attention between positions would cost the square of
  their number for every pair of tasks. gate_t f[C] weighs channels.

  Any task's loss reaches every stream, so streams and units are shared: `shared/streams/<task>/<stage>/...` and
  `shared/units/<cut>/{query, key, value, gate}`, whose rows are the tasks in alphabetical order. A net of one task has
  no units: a softmax over one is 1, whatever is asked.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`; every task gets a stream of its own.
    heads: {task: module}.
    cuts: stages followed by a unit; None is all of them.
    num_heads: attention heads, each with weights a_ts of its own; C is split among their values.
    width: of queries and keys over all heads (d = width / num_heads); None is C.
    gate: gate_t at the start, from 0 to 1: 0 makes single-task nets, in which only the gates get a gradient.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {task: z_t}. Subsets of the tasks and multi-input batches are those of `cross_stitch`.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, counts below 1, a width or channels that the heads
      do not divide, `gate` outside of 0 to 1, stage outputs that are no single array.

  >>> import flax.linen as nn
  >>> from mtljax import trunks
  >>> model = cross_task_attention(trunks.MLP((8, 6)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, num_heads=2)
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['shared']['units']['layer_1'])
  {'gate': (2, 6), 'key': (2, 6, 2, 3), 'query': (2, 6, 2, 3), 'value': (2, 6, 2, 3)}

  References: Lopes, Vu & de Charette, Cross-task Attention Mechanism for Dense Multi-task Learning (WACV 2023),
  https://arxiv.org/abs/2206.08927: queries of the target task, keys and values of the sources, a learned weight per
  channel. Departs from it: the softmax is over the tasks at one position (theirs over the positions of one source, each
  pair of tasks on its own, its results joined by convolutions, beside a spatial self-attention); added to x_t instead
  of concatenated with it; every stage and any trunk instead of decoders; gates start at 0.1 instead of 0, without
  BatchNorm and ReLU in the projections. Attention over several heads: Vaswani et al., Attention Is All You Need
  (NeurIPS 2017), https://arxiv.org/abs/1706.03762.
  """
  check_count('cross_task_attention num_heads', num_heads)
  if width is not None:
    check_count('cross_task_attention width', width)
  check_fraction('cross_task_attention gate', gate)
  return streams(as_stages(stages, cuts), heads, _unit(num_heads, width, gate), stems=stems)


def check_count(argument: str, value, at_least: int = 1) -> None:
  """Raises unless `value` is a whole number of at least `at_least`."""
  if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
    raise InputError(f'{argument}: found {value!r}, expected a whole number of at least {at_least}.')


def check_divides(num_heads: int, value: int, argument: str) -> None:
  """Raises unless `value` can be split among the heads."""
  if value % num_heads:
    raise InputError(f'{argument}: found {value}, expected a multiple of num_heads={num_heads}.')


def _unit(num_heads: int, width: int | None, gate: float) -> Module:
  def init(key, xs):
    tasks, channels = len(xs), stack_streams(xs).shape[-1]
    if tasks == 1:
      return {}, {}
    check_divides(num_heads, channels, 'cross_task_attention stages: channels at a cut')
    check_divides(num_heads, width or channels, 'cross_task_attention width')
    sizes = {'query': width or channels, 'key': width or channels, 'value': channels}
    params = {
      name: projection(arrays.name_key(key, name), (tasks, channels, num_heads, size // num_heads), channels)
      for name, size in sizes.items()
    }
    return {**params, 'gate': jnp.full((tasks, channels), gate, jnp.float32)}, {}

  def apply(params, state, xs, *, train, key):
    if not params:
      return xs, state
    x = stack_streams(xs)
    q, k, v = (jnp.einsum('t...c,tchd->t...hd', x, params[name].astype(x.dtype)) for name in ('query', 'key', 'value'))
    logits = jnp.einsum('t...hd,s...hd->t...hs', q, k).astype(arrays.real_dtype()) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    answers = jnp.einsum('t...hs,s...hd->t...hd', weights, v).reshape(x.shape)
    gates = jnp.expand_dims(params['gate'].astype(x.dtype), range(1, x.ndim - 1))
    return unstack_streams(xs, x + gates * answers), state

  return Module(init, apply)


def projection(key, shape, fan_in: int):
  """f32 of variance 1 / fan_in: queries and keys keep the scale of what they are made of."""
  return jax.random.normal(key, shape) / math.sqrt(fan_in)
