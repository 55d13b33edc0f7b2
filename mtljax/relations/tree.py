"""Tasks as the leaves of a tree."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mtljax import arrays
from mtljax.base import InputError
from mtljax.relations.matrix import square


class Node(NamedTuple):
  """A node of a `TaskTree`.

  Attributes:
    path: positions of the children on the way from the root, () for the root itself.
    tasks: the tasks below it, the one task of a leaf.
  """

  path: tuple[int, ...]
  tasks: tuple[str, ...]

  @property
  def label(self) -> str:
    """'root', 'root.0', 'root.0.1': what a printed tree and the parameters of `sharing.tree` call the node."""
    return '.'.join(['root', *map(str, self.path)])


@dataclasses.dataclass(frozen=True)
class TaskTree:
  """A tree whose leaves are tasks, with any branching.

  Children have no order: they are sorted by their first task, so trees that differ in the order of children only are
  equal, print alike and give the same parameters. A node with one child is that child.

  Args:
    nested: a task's name, or a tuple or list of such trees: `(('a', 'b'), 'c')`.

  Raises:
    InputError: an empty tree or node, a name that is no string, a task that occurs twice.

  >>> tree = TaskTree((('b', 'a'), 'c'))
  >>> print(tree)
  root
  ├── root.0
  │   ├── a
  │   └── b
  └── c
  >>> tree.leaves, tree.depth, tree.groups(1)
  (('a', 'b', 'c'), 2, (('a', 'b'), ('c',)))
  >>> tree == TaskTree.parse('(c, (a, b))')
  True
  """

  nested: Any

  def __post_init__(self):
    object.__setattr__(self, 'nested', _normal(self.nested, self.nested))
    leaves = self.leaves
    twice = sorted({task for task in leaves if leaves.count(task) > 1})
    if twice:
      raise InputError(f'TaskTree: found {twice} more than once in {self.literal()}, expected every task once.')

  @classmethod
  def parse(cls, text: str) -> 'TaskTree':
    """The tree of a literal, '((a, b), c)', for command lines; names with brackets or commas stand in quotes.

    Args:
      text: what `literal` prints.

    Returns:
      A `TaskTree`.

    Raises:
      InputError: `text` is no such literal.
    """
    tokens = re.findall(r"""[(),]|'[^']*'|"[^"]*"|[^(),'"\s](?:[^(),]*[^(),\s])?|\S""", text)
    expected = f"TaskTree.parse: found {text!r}, expected a tree such as '((a, b), c)': "

    def take(what):
      if not tokens or (what and tokens[0] != what):
        raise InputError(f'{expected}{what or "a task"!r} instead of {tokens[0] if tokens else "the end"!r}.')
      return tokens.pop(0)

    def node():
      token = take('')
      if token in '),':
        raise InputError(f'{expected}a task or "(" instead of {token!r}.')
      if token != '(':
        return token.strip('\'"')
      children = [node()]
      while tokens and tokens[0] == ',':
        take(',')
        if tokens and tokens[0] == ')':  # ('a',) is how Python writes it
          break
        children.append(node())
      take(')')
      return tuple(children)

    nested = node()
    if tokens:
      raise InputError(f'{expected}nothing after it instead of {tokens[0]!r}.')
    return cls(nested)

  @classmethod
  def from_merges(cls, merges: Sequence[Sequence[int]], names: Sequence[str]) -> 'TaskTree':
    """The binary tree of a clustering: `children_` of scikit-learn, the first two columns of scipy's linkage.

    Args:
      merges: int[T - 1, 2]; row k joins two clusters into number T + k, and task i is cluster i.
      names: the T tasks.

    Returns:
      A `TaskTree`.

    Raises:
      InputError: a merge of a cluster that does not exist yet or was merged before, too few merges.
    """
    clusters = dict(enumerate(names))
    for k, (a, b) in enumerate(merges):
      if a == b or a not in clusters or b not in clusters:
        raise InputError(f'merges: row {k} joins {a} and {b}, expected two of the clusters {sorted(clusters)}.')
      clusters[len(names) + k] = (clusters.pop(a), clusters.pop(b))
    if len(clusters) != 1:
      raise InputError(f'merges: found {len(merges)} for {len(names)} tasks, expected {len(names) - 1}.')
    return cls(clusters.popitem()[1])

  @classmethod
  def from_similarity(cls, similarity, names: Sequence[str], groups: int = 2) -> 'TaskTree':
    """Agglomerative clustering with average linkage: again and again the two most similar clusters are joined.

    Args:
      similarity: f[T, T], symmetric; the diagonal is not used. Of equal similarities the first pair is joined.
      names: the T tasks.
      groups: the children of the root, `tree.groups(1)`; all other nodes are binary.

    Returns:
      A `TaskTree`.

    Raises:
      InputError: a matrix that is not f[T, T], symmetric and finite, groups outside of 2 to T.

    >>> similarity = [[1, 0.1, 0.9], [0.1, 1, 0.3], [0.9, 0.3, 1]]
    >>> TaskTree.from_similarity(similarity, ('a', 'b', 'c')).literal()
    '((a, c), b)'
    """
    similarity = square('similarity', similarity, names, symmetric=True)
    _whole('groups', groups, 2, max(len(names), 2))
    clusters = [([i], name) for i, name in enumerate(names)]  # members and subtree
    while len(clusters) > groups:
      pairs = [(a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters))]
      a, b = max(pairs, key=lambda pair: similarity[np.ix_(clusters[pair[0]][0], clusters[pair[1]][0])].mean())
      members, subtree = clusters.pop(b)
      clusters[a] = (clusters[a][0] + members, (clusters[a][1], subtree))
    return cls(tuple(subtree for _, subtree in clusters))

  @classmethod
  def from_covariance(cls, covariance, names: Sequence[str], groups: int = 2) -> 'TaskTree':
    """`from_similarity` of the correlations r_st = c_st / sqrt(c_ss c_tt) of a task covariance f[T, T]."""
    covariance = square('covariance', covariance, names, symmetric=True)
    scale = np.diag(covariance)
    if not (scale > 0).all():
      raise InputError(f'covariance: found the diagonal {scale.tolist()}, expected positive variances.')
    return cls.from_similarity(covariance / np.sqrt(np.outer(scale, scale)), names, groups)

  @property
  def leaves(self) -> tuple[str, ...]:
    """The tasks, from top to bottom of the printed tree."""
    return _tasks(self.nested)

  @property
  def nodes(self) -> tuple[Node, ...]:
    """All nodes, a node before its children; leaves are those with one task."""

    def below(tree, path):
      yield Node(path, _tasks(tree))
      for index, child in enumerate(() if isinstance(tree, str) else tree):
        yield from below(child, (*path, index))

    return tuple(below(self.nested, ()))

  @property
  def depth(self) -> int:
    """Edges from the root to the deepest leaf: 0 for a tree of one task, 1 for a star."""
    return max(len(node.path) for node in self.nodes)

  def lineage(self, task: str) -> tuple[Node, ...]:
    """The nodes from the root to the leaf of a task."""
    arrays.check_names('task', [task], self.leaves, all_of=False)
    return tuple(node for node in self.nodes if task in node.tasks)

  def groups(self, level: int) -> tuple[tuple[str, ...], ...]:
    """The partition of the tasks at a depth; leaves above it are groups of their own.

    Args:
      level: 0 is the root (one group), `depth` and beyond every task by itself.

    Returns:
      Tuples of tasks.
    """
    _whole('level', level, 0)
    return tuple(
      node.tasks for node in self.nodes if len(node.path) == level or (len(node.tasks) == 1 and len(node.path) < level)
    )

  def limited(self, depth: int) -> 'TaskTree':
    """The tree with nodes below a depth made leaves: clusters of `groups(depth - 1)` are stars.

    >>> TaskTree(((('a', 'b'), 'c'), 'd')).limited(2).literal()
    '((a, b, c), d)'
    """
    _whole('depth', depth, 1)

    def cut(tree, left):
      if isinstance(tree, str):
        return tree
      return _tasks(tree) if left == 1 else tuple(cut(child, left - 1) for child in tree)

    return TaskTree(cut(self.nested, depth))

  def literal(self) -> str:
    """'((a, b), c)', what `parse` reads."""

    def text(tree):
      if not isinstance(tree, str):
        return f'({", ".join(map(text, tree))})'
      return tree if re.fullmatch(r'[^(),\'"\s]([^(),]*[^(),\s])?', tree) else repr(tree)

    return text(self.nested)

  def __str__(self) -> str:
    def lines(tree, label):
      if isinstance(tree, str):
        yield tree
        return
      yield label
      for index, child in enumerate(tree):
        last = index == len(tree) - 1
        first, *rest = lines(child, f'{label}.{index}')
        yield ('└── ' if last else '├── ') + first
        yield from (('    ' if last else '│   ') + line for line in rest)

    return '\n'.join(lines(self.nested, 'root'))


def _normal(tree, whole):
  if isinstance(tree, str) and tree:
    return tree
  if not isinstance(tree, (tuple, list)) or not tree:
    raise InputError(f'TaskTree: found {tree!r} in {whole!r}, expected names of tasks in nested tuples.')
  children = sorted((_normal(child, whole) for child in tree), key=_tasks)
  return children[0] if len(children) == 1 else tuple(children)


def _tasks(tree) -> tuple[str, ...]:
  return (tree,) if isinstance(tree, str) else tuple(task for child in tree for task in _tasks(child))


def _whole(name: str, value, least: int, most: float = float('inf')) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
    limit = f'from {least} to {most}' if most < float('inf') else f'of at least {least}'
    raise InputError(f'{name}: found {value!r}, expected a whole number {limit}.')
