"""related_tasks: made-up tasks whose relations are known, for methods that learn relations, trees and graphs.

All tasks read the same features, y_t = phi(x)' w_t + noise with phi a fixed random layer, so that a trunk has something
to share. The w_t are Gaussian with a task covariance that a tree or a graph says: related tasks have similar w_t, and
with conflict tasks of different groups have opposite ones, whose gradients then are opposite as well.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtljax.arrays import check_names, check_seed
from mtljax.base import InputError, PyTree
from mtljax.relations import TaskGraph, TaskTree

SIZES = {'train': 200, 'val': 200, 'test': 1000}
KINDS = ('regression', 'classification')


class RelatedTasks(NamedTuple):
  """What `make` returns.

  Attributes:
    splits: {'train', 'val', 'test'} -> examples; labels are f32[N], for classification 0 or 1.
    names: the tasks, in the order of the arrays below.
    groups: int[T], the branch at the tree's root, or the connected part of the graph, that each task belongs to.
    covariance: f[T, T], of which the weights are drawn; its diagonal is 1.
    weights: f[T, K], those that were drawn: signal_t = phi(x)' w_t / sqrt(K).
  """

  splits: dict[str, PyTree]
  names: tuple[str, ...]
  groups: np.ndarray
  covariance: np.ndarray
  weights: np.ndarray


def make(
  relations: TaskTree | TaskGraph,
  *,
  conflict: float = 0.5,
  relatedness: float = 0.8,
  kind: str = 'regression',
  sizes: Mapping[str, int | Mapping[str, int]] = SIZES,
  num_inputs: int = 16,
  num_features: int = 32,
  noise: float = 0.3,
  seed: int = 0,
) -> RelatedTasks:
  """Draws tasks and examples: x ~ N(0, I), y_t = phi(x)' w_t / sqrt(K) + noise e, cov(w_s, w_t) = Sigma_st I.

  phi(x) = tanh(A x + b), every one of the K features scaled to mean 0 and variance 1; the signal's variance is about 1.
  Weights, features and each split have random streams of their own: other sizes give the same tasks.

  Args:
    relations: a tree or a graph of the tasks; `covariance` says what it means.
    conflict: 0 where groups agree to 1 where they are opposite, as in `covariance`.
    relatedness: share of a task's variance that it has in common with its group, as in `covariance`.
    kind: 'regression', or 'classification' with labels y_t > 0.
    sizes: examples of each split; a number, with the same inputs for all tasks, or {task: number} with inputs of their
      own (multi-input examples).
    num_inputs, num_features: length of x, and K.
    noise: standard deviation.
    seed: of everything.

  Returns:
    A `RelatedTasks`; the splits hold {'inputs': f32[N, num_inputs], 'labels': {task: f32[N]}}, or {task: {'inputs',
    'labels'}}.

  Raises:
    InputError: relations that are neither, numbers out of range, sizes without a split or a task.

  >>> made = make(TaskTree((('a', 'b'), ('c', 'd'))), conflict=1.0, sizes={'train': 100, 'val': 10, 'test': 10})
  >>> made.groups.tolist(), made.splits['train']['labels']['a'].shape
  ([0, 0, 1, 1], (100,))
  >>> made.covariance[0].tolist()
  [1.0, 0.8, -0.8, -0.8]
  """
  names, groups, sigma = covariance(relations, conflict=conflict, relatedness=relatedness)
  if kind not in KINDS:
    raise InputError(f'kind: found {kind!r}, expected one of {KINDS}.')
  if not 0 <= noise < float('inf'):
    raise InputError(f'noise: found {noise!r}, expected a number >= 0.')
  for argument, number in (('num_inputs', num_inputs), ('num_features', num_features)):
    _check_count(argument, number)
  check_names('sizes', sizes, SIZES)
  check_seed('seed', seed)

  weights = draw_weights(sigma, num_features, seed)
  features = _feature_map(num_inputs, num_features, np.random.default_rng((seed, 1)))

  def examples(rows, count):
    """Labels of some tasks, by their places, for inputs drawn here."""
    random = np.random.default_rng((seed, *rows))
    x = random.normal(size=(count, num_inputs)).astype(np.float32)
    y = features(x) @ weights.T / np.sqrt(num_features) + noise * random.normal(size=(count, len(names)))
    return x, np.asarray(y > 0 if kind == 'classification' else y, np.float32)

  splits = {}
  for place, split in enumerate(SIZES):
    size = sizes[split]
    if isinstance(size, Mapping):
      check_names(f'sizes[{split!r}]', size, names)
      splits[split] = {}
      for t, name in enumerate(names):
        x, y = examples((2, place, t), _check_count(f'sizes[{split!r}][{name!r}]', size[name]))
        splits[split][name] = {'inputs': x, 'labels': y[:, t]}
    else:
      x, y = examples((2, place), _check_count(f'sizes[{split!r}]', size))
      splits[split] = {'inputs': x, 'labels': {name: y[:, t] for t, name in enumerate(names)}}
  return RelatedTasks(splits, names, groups, sigma, weights)


def covariance(
  relations: TaskTree | TaskGraph, *, conflict: float = 0.5, relatedness: float = 0.8
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
  """Names, groups int[T] and Sigma f[T, T] with ones on its diagonal: w_t = sqrt(rho) u_group + sqrt(1 - rho) v_t.

  The G groups are the branches at a tree's root, the connected parts of a graph. Their u have the correlation
  r = 1 - conflict G / (G - 1): all the same at conflict 0, independent at (G - 1) / G, and at 1 as opposite as G of
  them can be, -1 for two groups. v is related within a group only. Tree: every further inner node that two tasks have
  in common takes the share rho of what variance is left, so that tasks whose last common node is k levels below the
  root have Sigma = 1 - (1 - rho)^k. Graph: (I + L)^-1 of its Laplacian L, scaled to a diagonal of ones; the direction
  of edges is ignored.

  Args:
    relations: tree or graph.
    conflict: in [0, 1].
    relatedness: rho, in [0, 1].

  Raises:
    InputError: numbers out of range, relations of another type.

  >>> names, groups, sigma = covariance(TaskTree(((('a', 'b'), 'c'), 'd')), conflict=0.75, relatedness=0.5)
  >>> sigma.tolist()[0]
  [1.0, 0.75, 0.5, -0.25]
  """
  for argument, number in (('conflict', conflict), ('relatedness', relatedness)):
    if not 0 <= number <= 1:
      raise InputError(f'{argument}: found {number!r}, expected a number from 0 to 1.')
  if isinstance(relations, TaskTree):
    names, groups, within = _of_tree(relations, relatedness)
  elif isinstance(relations, TaskGraph):
    names, groups, within = _of_graph(relations)
  else:
    raise InputError(f'relations: found {type(relations).__name__}, expected a TaskTree or a TaskGraph.')
  number = groups.max() + 1
  between = 1 - conflict * number / max(number - 1, 1)
  same = groups[:, None] == groups
  sigma = relatedness * np.where(same, 1.0, between) + (1 - relatedness) * within
  return names, groups, sigma.round(12)  # 0.8, not 0.8000000000000002


def draw_weights(covariance: np.ndarray, num_features: int, seed: int = 0) -> np.ndarray:
  """w f[T, K]: K independent draws of N(0, covariance), in columns."""
  values, Q = np.linalg.eigh(covariance)
  root = Q * np.sqrt(np.maximum(values, 0)) @ Q.T  # symmetric: no matter which sign the eigenvectors have
  return root @ np.random.default_rng((seed, 0)).normal(size=(len(covariance), num_features))


def _of_tree(tree, relatedness):
  """Names, groups, and the covariance of v: what two tasks of a group have in common below the group's node."""
  names = tree.leaves
  labels = [_labels(tree.groups(level), names) for level in range(1, tree.depth + 1)] or [np.zeros(1, int)]
  below = sum((row[:, None] == row for row in labels[1:]), np.zeros((len(names),) * 2, int))
  within = np.where(labels[0][:, None] == labels[0], 1 - (1 - relatedness) ** below, 0.0)
  np.fill_diagonal(within, 1)
  return names, labels[0], within


def _of_graph(graph):
  names, adjacency = graph.nodes, graph.adjacency()
  reach = np.linalg.matrix_power(adjacency + adjacency.T + np.eye(len(names)) > 0, len(names))
  kernel = np.linalg.inv(np.eye(len(names)) + graph.laplacian())
  scale = np.sqrt(np.diag(kernel))
  return names, np.unique(reach.argmax(axis=1), return_inverse=True)[1], kernel / np.outer(scale, scale)


def _labels(groups, names):
  return np.array([next(g for g, members in enumerate(groups) if name in members) for name in names])


def _feature_map(num_inputs, num_features, random):
  A = random.normal(size=(num_inputs, num_features)) * 1.5 / np.sqrt(num_inputs)
  b = random.normal(size=num_features) / 2
  sample = np.tanh(random.normal(size=(4096, num_inputs)) @ A + b)
  mean, std = sample.mean(axis=0), sample.std(axis=0)
  return lambda x: (np.tanh(x @ A + b) - mean) / std


def _check_count(argument: str, number) -> int:
  if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
    raise InputError(f'{argument}: found {number!r}, expected a whole number of at least 1.')
  return int(number)
