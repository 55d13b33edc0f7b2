"""Sluice networks: subspaces of layers are mixed between tasks, and layers are mixed into what the head reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import InputError, Model, Penalty
from mtljax.sharing.modules import Module
from mtljax.sharing.stages import (
  as_stages,
  check_fraction,
  near_identity,
  stack_streams,
  streams,
  unstack_streams,
)


def sluice(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  subspaces: int = 2,
  own: float = 0.9,
  last: float = 0.9,
  beta: float | Callable = 0.1,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """A stream per task; x_tg <- sum_sh alpha_tgsh x_sh over subspaces g, h; head t reads z_t = sum_j beta_tj x_t^j.

  The G subspaces of a layer are equal parts of its last axis. They are held apart by the penalty
  beta sum_t sum_W sum_{g<h} |W_g' W_h|_F^2, W f[in, C] the kernels of the stages that are cut and W_g the columns that
  make subspace g. Streams, alpha and beta are shared, as in `cross_stitch`: `shared/units/<cut>/alpha` f[T, G, T, G],
  `shared/readout/beta` f[T, layers].

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`.
    heads: {task: module}.
    cuts: stages that are mixed; None is all of them.
    subspaces: G, divides the channels at every cut.
    own: alpha of a subspace with itself at the start; the rest of 1 is spread over the others.
    last: beta of the last layer at the start; the rest of 1 is spread over the layers before.
    beta: weight of the orthogonality penalty, a number or an optax schedule.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {task: z_t}; axes of tasks are in alphabetical order. Layers are mixed into z_t where they
    have the shape of the last one: all of them in a trunk of one width, the last few in a pyramid.

  Raises:
    InputError: as `cross_stitch`; a width that `subspaces` does not divide, a negative `beta`.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = sluice(trunks.MLP((8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared']['units']['layer_0']['alpha'].shape, params['shared']['readout']['beta'].shape
  ((2, 2, 2, 2), (2, 2))

  Reference: Ruder, Bingel, Augenstein & Søgaard, Latent Multi-task Architecture Learning (AAAI 2019),
  https://arxiv.org/abs/1705.08142. Departs from it: any trunk instead of LSTMs, any number of tasks and subspaces;
  alpha starts near the identity, where the authors' code favours one source subspace for each task; the penalty is on
  every kernel of a stage whose last axis G divides.
  """
  check_fraction('sluice own', own)
  check_fraction('sluice last', last)
  if isinstance(subspaces, bool) or not isinstance(subspaces, int) or subspaces < 1:
    raise InputError(f'sluice subspaces: found {subspaces!r}, expected a whole number of at least 1.')
  arrays.check_weight('sluice beta', beta)
  found = as_stages(stages, cuts)
  model = streams(found, heads, _unit(subspaces, own), readout=_readout(last), stems=stems)
  return model._replace(penalties=(Penalty(beta, _overlap(found.cuts, subspaces)),))


def _unit(subspaces: int, own: float) -> Module:
  def init(key, xs):
    channels, size = stack_streams(xs).shape[-1], len(xs) * subspaces
    if channels % subspaces:
      raise InputError(f'sluice subspaces: found {subspaces}, expected a divisor of the {channels} channels at a cut.')
    alpha = near_identity(size, own).reshape((len(xs), subspaces) * 2)
    return {'alpha': jnp.asarray(alpha, jnp.float32)}, {}

  def apply(params, state, xs, *, train, key):
    x = stack_streams(xs)
    split = x.reshape(*x.shape[:-1], subspaces, -1)
    mixed = jnp.einsum('tgsh,s...hc->t...gc', params['alpha'].astype(x.dtype), split)
    return unstack_streams(xs, mixed.reshape(x.shape)), state

  return Module(init, apply)


def _readout(last: float) -> Module:
  def same(layers):
    """f[T, layers, B, ..., C], those that have the shape of the last."""
    return jnp.stack(
      [jnp.stack([x for x in layers[task] if x.shape == layers[task][-1].shape]) for task in sorted(layers)]
    )

  def init(key, layers):
    tasks, depth = same(layers).shape[:2]
    row = near_identity(depth, last)[-1]
    return {'beta': jnp.asarray(np.tile(row, (tasks, 1)), jnp.float32)}, {}

  def apply(params, state, layers, *, train, key):
    x = same(layers)
    return unstack_streams(layers, jnp.einsum('tl,tl...->t...', params['beta'].astype(x.dtype), x)), state

  return Module(init, apply)


def _overlap(cuts: tuple[str, ...], subspaces: int) -> Callable:
  """sum_{g<h} |W_g' W_h|_F^2 over the kernels of the stages that are cut."""

  def value(params):
    total = jnp.zeros((), arrays.real_dtype())
    for stream in params['shared']['streams'].values():
      for leaf in jax.tree.leaves([stream[cut] for cut in cuts]):
        if leaf.ndim > 1 and leaf.shape[-1] % subspaces == 0:
          kernel = leaf.reshape(-1, subspaces, leaf.shape[-1] // subspaces)
          products = jnp.einsum('igc,ihd->ghcd', kernel, kernel)
          apart = np.triu(np.ones((subspaces, subspaces)), 1)[..., None, None]
          total += jnp.sum(apart * products**2)
    return total

  return value
