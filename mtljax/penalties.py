"""Regularisers R(f): `Penalty(beta, value)`, added to the objective outside the balancer."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import InputError, Penalty, PyTree
from mtljax.relations import TaskGraph, TaskTree


def l2(beta: float | Callable, where: str = '.*', task: str | None = None) -> Penalty:
  """R = 1/2 sum theta^2, whose gradient is theta: beta is a weight decay inside the optimiser's gradient.

  Args:
    beta: number or optax schedule.
    where: regular expression searched for in a parameter's path ('shared/Dense_0/kernel', 'tasks/digit/bias').
    task: the task with which the penalty comes and goes.

  Returns:
    A `Penalty`.

  Raises:
    InputError: beta below 0 or not finite; while tracing, a pattern that matches nothing.

  >>> import jax.numpy as jnp
  >>> l2(0.1, where='shared').value({'shared': jnp.array([3.0, 4.0]), 'tasks': {}}).item()
  12.5
  """
  arrays.check_weight('l2 beta', beta)
  return Penalty(beta, lambda params: 0.5 * _total(lambda p: jnp.sum(p * p), params, where), task)


def l1(beta: float | Callable, where: str = '.*', task: str | None = None) -> Penalty:
  """R = sum |theta|; arguments as in `l2`."""
  arrays.check_weight('l1 beta', beta)
  return Penalty(beta, lambda params: _total(lambda p: jnp.sum(jnp.abs(p)), params, where), task)


def l2_sp(beta: float | Callable, start: PyTree, where: str = '.*', task: str | None = None) -> Penalty:
  """R = 1/2 sum (theta - theta_0)^2, L2 to a starting point (Li et al. 2018, https://arxiv.org/abs/1802.01483).

  Args:
    beta: number or optax schedule.
    start: theta_0, parameters with the same paths; those it has not are an error.
    where: regular expression searched for in a parameter's path.
    task: the task with which the penalty comes and goes.

  Returns:
    A `Penalty`.

  Raises:
    InputError: beta below 0 or not finite; while tracing, a pattern that matches nothing, parameters that `start` has
      not or has in another shape.
  """
  arrays.check_weight('l2_sp beta', beta)
  # copies: the parameters of a state that is donated to the step would be gone at the next trace
  origin = {arrays.path_label(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(start)}

  def value(params):
    total = jnp.zeros((), arrays.real_dtype())
    for label, leaf in _matching(params, where):
      if label not in origin:
        raise InputError(f'l2_sp start: no parameter {label!r}, found {sorted(origin)}.')
      if origin[label].shape != leaf.shape:
        raise InputError(f'l2_sp start: {label!r} has shape {origin[label].shape}, expected {leaf.shape}.')
      total += 0.5 * jnp.sum((leaf - origin[label]) ** 2)
    return total

  return Penalty(beta, value, task)


def tree_lasso(
  beta: float | Callable,
  tree: TaskTree,
  where: str = 'kernel',
  weights: Mapping[str, float] | None = None,
  *,
  eps: float = 1e-6,
) -> Penalty:
  """R = sum over nodes v of w_v sum_j |theta_j^v|_2: tasks that are close in the tree read the same features.

  theta_j^v holds what the heads of the tasks below v make of feature j: row j of their kernels f[..., in, out], all
  axes but the last being features, one after another. Of an array with less than two axes every entry is a feature.

  Args:
    beta: number or optax schedule.
    tree: the leaves are the tasks of the parameters. In a net of some of them (single-task baselines) a node's group is
      what it has of these.
    where: regular expression searched for in a parameter's path within its task ('kernel', 'head/Dense_0/kernel').
    weights: {node's label: w_v}, as `print(tree)` has them and a task's name for its leaf; those left out are 0. None
      is `tree_weights(tree)`.
    eps: norms are sqrt(|theta|^2 + eps^2) - eps, whose gradient at 0 is 0. So nothing becomes exactly 0 by itself:
      features that are selected stand out by orders of magnitude.

  Returns:
    A `Penalty`.

  Raises:
    InputError: beta below 0 or not finite, no tree, weights for other nodes or below 0, eps that is not positive;
      while tracing, a task that is no leaf, a pattern that matches nothing, heads whose paths or features differ.

  >>> a, b = jnp.array([[3.0], [0.0]]), jnp.array([[4.0], [1.0]])
  >>> params = {'shared': {}, 'tasks': {'a': {'kernel': a}, 'b': {'kernel': b}}}
  >>> round(tree_lasso(1.0, TaskTree(('a', 'b')), weights={'root': 1.0}).value(params).item(), 3)
  6.0

  Reference: Kim & Xing, Tree-Guided Group Lasso for Multi-Task Regression with Structured Sparsity (ICML 2010) and
  its journal version (Annals of Applied Statistics 6, 2012), https://arxiv.org/abs/0909.1373. Departs from them: heads
  with several outputs; a smooth norm under any optimiser instead of a proximal method; a tree keeps no heights of a
  dendrogram, so the balance between its levels is given (`tree_weights`).
  """
  arrays.check_weight('tree_lasso beta', beta)
  if not isinstance(tree, TaskTree):
    raise InputError(f'tree_lasso tree: found {tree!r}, expected an mtljax.relations.TaskTree.')
  if not eps > 0:
    raise InputError(f'tree_lasso eps: found {eps!r}, expected a number > 0.')
  weights = tree_weights(tree) if weights is None else dict(weights)
  arrays.check_names('tree_lasso weights', weights, [_name(node) for node in tree.nodes], all_of=False)
  for name, weight in weights.items():
    if not 0 <= weight < float('inf'):
      raise InputError(f'tree_lasso weights: found {weight!r} for {name!r}, expected a number >= 0.')
  groups = [(weights[_name(node)], node.tasks) for node in tree.nodes if weights.get(_name(node))]

  def value(params):
    total = jnp.zeros((), arrays.real_dtype())
    for leaves in _by_path('tree_lasso', params, where, tree.leaves, lambda leaf: _features(leaf).shape[:1]).values():
      squares = {task: jnp.sum(_features(leaf) ** 2, axis=1) for task, leaf in leaves.items()}
      for weight, tasks in groups:
        mine = [squares[task] for task in tasks if task in squares]
        if mine:
          total += weight * jnp.sum(jnp.sqrt(sum(mine) + eps**2) - eps)
    return total

  return Penalty(beta, value)


def tree_weights(tree: TaskTree, joint: float | Mapping[str, float] = 0.5) -> dict[str, float]:
  """w_v = g_v prod_{u above v} s_u at inner nodes and prod_{u above v} s_u at leaves, s = 1 - g: the paper's balance.

  The weights of the nodes above a task and of its leaf sum to 1, so that no task is penalised more than another.

  Args:
    tree: a `TaskTree`.
    joint: g_v from 0 (the children's features are chosen separately) to 1 (jointly), for all inner nodes or as
      {node's label: g_v}. In the paper s_v is the height of v in the dendrogram of the tasks, g_v = 1 - s_v.

  Returns:
    {label, or the task's name for a leaf: w_v}, for `tree_lasso`.

  >>> tree_weights(TaskTree((('a', 'b'), 'c')), {'root': 0.5, 'root.0': 0.75})
  {'root': 0.5, 'root.0': 0.375, 'a': 0.125, 'b': 0.125, 'c': 0.5}

  Reference: Kim & Xing 2010, see `tree_lasso`.
  """
  inner = [_name(node) for node in tree.nodes if len(node.tasks) > 1]
  joint = joint if isinstance(joint, Mapping) else dict.fromkeys(inner, joint)
  arrays.check_names('tree_weights joint', joint, inner)
  for name, g in joint.items():
    if not 0 <= g <= 1:
      raise InputError(f'tree_weights joint: found {g!r} for {name!r}, expected a number from 0 to 1.')
  weights, left = {}, {}
  for node in tree.nodes:  # a node before its children
    above, name = left.get(node.path[:-1], 1.0), _name(node)
    weights[name] = above * joint.get(name, 1.0)
    left[node.path] = above * (1 - joint.get(name, 1.0))
  return weights


def laplacian(beta: float | Callable, graph: TaskGraph, where: str = 'kernel') -> Penalty:
  """R = 1/2 sum_st A_st |theta_s - theta_t|^2 = tr(W L W'): heads that an edge joins are pulled together.

  A is the adjacency matrix, L = D - A the Laplacian and W f[P, T] has a task's parameters as a column. A pair of an
  undirected graph counts once with its weight; an edge of a directed graph counts half, in whichever direction:
  the distance does not know one, and both heads are pulled.

  Args:
    beta: number or optax schedule.
    graph: its nodes are the tasks of the parameters. In a net of some of them (single-task baselines) the edges between
      these count.
    where: regular expression searched for in a parameter's path within its task ('kernel', 'head/Dense_0/kernel').

  Returns:
    A `Penalty`.

  Raises:
    InputError: beta below 0 or not finite, no graph; while tracing, a task that is no node, a pattern that matches
      nothing, heads whose paths or shapes differ.

  >>> a, b = jnp.array([3.0, 1.0]), jnp.array([1.0, 0.0])
  >>> params = {'shared': {}, 'tasks': {'a': {'kernel': a}, 'b': {'kernel': b}}}
  >>> laplacian(1.0, TaskGraph(('a', 'b'), {('a', 'b'): 0.5})).value(params).item()
  2.5

  Reference: Evgeniou, Micchelli & Pontil, Learning Multiple Tasks with Kernel Methods (JMLR 6, 2005),
  https://www.jmlr.org/papers/v6/evgeniou05a.html. Departs from it: parameters of heads instead of linear functions in a
  reproducing kernel Hilbert space.
  """
  arrays.check_weight('laplacian beta', beta)
  if not isinstance(graph, TaskGraph):
    raise InputError(f'laplacian graph: found {graph!r}, expected an mtljax.relations.TaskGraph.')

  def value(params):
    total = jnp.zeros((), arrays.real_dtype())
    for leaves in _by_path('laplacian', params, where, graph.nodes, jnp.shape).values():
      edges = [edge for edge in graph.edges if edge[0] in leaves and edge[1] in leaves]
      for a, b, weight in edges:  # differences, not L: they are exactly 0 between equal heads
        total += (0.5 if graph.directed else 1.0) * weight * jnp.sum((leaves[a] - leaves[b]) ** 2)
    return total

  return Penalty(beta, value)


def _name(node) -> str:
  return node.tasks[0] if len(node.tasks) == 1 else node.label


def _features(leaf):
  """f[..., in, out] -> f[features, out]; every entry of smaller arrays is a feature."""
  return leaf.reshape(-1, leaf.shape[-1] if leaf.ndim > 1 else 1)


def _by_path(name, params, where, tasks, compared):
  """{path: {task: leaf}} of the tasks' parameters that match; `compared(leaf)` has to be equal over tasks."""
  if set(params['tasks']) - set(tasks):
    arrays.check_names(f'{name} tasks', tasks, params['tasks'])
  own = {task: dict(_matching(params['tasks'][task], where)) for task in sorted(params['tasks'])}
  first, *others = own
  for task in others:
    if set(own[task]) != set(own[first]):
      raise InputError(
        f'{name} where={where!r}: found the parameters {sorted(own[first])} of {first!r} and {sorted(own[task])} of '
        f'{task!r}, expected the same paths.'
      )
    for path, leaf in own[task].items():
      if compared(leaf) != compared(own[first][path]):
        raise InputError(
          f'{name}: {f"tasks/{task}/{path}"!r} has shape {leaf.shape}, expected that of '
          f'{f"tasks/{first}/{path}"!r}, {own[first][path].shape}.'
        )
  return {path: {task: own[task][path] for task in own} for path in own[first]}


def _matching(params, where):
  leaves, chosen = arrays.labelled(params), arrays.pattern('penalty where', where)
  found = [(label, leaf) for label, leaf in leaves.items() if chosen.search(label)]
  if not found:
    raise InputError(f'penalty: where={where!r} matches no parameter, found {list(leaves)}.')
  return found


def _total(function, params, where):
  return sum((function(leaf) for _, leaf in _matching(params, where)), jnp.zeros((), arrays.real_dtype()))
