"""MTAN: one shared net, and per task a small net of attention masks over its stages."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax.base import InputError, Model
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, as_module, by_task
from mtljax.sharing.stages import array_of, as_stages, check_flag, composed
from mtljax.trunks import BatchNorm, Conv, max_pool


def mtan(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  reduction: int = 4,
  batch_norm: bool = True,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """Task t sees shared stages through masks of its own: z_j = a_j * p_j, a_j = sigmoid(h_j(g_j([u_j, f_j(z_{j-1})]))).

  The cuts end the blocks of the trunk. p_j is the output of block j, u_j that of its last stage but one (p_j itself in
  a block of one stage); g and h are 1x1 convolutions (dense layers where there are no pixels), f a 3x3 one, pooled to
  the size of p_j; g and f end in BatchNorm and ReLU. Head t reads the last z. The trunk hands on {cut: {'u', 'p'}}. A
  mask is reached by one task only: it is in `params['tasks'][task]['attention'][cut]`, and no balancing method changes
  its gradient's direction.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`. `ResNet.blocks` cut after the last block
      of every stage is the net of the authors' code.
    heads: {task: module}.
    cuts: stages that end a block; None is all of them. Stages after the last one, without parameters (pooling), are run
      by every task on its own z.
    reduction: g has the channels of p divided by this.
    batch_norm: `trunks.BatchNorm` in f, g and h, whose biases it replaces.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model`.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, `reduction` below 1, stages with parameters after
      the last cut, shapes of successive blocks that no pooling can match.

  >>> import jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = mtan(trunks.MLP((8, 8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, cuts=('layer_1', 'layer_2'))
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> sorted(params['shared']), sorted(params['tasks']['digit']['attention'])
  (['layer_0', 'layer_1', 'layer_2'], ['layer_1', 'layer_2'])

  Reference: Liu, Johns & Davison, End-to-End Multi-Task Learning with Attention (CVPR 2019),
  https://arxiv.org/abs/1803.10704. Departs from it: f belongs to the task (the paper shares it between tasks).
  """
  if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
    raise InputError(f'mtan reduction: found {reduction!r}, expected a whole number of at least 1.')
  check_flag('mtan batch_norm', batch_norm)
  found = as_stages(stages, cuts)
  names = list(found.modules)
  ends = [names.index(cut) + 1 for cut in found.cuts]
  blocks = {cut: names[start:end] for cut, start, end in zip(found.cuts, [0, *ends], ends)}
  tail = {stage: _bare(found.modules[stage], stage) for stage in names[ends[-1] :]}
  attention = as_module(Attention(reduction, batch_norm), 'attention')

  def trunk(call, x):
    features = {}
    for cut, members in blocks.items():
      outputs = []
      for stage in members:
        x = call((stage,), found.modules[stage], x)
        outputs.append(x)
      features[cut] = dict(zip(('p', 'u'), outputs[:-3:-1]))
    return features

  def own(head):
    def walk(call, features, *, inputs):
      z = ()
      for cut in blocks:
        p, put = array_of(features[cut]['p'])
        u, _ = array_of(features[cut].get('u', p))
        z = (call(('attention', cut), attention, u, p, *z),)
      y = put(*z)
      for stage, module in tail.items():
        y = call(('tail', stage), module, y)
      return call(('head',), head, y, inputs=inputs)

    return composed(walk)

  return hard(composed(trunk), {task: own(head) for task, head in by_task(heads, 'heads').items()}, stems)


class Attention(nn.Module):
  """a * p with the mask a = sigmoid(h(g([u, f(z)]))).

  Attributes:
    reduction: g has C / reduction channels.
    batch_norm: BatchNorm after f, g and h.
  """

  reduction: int = 4
  batch_norm: bool = True

  @nn.compact
  def __call__(self, u, p, z=None, train: bool = False):
    """u f[B, ..., D], p f[B, ..., C], attended features of the block before f[B, ..., E] -> f[B, ..., C]."""
    channels, dtype, use_bias = p.shape[-1], p.dtype, not self.batch_norm

    def normalised(x, name):
      return BatchNorm(dtype=dtype, name=f'{name}_norm')(x, train) if self.batch_norm else x

    seen = [_fitted(u, p)]
    if z is not None:
      if z.ndim > 2:
        z = Conv(channels, (3,) * (z.ndim - 2), use_bias=use_bias, dtype=dtype, name='f')(z)
      else:
        z = nn.Dense(channels, use_bias=use_bias, dtype=dtype, name='f')(z)
      seen.append(_fitted(nn.relu(normalised(z, 'f')), p))
    x = jnp.concatenate(seen, axis=-1)
    x = nn.Dense(max(channels // self.reduction, 1), use_bias=use_bias, dtype=dtype, name='g')(x)
    x = nn.relu(normalised(x, 'g'))
    x = normalised(nn.Dense(channels, use_bias=use_bias, dtype=dtype, name='h')(x), 'h')
    return nn.sigmoid(x) * p


def _fitted(x, p):
  """x f[B, ..., E] in the pixels of p: max pooling where it divides, else interpolation, a mean where p has none."""
  if x.shape[:-1] == p.shape[:-1]:
    return x
  if p.ndim == 2:
    return x.mean(axis=tuple(range(1, x.ndim - 1)))
  if x.ndim != p.ndim:
    raise InputError(f'mtan stages: shape {p.shape} of a block cannot follow {x.shape}, expected as many axes.')
  window = x.shape[1] // p.shape[1]
  if p.ndim == 4 and window and all(n // window == m for n, m in zip(x.shape[1:3], p.shape[1:3])):
    return max_pool(x, window)
  return jax.image.resize(x, (*p.shape[:-1], x.shape[-1]), 'linear')


def _bare(module: Module, stage: str) -> Module:
  """The stage, if it has neither parameters nor state."""

  def init(key, x):
    params, state = module.init(key, x)
    if jax.tree.leaves((params, state)):
      raise InputError(f'mtan cuts: stage {stage!r} after the last cut has parameters, expected a cut at it or later.')
    return params, state

  return Module(init, module.apply)
