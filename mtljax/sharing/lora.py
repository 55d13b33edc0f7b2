"""LoRA: a shared or frozen net, and per task a low-rank matrix added to each of its kernels."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import InputError, Model, PyTree
from mtljax.sharing._merged import matching, merged, nested
from mtljax.sharing.modules import as_module


def lora(
  trunk: Any,
  heads: Mapping[str, Any],
  *,
  rank: int = 4,
  scale: float = 1.0,
  where: str = 'kernel$',
  frozen: bool | PyTree = False,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """Task t runs the net with the kernels theta + scale A_t B_t, A_t f[I, rank] and B_t f[rank, O].

  A kernel f[..., O] (convolutions: f[h, w, I, O]) is the matrix that its leading axes make, [h w I, O]. A is random, B
  zero, so that all tasks start from the same net. The kernels are put together before the net is run, once per task:
  whatever a trunk is, its cost is that of T nets.

  Args:
    trunk: inputs -> features.
    heads: {task: module}.
    rank: of A B; a kernel with a shorter side takes that.
    scale: the paper's alpha / rank.
    where: regular expression searched for in the path of a trunk's parameter ('Dense_0/kernel'): those that are
      adapted. Others (biases) are as they are for every task.
    frozen: False trains the trunk with the adapters, a balancing method sees it. Parameters of a trained net, a pytree
      like those of the trunk, freeze it: they are in `model_state['shared']['frozen']`, `params['shared']` is empty
      and only adapters and heads learn. True freezes the trunk as it is initialised (an nnx instance has its values).
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with `params['tasks'][t] = {'lora': {<path>: {'a', 'b'}}, 'head': ...}`. A trunk's BatchNorm has
    statistics of its own for every task, in `model_state['tasks'][t]['trunk']`, and they move when it is frozen too.
    The trunk hands on parameters and no features: use `at='params'`.

  Raises:
    InputError: a part that is no module, `rank` below 1, `scale` that is not positive, a pattern that is none; while
      initialising, a pattern that matches no parameter or one that is no matrix, frozen values of other names or
      shapes.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = lora(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, rank=2)
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['tasks']['parity']['lora'])
  {'kernel': {'a': (3, 2), 'b': (2, 8)}}

  Reference: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen, LoRA: Low-Rank Adaptation of Large Language Models
  (ICLR 2022), https://arxiv.org/abs/2106.09685. Departs from it: the base may learn too; a convolution is one matrix
  [h w I, O] (the authors' code takes [h O, w I] with h times the rank) and so is a projection to attention heads
  [I heads, d], where the paper's is [I, heads d]; no dropout before A.
  """
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise InputError(f'lora rank: found {rank!r}, expected a whole number of at least 1.')
  if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 0 < scale < math.inf:
    raise InputError(f'lora scale: found {scale!r}, expected a number > 0.')
  found = arrays.pattern('lora where', where)

  def make(key, params, task):
    factors = {}
    for label, theta in matching('lora where', params, found).items():
      if theta.ndim < 2:
        raise InputError(f'lora where: {where!r} matches {label!r} of shape {theta.shape}, expected kernels f[..., O].')
      rows, columns = math.prod(theta.shape[:-1]), theta.shape[-1]
      inner = min(rank, rows, columns)
      a = jax.random.normal(arrays.name_key(key, label), (rows, inner), theta.dtype) / math.sqrt(rows)
      factors[label] = {'a': a, 'b': jnp.zeros((inner, columns), theta.dtype)}
    return nested(factors), {}

  def merge(theta, phi, state):
    factors = arrays.labelled(phi)

    def add(path, leaf):
      label = arrays.path_label(path)
      if f'{label}/a' not in factors:
        return leaf
      return leaf + scale * (factors[f'{label}/a'] @ factors[f'{label}/b']).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(add, theta)

  return merged(as_module(trunk, 'trunk'), heads, 'lora', make, merge, frozen=frozen, stems=stems)
