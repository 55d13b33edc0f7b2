"""Learning to branch: several nodes per layer, each of which learns from which node of the layer before it reads."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.base import Array, InputError, Model, PyTree
from mtljax.relations import TaskTree
from mtljax.sharing import _clock
from mtljax.sharing.hard import hard as hard_sharing
from mtljax.sharing.modules import Module, by_task, describe
from mtljax.sharing.stages import array_of, as_stages, check_flag, composed


def learning_to_branch(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  cuts: Sequence[str | int] | None = None,
  width: int | Sequence[int] | None = None,
  temperature: float | Callable | None = None,
  warmup: int = 0,
  hard: bool = True,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """x_jc = sum_p w_jcp f_{j-1,p}(x_{j-1,p}), w_jc a Gumbel-softmax over the nodes p of the layer before.

      s_jc = softmax((a_jc + g) / tau(n)), g Gumbel noise                     n training passes of the task so far
      w_jc = one-hot(argmax s_jc), with the derivative of s_jc                (`hard`; without it w_jc = s_jc)
      w_jc = 1 / nodes                                                        while n < warmup
      w_jc = one-hot(argmax a_jc)                                             in evaluation

  A layer is what lies between two cuts; its nodes are copies of it, drawn anew. Nodes of the first layer read the
  trunk's inputs, the heads choose a node of the last layer. A choice of one has no parameters. As every node has one
  parent, a sample is a tree; `learned_tree` and `branches` read off the likeliest one.

  Any task may come to read any node: nodes (`shared/nodes/<layer>/<node>/<stage>`) and their choices
  (`shared/choices/<layer>/logits` f[nodes, nodes before]) are shared. The last choice is made by one task alone:
  `tasks/<task>/choice/logits` f[nodes]. A rate of
  their own: `task_optimizer(shared={'^shared/choices/': ..., '': ...}, tasks={t: {'choice/': ..., '': ...}})`.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`.
    heads: {task: module}.
    cuts: stages that end a layer; None is all of them. What comes after the last cut is a layer too.
    width: nodes of a layer: a number, one per layer, or None, as many as tasks.
    temperature: tau, a number or an optax schedule; None is max(10 / sqrt(n + 1), 0.5).
    warmup: steps in which all branches are equal, in evaluation too.
    hard: one tree per pass, straight-through; False mixes all nodes.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features f[B, nodes, ...]. All nodes are computed in every pass, in evaluation too; train
    `sharing.tree` from the learned tree for the smaller net. Noise is drawn from the key of the pass: on several
    devices, and for every task of a multi-input batch, anew.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, a width below 1 or not one per layer, a temperature
      that is not positive, a negative warm-up, layer outputs that are no single array.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> heads = {'digit': nn.Dense(10), 'parity': nn.Dense(2)}
  >>> model = learning_to_branch(trunks.MLP((8, 8)), heads, width=(2, 3))
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared']['choices']['1']['logits'].shape, params['tasks']['parity']['choice']['logits'].shape
  ((3, 2), (3,))
  >>> branches(params)
  [{'digit': 0, 'parity': 0}, {'digit': 0, 'parity': 0}]
  >>> params['tasks']['parity']['choice']['logits'] = jnp.array([0.0, 2.0, 1.0])
  >>> params['shared']['choices']['1']['logits'] = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
  >>> branches(params)
  [{'digit': 0, 'parity': 1}, {'digit': 0, 'parity': 1}]

  Reference: Guo, Lee & Ulbricht, Learning to Branch for Multi-Task Learning (ICML 2020),
  https://arxiv.org/abs/2006.01895; Jang, Gu & Poole, Categorical Reparameterization with Gumbel-Softmax (ICLR 2017),
  https://arxiv.org/abs/1611.01144. The schedules are our choice: the temperature falls with the steps, not the epochs;
  logits start at 0, so that all tasks take the first node until something is learned; equal branches are averaged, so
  that activations keep their scale.
  """
  heads = by_task(heads, 'heads')
  found = as_stages(stages, cuts)
  layers = _layers(found)
  widths = _widths(width, len(layers), len(heads))
  tau = _clock.temperature('temperature', temperature, 10.0)
  _clock.check_steps('warmup', warmup)
  check_flag('learning_to_branch hard', hard)

  def trunk(call, x, *, tasks):
    z, put = None, None  # nodes side by side; what makes one of them an input of the next layer
    for index, (members, count) in enumerate(zip(layers, widths)):
      layer, outputs = str(index), []
      if z is not None and z.shape[1] > 1:
        choice = _choice((count, z.shape[1]), heads, tau, warmup, hard)
        z = call(('choices', layer), choice, z, tasks=tasks)
      for node in range(count):
        y = x if z is None else put(z[:, min(node, z.shape[1] - 1)])  # an only node is everybody's parent
        for stage in members:
          y = call(('nodes', layer, str(node), stage), found.modules[stage], y)
        y, put_y = array_of(y)
        outputs.append(y)
      z, put = _side_by_side(outputs, members[-1]), put_y
    return put(z)

  def own(task):
    choice = _choice((widths[-1],), (task,), tau, warmup, hard)

    def walk(call, z, *, inputs):
      z, put = array_of(z)
      z = call(('choice',), choice, z, tasks=(task,)) if widths[-1] > 1 else z[:, 0]
      return call(('head',), heads[task], put(z), inputs=inputs)

    return composed(walk)

  return hard_sharing(composed(trunk), {task: own(task) for task in heads}, stems)


def branches(params: PyTree) -> list[dict[str, int]]:
  """Which node of every layer a task runs through, by the likeliest choices.

  Args:
    params: of a `learning_to_branch` model.

  Returns:
    [{task: node}], a layer each, from the inputs to the heads: a grouping of the tasks that gets finer from layer to
    layer.

  Raises:
    InputError: parameters of another architecture.
  """
  shared = params.get('shared', {})
  if not isinstance(shared, Mapping) or 'nodes' not in shared:
    raise InputError("branches params: found no 'shared/nodes', expected the parameters of `learning_to_branch`.")
  layers = sorted(shared['nodes'], key=int, reverse=True)
  node = {}
  for task, part in sorted(params['tasks'].items()):
    part = part['head'] if 'stem' in part else part
    if 'choice' not in part and len(shared['nodes'][layers[0]]) > 1:
      raise InputError(f"branches params: found {sorted(part)} in task {task!r}, expected the 'choice' of a last node.")
    node[task] = int(np.argmax(part['choice']['logits'])) if 'choice' in part else 0
  found = [node]
  for layer in layers[:-1]:
    if layer in shared.get('choices', {}):
      parents = np.argmax(shared['choices'][layer]['logits'], axis=-1)
      node = {task: int(parents[child]) for task, child in node.items()}
    else:
      node = dict.fromkeys(node, 0)
    found.append(node)
  return found[::-1]


def learned_tree(params: PyTree) -> TaskTree:
  """The likeliest tree of the tasks: those that run through the same nodes up to a layer are one branch up to there.

  Layers in which nothing branches leave no trace; `branches` has them. Arguments and errors as there.
  """
  groupings = branches(params)

  def grow(tasks, depth):
    if depth == len(groupings):
      return tuple(tasks)
    groups = {}
    for task in tasks:
      groups.setdefault(groupings[depth][task], []).append(task)
    return tuple(grow(group, depth + 1) for group in groups.values())

  return TaskTree(grow(list(groupings[0]), 0))


def _layers(found) -> list[list[str]]:
  """Names of the stages of every layer."""
  layers = [[]]
  for stage in found.modules:
    layers[-1].append(stage)
    if stage in found.cuts:
      layers.append([])
  return [layer for layer in layers if layer]


def _widths(width, layers: int, tasks: int) -> list[int]:
  one = width is None or isinstance(width, numbers.Integral)
  widths = [tasks if width is None else width] * layers if one else width
  fine = isinstance(widths, Sequence) and not isinstance(widths, str) and len(widths) == layers
  if not fine or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) and n > 0 for n in widths):
    raise InputError(
      f'learning_to_branch width: found {width!r}, expected a whole number of nodes >= 1, or {layers} of them, one per '
      'layer.'
    )
  return [int(n) for n in widths]


def _side_by_side(outputs: list, stage: str) -> Array:
  """Outputs f[B, ...] of the nodes -> f[B, nodes, ...]."""
  for y in outputs:
    if not hasattr(y, 'shape') or y.ndim < 2:
      raise InputError(f'stages: a layer ends with {describe(y)} of {stage!r}, expected one array [B, ..., C].')
  return jnp.stack(outputs, axis=1)


def weights(logits: Array, noise: Array | None, tau: Array | float, hard: bool) -> Array:
  """w f[..., P] of logits f[..., P]; without noise the argmax, hard.

  >>> a = jnp.log(jnp.array([0.2, 0.8]))
  >>> weights(a, None, 1.0, True).tolist(), [round(w, 3) for w in weights(a, jnp.zeros(2), 0.5, False).tolist()]
  ([0.0, 1.0], [0.059, 0.941])
  """
  soft = jax.nn.softmax(logits if noise is None else (logits + noise) / tau, axis=-1)
  if noise is not None and not hard:
    return soft
  return jax.nn.one_hot(soft.argmax(axis=-1), soft.shape[-1], dtype=soft.dtype) + (soft - jax.lax.stop_gradient(soft))


def _choice(shape: tuple[int, ...], readers, tau: Callable, warmup: int, hard: bool) -> Module:
  """z f[B, P, ...] -> f[B, C, ...] with logits of shape (C, P), or f[B, ...] with (P,); its state is a clock."""

  def init(key, z, *, tasks=()):
    return {'logits': jnp.zeros(shape, jnp.float32)}, _clock.start(readers)

  def apply(params, state, z, *, train, key, tasks=()):
    logits, n = params['logits'], _clock.step(state, tasks)
    noise = jax.random.gumbel(key, shape, logits.dtype) if train else None
    w = weights(logits, noise, tau(n), hard)
    w = jnp.where(n < warmup, 1 / shape[-1], w).astype(z.dtype)
    spec = 'cp,bp...->bc...' if len(shape) == 2 else 'p,bp...->b...'
    return jnp.einsum(spec, w, z), _clock.tick(state, tasks, train)

  return Module(init, apply)
