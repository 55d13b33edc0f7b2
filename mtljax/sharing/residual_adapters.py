"""Residual adapters: a shared or frozen net, and per task a 1x1 convolution after or beside its stages."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn

from mtljax import arrays
from mtljax.base import Array, InputError, Model, PyTree
from mtljax.sharing._merged import merged
from mtljax.sharing.modules import as_module, describe
from mtljax.sharing.stages import array_of, as_stages, check_flag, composed
from mtljax.trunks import BatchNorm

KINDS = ('series', 'parallel')


def residual_adapters(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  kind: Literal['series', 'parallel'] = 'series',
  batch_norm: bool = True,
  frozen: bool | PyTree = False,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """At every cut x_j = y + A_t BN_t(y) ('series') or x_j = y + A_t x_{j-1} ('parallel'), y = f_j(x_{j-1}).

  A_t is a 1x1 convolution (a dense layer where there are no pixels), without a bias and zero at the start, so that all
  tasks start from the same net. The tasks' nets differ from the first cut on: each is run as a whole.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`. With `ResNet.blocks` there is an adapter
      at every residual block.
    heads: {task: module}.
    cuts: stages with an adapter; None is all of them.
    kind: 'parallel' needs a stage that keeps the axes of its input: pixels may become fewer (the convolution has a
      stride then) and channels others. A layer that flattens its input takes 'series'.
    batch_norm: `trunks.BatchNorm` before A in series.
    frozen: False trains the stages with the adapters, a balancing method sees them. Parameters of trained stages,
      {stage: parameters}, freeze them: they are in `model_state['shared']['frozen']`, `params['shared']` is empty and
      only adapters and heads learn. True freezes the stages as they are initialised.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with `params['shared'] = {stage: ...}` and `params['tasks'][t] = {'adapters': {cut: ...}, 'head': ...}`.
    BatchNorm's statistics, those of the stages too, are the task's own, in `model_state['tasks'][t]['trunk']`, and
    move when the stages are frozen. The trunk hands on parameters and no features: use `at='params'`.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, an unknown kind; while initialising, a stage whose
      output is no single array [B, ..., C], a stage that no parallel adapter fits, frozen values of other names or
      shapes.

  >>> import jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = residual_adapters(trunks.MLP((8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, kind='parallel')
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['tasks']['parity']['adapters']['layer_0'])
  {'Dense_0': {'kernel': (3, 8)}}

  References: Rebuffi, Bilen & Vedaldi, Learning Multiple Visual Domains with Residual Adapters (NeurIPS 2017),
  https://arxiv.org/abs/1705.08045 (series); Efficient Parametrization of Multi-domain Deep Neural Networks (CVPR 2018),
  https://arxiv.org/abs/1803.10082 (parallel). Departs from them: an adapter per stage, after its activation (the
  papers: per 3x3 convolution, before its BatchNorm and activation); scale and bias of the stages' own BatchNorm are
  not the task's; A is zero at the start (the authors' code draws it); the stages may learn too. BatchNorm before A is
  that of the authors' code.
  """
  if kind not in KINDS:
    raise InputError(f'residual_adapters kind: found {kind!r}, expected one of {list(KINDS)}.')
  check_flag('residual_adapters batch_norm', batch_norm)
  found = as_stages(stages, cuts)
  adapter = as_module(Adapter(batch_norm and kind == 'series'), 'adapters')

  def net(call, x):
    for stage, module in found.modules.items():
      y = call(('stages', stage), module, x)
      if stage in found.cuts:
        z, put = array_of(y)
        if not _is_array(z):
          raise InputError(f'residual_adapters stages: {stage!r} gives {describe(y)}, expected one array [B, ..., C].')
        y = put(call(('adapters', stage), adapter, z, z if kind == 'series' else _aligned(array_of(x)[0], z, stage)))
      x = y
    return x

  return merged(
    composed(net),
    heads,
    'adapters',
    make=lambda key, params, task: (params['adapters'], {}),
    merge=lambda theta, phi, state: {'stages': theta, 'adapters': phi},
    share=lambda params: params['stages'],
    frozen=frozen,
    stems=stems,
  )


class Adapter(nn.Module):
  """y + A x, or y + A BN(x).

  Attributes:
    batch_norm: BatchNorm of x.
  """

  batch_norm: bool = True

  @nn.compact
  def __call__(self, y, x, train: bool = False):
    """y f[B, ..., C], x f[B, ..., D] -> f[B, ..., C]."""
    if self.batch_norm:
      x = BatchNorm(dtype=y.dtype)(x, train)
    return y + nn.Dense(y.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, dtype=y.dtype)(x)


def _is_array(x) -> bool:
  return hasattr(x, 'shape') and x.ndim > 1 and arrays.is_float(x)


def _aligned(x: Array, y: Array, stage: str) -> Array:
  """The pixels of x f[B, ..., D] that a 1x1 convolution with the stage's stride reads: f[B, (those of y), D]."""
  same_axes = _is_array(x) and x.ndim == y.ndim
  strides = [_stride(n, m) for n, m in zip(x.shape[1:-1], y.shape[1:-1])] if same_axes else [None]
  if None in strides:
    raise InputError(
      f'residual_adapters: stage {stage!r} makes {describe(y)} of {describe(x)}, which no parallel 1x1 convolution '
      "does, expected as many axes and pixels of one stride; use other cuts or kind='series'."
    )
  picked = (slice(None, stride * m, stride) for stride, m in zip(strides, y.shape[1:-1]))
  return x[(slice(None), *picked)]


def _stride(n: int, m: int) -> int | None:
  """The stride that leaves m of n pixels, the last ones of an incomplete window kept or dropped.

  >>> _stride(7, 4), _stride(7, 3), _stride(8, 8), _stride(28, 24)
  (2, 2, 1, None)
  """
  return next((stride for stride in (n // m, -(-n // m)) if stride and m in (n // stride, -(-n // stride))), None)
