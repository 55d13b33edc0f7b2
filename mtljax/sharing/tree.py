"""Branched networks: a trunk that splits where a tree of tasks does."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtljax import arrays
from mtljax.base import InputError, Model
from mtljax.relations import TaskTree
from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, by_task
from mtljax.sharing.stages import Stages, as_stages, composed


def tree(
  stages: Any,
  heads: Mapping[str, Any],
  tree: TaskTree | str | tuple | None = None,
  *,
  cuts: Sequence[str | int] | None = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """Every node of a task tree has stages of its own, after those of its parent: z_v = f_v(z_parent(v)), y_t = h_t(z_t).

  A tree of depth D cuts the trunk into D + 1 blocks. The root runs the first and an inner node at depth d a copy of
  block d; they are in `params['shared']`, as `root/<stage>`, `root.0/<stage>`, `root.0.1/<stage>`, the names that
  `print(tree)` shows. A leaf at depth d runs copies of the blocks d to D, which only its task reaches: they are in
  `params['tasks'][task]`, as {'stages': ..., 'head': ...}. Leaves at different depths so have nets of the same depth.
  The root is shared even if it is the only node. `TaskTree.limited` makes a deep tree fit a trunk of few stages.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`; every node gets copies of its own.
    heads: {task: module}.
    tree: the leaves are the tasks; also what `TaskTree.parse` or `TaskTree` takes, '((a, b), c)' on a command line.
      None is a star, whose default cut makes it hard sharing.
    cuts: the D stages that end blocks 0 to D - 1. None is the last D: the leaves have heads only, inner nodes below the
      root one stage each and the root what is left.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {node: z}, for the nodes that have leaves. A subset of the tasks has the same shared
    parameters and the same numbers; it runs the nodes above it only, and so does every task of a multi-input batch.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, other than D cuts, fewer stages than D, leaves that
      are not the tasks of the heads.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> heads = {'car': nn.Dense(1), 'depth': nn.Dense(2), 'normals': nn.Dense(3)}
  >>> model = tree(trunks.MLP((8, 8, 8)), heads, TaskTree((('depth', 'normals'), 'car')), cuts=(0, 1))
  >>> params, _ = model.init(jax.random.key(0), dict.fromkeys(heads, jnp.ones((4, 3))))
  >>> {node: list(blocks) for node, blocks in params['shared'].items()}
  {'root': ['layer_0'], 'root.1': ['layer_1']}
  >>> [(task, sorted(own.get('stages', ()))) for task, own in params['tasks'].items()]
  [('car', ['layer_1', 'layer_2']), ('depth', ['layer_2']), ('normals', ['layer_2'])]

  References: Lu, Kumar, Zhai, Cheng, Javidi & Feris, Fully-adaptive Feature Sharing in Multi-Task Networks with
  Applications in Person Attribute Classification (CVPR 2017), https://arxiv.org/abs/1611.05377; Vandenhende,
  Georgoulis, De Brabandere & Van Gool, Branched Multi-Task Networks: Deciding What Layers To Share (BMVC 2020),
  https://arxiv.org/abs/1904.02920. Departs from them: the tree is given (`TaskTree.from_similarity` clusters
  affinities, greedily and not by their search), branches are as wide as the trunk and start at random.
  """
  heads = by_task(heads, 'heads')
  tree = _as_tree(tuple(heads) if tree is None else tree)
  arrays.check_names('tree leaves', tree.leaves, heads)
  found, blocks = _blocks(stages, cuts, tree.depth)
  inner = [node for node in tree.nodes if len(node.tasks) > 1 or not node.path]
  readers = {task: tree.lineage(task)[-2:][0] for task in tree.leaves}  # the parent, or the root itself

  def trunk(tasks):
    def walk(call, x):
      outputs = {}
      for node in inner:
        if set(node.tasks) & set(tasks):
          parent = outputs.get(node.path[:-1], x)
          outputs[node.path] = _run(call, (node.label,), found, blocks[len(node.path)], parent)
      return {readers[task].label: outputs[readers[task].path] for task in sorted(tasks)}

    return composed(walk)

  def apply(params, state, x, *, train, key, tasks):
    z, new = trunk(tasks).apply(params, state, x, train=train, key=key)
    return z, {**state, **new}

  def own(task, head):
    node = readers[task]
    members = [stage for block in blocks[len(node.path) + 1 :] for stage in block]

    def walk(call, features, *, inputs):
      z = _run(call, ('stages',), found, members, features[node.label])
      return call(('head',), head, z, inputs=inputs)

    return composed(walk)

  shared = Module(lambda key, x: trunk(tree.leaves).init(key, x), apply)
  return hard(shared, {task: own(task, head) for task, head in heads.items()}, stems)


def _as_tree(tree) -> TaskTree:
  if isinstance(tree, TaskTree):
    return tree
  return TaskTree.parse(tree) if isinstance(tree, str) else TaskTree(tree)


def _blocks(stages: Any, cuts: Sequence[str | int] | None, depth: int) -> tuple[Stages, list[list[str]]]:
  """The stages and the names of those in each of the depth + 1 blocks."""
  several = isinstance(cuts, (tuple, list))
  if several and len(cuts) != depth:
    raise InputError(f'cuts: found {cuts!r}, expected {depth} different ones, the depth of the tree.')
  cuts = None if several and not cuts else cuts
  found = as_stages(stages, cuts)
  names = list(found.modules)
  if len(names) < depth:
    raise InputError(f'tree: found depth {depth} and the stages {names}, expected a depth of at most {len(names)}.')
  chosen = found.cuts[len(names) - depth :] if cuts is None else found.cuts
  ends = [names.index(cut) + 1 for cut in chosen]
  return found, [names[start:end] for start, end in zip([0, *ends], [*ends, len(names)])]


def _run(call, path: tuple[str, ...], stages: Stages, members: Sequence[str], x):
  for stage in members:
    x = call((*path, stage), stages.modules[stage], x)
  return x
