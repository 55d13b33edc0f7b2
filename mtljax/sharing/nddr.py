"""NDDR-CNN: one net per task, whose channels are concatenated and projected back after every stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mtljax.base import InputError, Model
from mtljax.sharing.modules import as_module, by_task
from mtljax.sharing.stages import as_stages, check_flag, check_fraction, composed, near_identity, stack_streams, streams
from mtljax.trunks import BatchNorm


def nddr(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  own: float = 0.9,
  batch_norm: bool = True,
  activation: Callable = nn.relu,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """A stream of stages per task and, after every cut, x_t <- activation(BN(W_t [x_1, ..., x_T])).

  W_t f[T C, C] is a 1x1 convolution (a dense layer where there are no pixels). It starts as the blocks
  alpha_ts I, so that the net starts as nearly single-task nets, or any other mixture of them. Streams and projections
  are shared, as in `cross_stitch`: `shared/streams/<task>/<stage>/...`, `shared/units/<cut>/<task>/...`; the authors
  train the projections with a rate of their own, which a pattern of `task_optimizer` chooses (`'^shared/units/'`), and
  put weight decay on them (`penalties.l2(beta, where='shared/units/.*kernel')`).

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`.
    heads: {task: module}.
    cuts: stages followed by a projection; None is all of them.
    own: alpha_tt at the start; the rest of 1 is spread over the other tasks.
    batch_norm: `trunks.BatchNorm` after the projection, whose bias it replaces.
    activation: after the projection.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {task: z_t}; blocks of W_t are in alphabetical order of the tasks. Subsets of the tasks and
    multi-input batches are those of `cross_stitch`.

  Raises:
    InputError: as `cross_stitch`.

  >>> import jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = nddr(trunks.MLP((8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared']['units']['layer_0']['digit']['Dense_0']['kernel'].shape
  (16, 8)

  Reference: Gao, Ma, Zhao, Liu & Yuille, NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative
  Dimensionality Reduction (CVPR 2019), https://arxiv.org/abs/1801.08297. Departs from it: any trunk, streams that start
  at random; without the shortcut variant, which feeds all layers to the head.
  """
  check_fraction('nddr own', own)
  check_flag('nddr batch_norm', batch_norm)
  if not callable(activation):
    raise InputError(f'nddr activation: found {activation!r}, expected a function.')
  heads = by_task(heads, 'heads')
  tasks = sorted(heads)
  alpha = near_identity(len(tasks), own)
  projections = {
    task: as_module(Projection(tuple(alpha[index].tolist()), batch_norm, activation), f'units[{task!r}]')
    for index, task in enumerate(tasks)
  }

  def unit(call, xs):
    x = jnp.concatenate(list(stack_streams(xs)), axis=-1)
    return {task: call((task,), projections[task], x) for task in tasks}

  return streams(as_stages(stages, cuts), heads, composed(unit), stems=stems)


class Projection(nn.Module):
  """f[B, ..., T C] -> f[B, ..., C], starting as sum_s alpha_s x_s.

  Attributes:
    alpha: T numbers.
    batch_norm, activation: what follows the projection.
  """

  alpha: tuple[float, ...]
  batch_norm: bool = True
  activation: Callable = nn.relu

  @nn.compact
  def __call__(self, x, train: bool = False):
    channels = x.shape[-1] // len(self.alpha)

    def blocks(key, shape, dtype=jnp.float32):
      return jnp.asarray(np.kron(np.asarray(self.alpha)[:, None], np.eye(channels)), dtype)

    x = nn.Dense(channels, use_bias=not self.batch_norm, kernel_init=blocks, dtype=x.dtype)(x)
    if self.batch_norm:
      x = BatchNorm(dtype=x.dtype)(x, train)
    return self.activation(x)
