"""Cross-stitch networks: one net per task, whose activations are mixed linearly after every stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mtljax.base import Model
from mtljax.sharing.modules import Module
from mtljax.sharing.stages import (
  as_stages,
  check_flag,
  check_fraction,
  near_identity,
  stack_streams,
  streams,
  unstack_streams,
)


def cross_stitch(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  own: float = 0.9,
  channelwise: bool = False,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """A stream of stages per task and, after every cut, x_t <- sum_s alpha_ts x_s.

  Any task's loss reaches every stream, so streams and units are shared: `shared/streams/<task>/<stage>/...` and
  `shared/units/<cut>/alpha`. The paper gives units a rate 100 to 1000 times that of the streams:
  `task_optimizer(shared={'^shared/units/': optax.sgd(1.0), '': optax.sgd(1e-2)}, ...)`.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`; every task gets a stream of its own.
    heads: {task: module}.
    cuts: stages followed by a unit; None is all of them.
    own: alpha_tt at the start; the rest of 1 is spread over the other tasks, so that activations keep their scale.
    channelwise: alpha f[T, T, C], one matrix per channel, instead of f[T, T].
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {task: z_t}. Rows and columns of alpha are the tasks in alphabetical order. A subset of the
    tasks has the same shared parameters and the same numbers: the streams of the others still feed it. In a
    multi-input batch all streams run on task t's own inputs and z_t is read, T^2 stream passes in all.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, `own` outside of 0 to 1, stage outputs that are no
      single array.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = cross_stitch(trunks.MLP((8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, own=0.75)
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared']['units']['layer_0']['alpha'].tolist()
  [[0.75, 0.25], [0.25, 0.75]]

  Reference: Misra, Shrivastava, Gupta & Hebert, Cross-stitch Networks for Multi-task Learning (CVPR 2016),
  https://arxiv.org/abs/1604.03539. Departs from it: more than two tasks; streams start at random and not from
  single-task nets (`transfer` can load them).
  """
  check_fraction('cross_stitch own', own)
  check_flag('cross_stitch channelwise', channelwise)
  return streams(as_stages(stages, cuts), heads, _unit(own, channelwise), stems=stems)


def _unit(own: float, channelwise: bool) -> Module:
  def init(key, xs):
    channels = stack_streams(xs).shape[-1]
    alpha = jnp.asarray(near_identity(len(xs), own), jnp.float32)
    return {'alpha': jnp.repeat(alpha[..., None], channels, axis=2) if channelwise else alpha}, {}

  def apply(params, state, xs, *, train, key):
    x = stack_streams(xs)
    spec = 'tsc,s...c->t...c' if channelwise else 'ts,s...->t...'
    return unstack_streams(xs, jnp.einsum(spec, params['alpha'].astype(x.dtype), x)), state

  return Module(init, apply)
