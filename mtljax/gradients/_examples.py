"""Every example an objective of its own: the Gramian of per-example gradients without the gradients.

The per-example gradient of a kernel W in y = x W is a product of two small factors, dW = sum_p x_p (x) d_p over
positions p, and the inner product of two of them is <dW_i, dW_j> = sum_pq <x_ip, x_jq> <d_ip, d_jq>. So the traced
gradient is looked at leaf by leaf: where it ends in such a product its factors are taken instead, and the Gramian needs
memory for activations, not for batch x parameters. Other leaves (biases, convolutions, embedding tables) hold the
gradients of the batch, one leaf at a time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs, linalg
from mtljax.base import Array, Batch, InputError, Model, PyTree, Task
from mtljax.gradients import _trees
from mtljax.gradients._program import Program

OBJECTIVES = ('tasks', 'examples', 'examples_tasks')


class Objectives(NamedTuple):
  """Losses, presence and Gramian of m objectives; a task's share of example i is alpha_t l_ti / count_t.

  The rows of a task's examples sum to its row alpha_t g_t: the Gramian of the tasks is that of blocks summed. `pull`
  is weights f[m] -> sum_i w_i g_i, of the same pass and so of the same dropout.
  """

  losses: Array
  present: Array
  gramian: Array
  pull: Callable[[Array], PyTree]


def count(batch: Batch, names: Sequence[str], objectives: str) -> int:
  """m: T for 'tasks', B for 'examples', the examples of all tasks (task by task) for 'examples_tasks'."""
  sizes = [inputs.batch_size(inputs.task_inputs(batch, name)[0]) for name in names]
  return {'tasks': len(names), 'examples': sizes[0], 'examples_tasks': sum(sizes)}[objectives]


def check(balancer, batch: Batch, objectives: str) -> None:
  """Raises on what objectives of examples do not go with."""
  where = f'objectives={objectives!r}'
  if balancer.level != 'gramian':
    raise InputError(f"{where}: found a balancer of level {balancer.level!r}, expected one of level 'gramian'.")
  if arrays.axis():
    raise InputError(f"{where}: found a step on slices of the batch, expected mode 'jit' or 'sharded'.")
  if inputs.is_multi_input(batch) and objectives == 'examples':
    raise InputError(
      f"{where}: found a multi-input batch, whose examples have one task each; expected 'examples_tasks'."
    )


def example_objectives(
  model: Model,
  tasks: Sequence[Task],
  params: PyTree,
  model_state: PyTree,
  batch: Batch,
  objectives: str,
  *,
  key: Array,
  alphas: Array,
  counts: Array,
  present: Array,
) -> Objectives:
  """Losses f[m], presence bool[m] and Gramian f[m, m] over the shared parameters; each example is run alone (vmap)."""
  multi = inputs.is_multi_input(batch)
  scales = jnp.where(present, alphas / jnp.maximum(counts, 1), 0)

  def group(members):
    data = {tasks[t].name: inputs.task_inputs(batch, tasks[t].name) for t in members}
    size = inputs.batch_size(next(iter(data.values()))[0])

    def one(shared, data, index):
      """Loss of one example over the tasks of the group, and whether it has a label."""
      example_key = jax.random.fold_in(key, index)
      data = jax.tree.map(lambda x: x[None], data)
      total, here, features = 0.0, False, None
      for t in members:
        task, (x, labels, mask) = tasks[t], data[tasks[t].name]
        own, state = params['tasks'][task.name], model_state['tasks'][task.name]
        task_key = arrays.name_key(example_key, task.name)
        if features is None or multi:
          z = x
          if model.stem is not None:
            stem_key = arrays.name_key(task_key, 'stem')
            z, state = model.stem(own, state, x, task=task.name, train=True, key=stem_key)
          seen = (task.name,) if multi else arrays.task_names(tasks)
          features, new_shared = model.trunk(
            shared, model_state['shared'], z, tasks=seen, train=True, key=arrays.name_key(example_key, 'shared')
          )
          _check_state(model_state['shared'], new_shared, 'shared')
        y, state = model.head(own, state, features, inputs=x, task=task.name, train=True, key=task_key)
        _check_state(model_state['tasks'][task.name], state, task.name)
        mask = jnp.ones(1, bool) if mask is None else mask
        labelled = mask.any() & present[t]
        y = arrays.select(labelled, *_trees.with_zeros(y))  # nothing comes back from where no label is
        values = task.loss(y, arrays.make_safe(labels, mask & labelled))
        mask = jnp.broadcast_to(arrays.expand_to(mask, values.ndim), values.shape)
        total += scales[t] * jnp.where(mask & labelled, values.astype(arrays.real_dtype()), 0).sum()
        here |= labelled
      return total, (total, here)

    return one, (params['shared'], data, jnp.arange(size))

  everybody = range(len(tasks))
  groups = [group(everybody)] if objectives == 'examples' else [group((t,)) for t in everybody]
  over_examples = (None, 0, 0)
  traced = [_Traced(jax.vmap(jax.grad(one, has_aux=True), over_examples), args) for one, args in groups]
  size = sum(one.size for one in traced)
  plans = [_factors(traced, leaf, size) for leaf in range(len(traced[0].rows))]
  losses, here, parts = zip(*(one.evaluate([plan and plan[g] for plan in plans]) for g, one in enumerate(traced)))
  losses, here = jnp.concatenate(losses), jnp.concatenate(here)
  G = jnp.zeros((size, size), arrays.real_dtype())
  for leaf in zip(*parts):  # of every group: x f[B, p, a] and d f[B, p, e], or rows f[B, 1, P]
    inner = []
    for side in zip(*leaf):
      stacked = jnp.concatenate(side)
      stacked = jnp.where(arrays.expand_to(here, 3), stacked, 0)  # whatever the inputs of what is absent hold
      stacked = stacked.astype(jnp.promote_types(stacked.dtype, arrays.real_dtype()))
      inner.append(jnp.einsum('ipa,jqa->ipjq', stacked, stacked, precision=linalg.HIGHEST))
    ones = [jnp.ones_like(inner[0])] * (2 - len(inner))
    G += jnp.einsum('ipjq,ipjq->ij', *inner, *ones, precision=linalg.HIGHEST)

  def pull(weights):
    total, start = jax.tree.map(jnp.zeros_like, params['shared']), 0
    for (one, (shared, *args)), part in zip(groups, traced):
      w, start = weights[start : start + part.size], start + part.size
      weighted = lambda shared, one=one, args=args, w=w: jnp.sum(w * jax.vmap(one, over_examples)(shared, *args)[0])
      some = here[start - part.size : start].any()
      total = _trees.tree_sum([total, arrays.select(some, *_trees.with_zeros(jax.grad(weighted)(shared)))])
    return total

  return Objectives(jnp.where(here, losses, 0), here, G, pull)


def _check_state(old, new, owner):
  """A floating state that changes (batch statistics) means that examples are not run one by one."""
  for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
    if arrays.is_float(before) and after is not before:
      raise InputError(
        f'objectives of examples: state {arrays.path_label(path)!r} of {owner!r} changes with the batch, expected '
        'layers that see one example at a time (GroupNorm or LayerNorm for BatchNorm).'
      )


class _Factor(NamedTuple):
  """One side of the product that makes a gradient: a value of the program, and how it becomes f[B, p, a]."""

  variable: Any
  order: tuple[int, ...]
  shape: tuple[int, int, int]


class _Traced:
  """The gradients of a group of examples, traced.

  Attributes:
    size: how many examples.
    rows: the results, a gradient f[B, *param] for every leaf of the shared parameters.
  """

  def __init__(self, function, args):
    self.program = Program(function, *args)
    *self.rows, self.losses, self.present = self.program.results
    self.size = self.program.shapes[1][0].shape[0]

  def evaluate(self, plans):
    """Losses f[B], presence bool[B], and for every leaf its two factors, or its rows where the plan is None."""
    flat = lambda var: _Factor(var, tuple(range(var.aval.ndim)), (self.size, 1, math.prod(var.aval.shape[1:])))
    wanted = [plan or (flat(var),) for plan, var in zip(plans, self.rows, strict=True)]
    variables = [self.losses, self.present, *(factor.variable for leaf in wanted for factor in leaf)]
    losses, present, *values = self.program.evaluate(variables)
    values = iter(values)
    return losses, present, [[next(values).transpose(f.order).reshape(f.shape) for f in leaf] for leaf in wanted]

  def factors(self, leaf: int):
    """The two sides of the product that a leaf ends in, and how the leaf lies in it; or None."""
    found = self.program.product(self.rows[leaf])
    if found is None:
      return None
    eqn, axes = found
    contracted, batched = eqn.params['dimension_numbers']
    if len(batched[0]) != 1 or axes[0] != 0:  # the examples are the one batch dimension, which comes first
      return None
    sides, layout = [], [axes]
    for var, over, example in zip(eqn.invars, contracted, batched):
      free = [d for d in range(var.aval.ndim) if d not in (*over, *example)]
      shape = tuple(math.prod(var.aval.shape[d] for d in dims) for dims in (example, over, free))
      sides.append(_Factor(var, (*example, *over, *free), shape))
      layout.append((shape[1], *(var.aval.shape[d] for d in free)))
    return tuple(sides), tuple(layout)


def _factors(traced: Sequence[_Traced], leaf: int, size: int) -> list[tuple[_Factor, _Factor]] | None:
  """Factors of a leaf in every group, alike in all and smaller than the m gradients; else None."""
  found = [one.factors(leaf) for one in traced]
  if not all(found) or len({layout for _, layout in found}) > 1:
    return None
  (x, d), _ = found[0]
  return [sides for sides, _ in found] if size * x.shape[1] ** 2 <= max(x.shape[2] * d.shape[2], size) else None
