"""The contract table of sharing architectures: one row each, and a small engine of its own to hold them against.

An architecture gets its row here and is then held to `sharing/test_contract.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtljax import heads, sharing, trunks
from mtljax.relations import TaskGraph, TaskTree

BATCH = 6


class Case(NamedTuple):
  """One row.

  Attributes:
    build: () -> Model.
    inputs: {task: shape of one example}; equal shapes and no stem make a single-input batch.
    outputs: {task: shape of one example's outputs}.
    stochastic: the training pass depends on the key.
    stateful: the training pass changes the model state.
    keeps: the parts that keep their own values, as `keeps_own_values` names them.
    rtol: of the pullback against a directional derivative (bf16 is coarse).
  """

  build: Callable[[], Any]
  inputs: Mapping[str, tuple[int, ...]]
  outputs: Mapping[str, tuple[int, ...]]
  stochastic: bool = False
  stateful: bool = False
  keeps: tuple[str, ...] = ()
  rtol: float = 1e-3


class NnxTrunk(nnx.Module):
  """Linear, BatchNorm, dropout in a list of layers."""

  def __init__(self, rngs):
    self.layers = nnx.List(
      [nnx.Linear(5, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)],
    )

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return nnx.relu(x)


class Gated(nn.Module):
  """A head that reads the task's own inputs beside the features."""

  @nn.compact
  def __call__(self, features, *, inputs, train):
    gate = nn.sigmoid(nn.Dense(features.shape[-1])(inputs))
    return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(gate * features))


class Tokens(nn.Module):
  """A stem for int tokens: mean of their embeddings."""

  @nn.compact
  def __call__(self, tokens):
    return nn.Embed(7, 5)(tokens).mean(axis=1)


def pair(width: int, activation=jnp.tanh):
  """(init, apply) of a dense layer."""

  def init(key, x):
    return {'w': jax.random.normal(key, (x.shape[-1], width)) / np.sqrt(x.shape[-1]), 'b': jnp.zeros((width,))}

  def apply(params, x):
    return activation(x @ params['w'] + params['b'][None])

  return init, apply


def noisy_pair(width: int):
  """A pair whose apply takes `train` and `key`."""
  init, dense = pair(width, lambda x: x)

  def apply(params, x, *, train, key):
    y = dense(params, x)
    return y + jax.random.normal(key, y.shape) if train else y

  return init, apply


def counting_module(width: int) -> sharing.Module:
  """A full `Module`: a pair with a counter of training passes as its state."""
  init, dense = pair(width)

  def apply(params, state, x, *, train, key):
    return dense(params, x), {'count': state['count'] + 1} if train else state

  return sharing.Module(lambda key, x: (init(key, x), {'count': jnp.zeros((), jnp.int32)}), apply)


def same(shape, *tasks):
  return {task: shape for task in tasks}


CASES = {
  'hard-linen': Case(
    lambda: sharing.hard(trunks.MLP((8, 8)), {'b': nn.Dense(3), 'a': nn.Dense(2)}),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (2,)},
  ),
  'hard-linen-stateful': Case(
    lambda: sharing.hard(
      trunks.MLP((8,), batch_norm=True, dropout=0.3),
      {'a': heads.classify(3, hidden=(8,)), 'b': heads.regress(), 'c': Gated()},
    ),
    inputs=same((5,), 'a', 'b', 'c'),
    outputs={'a': (3,), 'b': (), 'c': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'hard-lenet-bf16': Case(
    lambda: sharing.hard(
      trunks.LeNet((4,), hidden=8, kernel_size=3, batch_norm=True, dtype=jnp.bfloat16),
      {'a': heads.classify(3, hidden=(8,), dtype=jnp.bfloat16), 'b': heads.multilabel(2)},
    ),
    inputs=same((6, 7), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    stateful=True,
    rtol=5e-2,
  ),
  'hard-nnx': Case(
    lambda: sharing.hard(
      NnxTrunk, {'a': functools.partial(nnx.Linear, 8, 2), 'b': lambda rngs: nnx.Linear(8, 3, rngs=rngs)}
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'hard-nnx-instance': Case(
    lambda: sharing.hard(NnxTrunk(nnx.Rngs(3)), {'a': nnx.Linear(8, 2, rngs=nnx.Rngs(4)), 'b': nn.Dense(2)}),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (2,)},
    stochastic=True,
    stateful=True,
    keeps=("heads['a']", 'trunk'),
  ),
  'hard-pairs': Case(
    lambda: sharing.hard(pair(8), {'a': noisy_pair(2), 'b': pair(3), 'c': counting_module(2)}),
    inputs=same((5,), 'a', 'b', 'c'),
    outputs={'a': (2,), 'b': (3,), 'c': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'hard-stems': Case(
    lambda: sharing.hard(
      counting_module(8),
      heads={'image': nn.Dense(2), 'text': functools.partial(nnx.Linear, 8, 3), 'numbers': pair(2)},
      stems={'image': trunks.MLP((5,), batch_norm=True, dropout=0.3), 'text': Tokens(), 'numbers': pair(5)},
    ),
    inputs={'image': (4, 4), 'text': (3,), 'numbers': (2,)},
    outputs={'image': (2,), 'text': (3,), 'numbers': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'mmoe-stateful': Case(
    lambda: sharing.mmoe(
      trunks.MLP((8,), batch_norm=True, dropout=0.3), {'a': heads.classify(3, hidden=(8,)), 'b': Gated()}, num_experts=3
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (3,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'cgc-mixed': Case(
    lambda: sharing.cgc(
      shared=[pair(8), NnxTrunk],
      own=NnxTrunk,
      heads={'a': nn.Dense(2), 'b': pair(3)},
      gates={'a': None, 'b': trunks.MLP((8, 4), dropout=0.2)},
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'ple-three-levels': Case(
    lambda: sharing.ple(
      [trunks.MLP((8,), batch_norm=True, dropout=0.3), nn.Dense(6), pair(7)],
      [pair(8), counting_module(6), nn.Dense(7)],
      {'a': nn.Dense(2), 'b': nn.Dense(3)},
      num_shared=2,
      num_own=1,
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'dselect_k-bf16': Case(
    lambda: sharing.dselect_k(
      trunks.MLP((8,), dtype=jnp.bfloat16),
      {'a': heads.classify(3, hidden=(8,), dtype=jnp.bfloat16), 'b': heads.multilabel(2)},
      num_experts=5,
      gamma=4.0,
    ),
    inputs=same((2, 3), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    rtol=5e-2,
  ),
  'ple-stems': Case(
    lambda: sharing.ple(
      [pair(8), nn.Dense(6)],
      [nn.Dense(8), nn.Dense(6)],
      {'text': Gated(), 'numbers': pair(3)},
      num_shared=2,
      num_own=1,
      stems={'text': Tokens(), 'numbers': trunks.MLP((5,), dropout=0.3)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (3,), 'numbers': (3,)},
    stochastic=True,
  ),
  'soft-stems': Case(
    lambda: sharing.soft(
      pair(8), {'text': nn.Dense(2), 'numbers': Gated()}, stems={'text': Tokens(), 'numbers': nn.Dense(5)}
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
    stochastic=True,
  ),
  'soft-stateful': Case(
    lambda: sharing.soft(
      trunks.MLP((8,), batch_norm=True, dropout=0.3), {'b': nn.Dense(3), 'a': nn.Dense(2)}, penalty='trace'
    ),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'cross_stitch-stems': Case(
    lambda: sharing.cross_stitch(
      [counting_module(6), pair(8)],
      {'text': nn.Dense(2), 'numbers': pair(3)},
      channelwise=True,
      stems={'text': Tokens(), 'numbers': trunks.MLP((5,), dropout=0.3)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'cross_stitch-mlp': Case(
    lambda: sharing.cross_stitch(
      trunks.MLP((8, 8), batch_norm=True, dropout=0.3), {'b': nn.Dense(3), 'a': nn.Dense(2)}
    ),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'sluice-mixed': Case(
    lambda: sharing.sluice(
      [pair(8), functools.partial(nnx.Linear, 8, 8), nn.Dense(8)], {'a': Gated(), 'b': pair(2)}, cuts=(0, 2)
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    stochastic=True,
  ),
  'nddr-lenet-bf16': Case(
    lambda: sharing.nddr(
      trunks.LeNet((4,), hidden=8, kernel_size=3, dtype=jnp.bfloat16),
      {'a': heads.classify(3, hidden=(8,), dtype=jnp.bfloat16), 'b': heads.multilabel(2)},
    ),
    inputs=same((6, 7), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    stateful=True,
    rtol=5e-2,
  ),
  'cross_task_attention-lenet': Case(
    lambda: sharing.cross_task_attention(
      trunks.LeNet((4,), hidden=8, kernel_size=3), {'a': nn.Dense(2), 'b': nn.Dense(3)}, num_heads=2
    ),
    inputs=same((6, 7), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
  ),
  'knowledge-fixed': Case(
    lambda: sharing.knowledge(
      trunks.MLP((8,), dropout=0.3),
      {'a': Gated(), 'b': pair(2)},
      matrix=np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4) ** 3,
      num_heads=2,
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    stochastic=True,
  ),
  'knowledge-stems': Case(
    lambda: sharing.knowledge(
      pair(8),
      {'text': nn.Dense(2), 'numbers': pair(3)},
      size=(3, 5),
      width=6,
      stems={'text': Tokens(), 'numbers': pair(5)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
  ),
  'mtan-lenet': Case(
    lambda: sharing.mtan(
      trunks.LeNet((4, 4), hidden=8, kernel_size=3), {'a': nn.Dense(2), 'b': nn.Dense(3)}, reduction=1
    ),
    inputs=same((6, 7), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stateful=True,
  ),
  'lora-stateful': Case(
    lambda: sharing.lora(
      trunks.MLP((8,), batch_norm=True, dropout=0.3), {'b': nn.Dense(3), 'a': Gated()}, rank=2, scale=0.5
    ),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'lora-frozen-stems': Case(
    lambda: sharing.lora(
      counting_module(8),
      {'text': nn.Dense(2), 'numbers': pair(3)},
      where='w$',
      frozen={'w': np.eye(5, 8), 'b': np.zeros(8)},
      stems={'text': Tokens(), 'numbers': pair(5)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
    stateful=True,
  ),
  'residual_adapters-series': Case(
    lambda: sharing.residual_adapters(
      trunks.MLP((8, 6), batch_norm=True, dropout=0.3), {'b': nn.Dense(3), 'a': nn.Dense(2)}
    ),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'residual_adapters-parallel-bf16': Case(
    lambda: sharing.residual_adapters(
      trunks.LeNet((4, 4), hidden=8, kernel_size=3, dtype=jnp.bfloat16),
      {'a': heads.classify(3, hidden=(8,), dtype=jnp.bfloat16), 'b': heads.multilabel(2)},
      cuts=('conv_0', 'conv_1'),
      kind='parallel',
    ),
    inputs=same((6, 7, 1), 'a', 'b'),
    outputs={'a': (3,), 'b': (2,)},
    rtol=5e-2,
  ),
  'layer_wise-nnx': Case(
    lambda: sharing.layer_wise(NnxTrunk, {'a': nn.Dense(2), 'b': Gated()}, shared='kernel|scale'),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'connection_wise-fixed': Case(
    lambda: sharing.connection_wise(
      trunks.LeNet((4,), hidden=8, kernel_size=3), {'a': nn.Dense(2), 'b': pair(3)}, density=0.5
    ),
    inputs=same((6, 7), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
  ),
  'connection_wise-learned': Case(
    lambda: sharing.connection_wise(trunks.MLP((8, 8)), {'b': nn.Dense(3), 'a': pair(2)}, learned='sigmoid'),
    inputs=same((5,), 'b', 'a'),
    outputs={'b': (3,), 'a': (2,)},
  ),
  'tree-uneven': Case(
    lambda: sharing.tree(
      [trunks.MLP((6,), batch_norm=True, dropout=0.3), counting_module(7), pair(8)],
      {'a': nn.Dense(2), 'b': Gated(), 'c': pair(3)},
      TaskTree((('a', 'b'), 'c')),
      cuts=(0, 1),
    ),
    inputs=same((5,), 'a', 'b', 'c'),
    outputs={'a': (2,), 'b': (3,), 'c': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'tree-stems': Case(
    lambda: sharing.tree(
      [counting_module(6), pair(8)],
      {'text': nn.Dense(2), 'numbers': pair(3), 'image': nn.Dense(2)},
      TaskTree(('text', ('numbers', 'image'))),
      stems={'text': Tokens(), 'numbers': trunks.MLP((5,), dropout=0.3), 'image': trunks.MLP((5,))},
    ),
    inputs={'text': (3,), 'numbers': (2,), 'image': (4, 4)},
    outputs={'text': (2,), 'numbers': (3,), 'image': (2,)},
    stochastic=True,
    stateful=True,
  ),
  'graph-directed': Case(
    lambda: sharing.graph(
      trunks.MLP((8, 8), batch_norm=True, dropout=0.3),
      {'a': nn.Dense(2), 'b': nn.Dense(3), 'c': nn.Dense(2)},
      TaskGraph(('b', 'a', 'c'), {('a', 'b'): 2.0, ('b', 'c'): 0.5}, directed=True),
    ),
    inputs=same((5,), 'a', 'b', 'c'),
    outputs={'a': (2,), 'b': (3,), 'c': (2,)},
    stochastic=True,
    stateful=True,
  ),
  # At the perturbed point of these rows every node is somebody's choice, and so is every block: others get no gradient.
  'learning_to_branch-five-tasks': Case(
    lambda: sharing.learning_to_branch(
      [trunks.MLP((6,), batch_norm=True, dropout=0.3), pair(7), functools.partial(nnx.Linear, 7, 4)],
      {'a': nn.Dense(2), 'b': Gated(), 'c': pair(3), 'd': pair(2), 'e': pair(1)},
      cuts=(0, 1),
      width=(1, 2, 2),
    ),
    inputs=same((5,), *'abcde'),
    outputs={'a': (2,), 'b': (3,), 'c': (3,), 'd': (2,), 'e': (1,)},
    stochastic=True,
    stateful=True,
  ),
  'learning_to_branch-stems': Case(
    lambda: sharing.learning_to_branch(
      [counting_module(6), pair(8)],
      {'text': nn.Dense(2), 'numbers': pair(3)},
      hard=False,
      stems={'text': Tokens(), 'numbers': trunks.MLP((5,), dropout=0.3)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'adashare-mlp': Case(
    lambda: sharing.adashare(
      trunks.MLP((8, 8, 8), batch_norm=True, dropout=0.3), {'a': nn.Dense(2), 'b': pair(3)}, start=0.8, hard=True
    ),
    inputs=same((5,), 'a', 'b'),
    outputs={'a': (2,), 'b': (3,)},
    stochastic=True,
    stateful=True,
  ),
  'adashare-stems': Case(
    lambda: sharing.adashare(
      [pair(5), counting_module(6), functools.partial(nnx.Linear, 6, 6)],
      {'text': nn.Dense(2), 'numbers': pair(3)},
      start=0.8,
      stems={'text': Tokens(), 'numbers': pair(5)},
    ),
    inputs={'text': (3,), 'numbers': (2,)},
    outputs={'text': (2,), 'numbers': (3,)},
    stochastic=True,
    stateful=True,
  ),
}


def make_inputs(case: Case, model, seed: int = 0) -> dict[str, jax.Array]:
  """{task: inputs}; one array for all tasks unless the architecture has stems."""
  draw = np.random.default_rng(seed)

  def example(task):
    shape = (BATCH, *case.inputs[task])
    tokens = task == 'text'
    return jnp.asarray(draw.integers(0, 7, shape) if tokens else draw.normal(size=shape).astype(np.float32))

  if model.stem is not None:
    return {task: example(task) for task in case.inputs}
  return dict.fromkeys(case.inputs, example(next(iter(case.inputs))))


def forward(model, params, state, inputs, *, train=False, key=None, features=None):
  """All tasks of `inputs`, trunk once (or once per task behind stems): ({task: outputs}, model_state)."""
  shared, tasks, outputs = state['shared'], dict(state['tasks']), {}
  for task, x in inputs.items():
    mode = dict(train=train, key=None if key is None else jax.random.fold_in(key, len(task)))
    if model.stem is not None:
      z, tasks[task] = model.stem(params['tasks'][task], tasks[task], x, task=task, **mode)
      features, shared = model.trunk(params['shared'], shared, z, tasks=(task,), **mode)
    elif features is None:
      features, shared = model.trunk(params['shared'], shared, x, tasks=tuple(inputs), train=train, key=key)
    y, tasks[task] = model.head(params['tasks'][task], tasks[task], features, inputs=x, task=task, **mode)
    outputs[task] = y
  return outputs, {'shared': shared, 'tasks': tasks}


def scalar_loss(task: str, outputs: jax.Array) -> jax.Array:
  """A random linear function of the outputs plus their square: no gradient is zero by chance."""
  weights = np.random.default_rng(len(task)).normal(size=outputs.shape).astype(np.float32)
  return jnp.sum(weights * outputs + outputs**2)


def perturbed(params, seed: int = 1):
  """Parameters away from their initial zeros and ones."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(x + (0.3 * draw.normal(size=x.shape)).astype(x.dtype)), jax.device_get(params)
  )
