"""Tasks as the nodes of a weighted graph."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtljax import arrays
from mtljax.base import InputError
from mtljax.relations.matrix import square


@dataclasses.dataclass(frozen=True)
class TaskGraph:
  """Weighted relations between tasks; an edge a -> b of a directed graph says that b receives from a.

  Args:
    nodes: tasks, in the order of the axes of `adjacency` and `laplacian`.
    edges: {(a, b): weight}; the attribute is a tuple of (a, b, weight), sorted. Edges of weight 0 are left out.
    directed: whether (a, b) differs from (b, a); if not, a pair is given once.

  Raises:
    InputError: no nodes or one twice, an edge of an unknown node, from a node to itself or given twice, a weight that
      is negative or not finite.

  >>> graph = TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.5, ('c', 'b'): 2.0})
  >>> print(graph)
  3 tasks (a, b, c), 2 edges
  a -- b  0.5
  b -- c  2
  >>> graph.adjacency().tolist()
  [[0.0, 0.5, 0.0], [0.5, 0.0, 2.0], [0.0, 2.0, 0.0]]
  """

  nodes: tuple[str, ...]
  edges: Any
  directed: bool = False

  def __post_init__(self):
    nodes = tuple(self.nodes) if isinstance(self.nodes, Iterable) and not isinstance(self.nodes, str) else ()
    if not nodes or len(set(nodes)) < len(nodes) or not all(isinstance(node, str) and node for node in nodes):
      raise InputError(f'TaskGraph nodes: found {self.nodes!r}, expected names of tasks, every one once.')
    given = self.edges
    if isinstance(given, Mapping):
      given = [(*pair, weight) if isinstance(pair, tuple) else (pair, weight) for pair, weight in given.items()]
    if not isinstance(given, Iterable) or isinstance(given, str) or not all(isinstance(e, tuple) for e in given):
      raise InputError(f'TaskGraph edges: found {self.edges!r}, expected {{(task, task): weight}}.')
    if not isinstance(self.directed, bool):
      raise InputError(f'TaskGraph directed: found {self.directed!r}, expected True or False.')
    weights = {}
    for edge in given:
      number = len(edge) == 3 and isinstance(edge[2], numbers.Real) and not isinstance(edge[2], bool)
      if not number:
        raise InputError(f'TaskGraph edges: found {edge!r}, expected {{(task, task): weight}}.')
      a, b, weight = edge
      unknown = [node for node in (a, b) if node not in nodes]
      if unknown:
        raise InputError(f'TaskGraph edges: found the unknown node {unknown[0]!r} in {(a, b)}, expected {nodes}.')
      if a == b:
        raise InputError(f'TaskGraph edges: found {(a, b)}, expected no edge from a task to itself.')
      if not 0 <= weight < float('inf'):
        raise InputError(f'TaskGraph edges: found the weight {weight!r} of {(a, b)}, expected a number >= 0.')
      pair = (a, b) if self.directed else tuple(sorted((a, b)))
      if pair in weights:
        raise InputError(f'TaskGraph edges: found {pair} twice, expected every pair once.')
      weights[pair] = float(weight)
    object.__setattr__(self, 'nodes', nodes)
    object.__setattr__(self, 'edges', tuple((*pair, weight) for pair, weight in sorted(weights.items()) if weight))

  @classmethod
  def from_adjacency(cls, matrix, names: Sequence[str], threshold: float, directed: bool = False) -> 'TaskGraph':
    """The graph of the entries above a threshold: what is left of a learned adjacency or of correlations.

    Args:
      matrix: f[T, T], A_st the weight of s -> t; symmetric unless `directed`. The diagonal is not used.
      names: the T tasks.
      threshold: >= 0; entries that are not above it (so negative ones) make no edge.
      directed: of the graph.

    Returns:
      A `TaskGraph`.

    Raises:
      InputError: a matrix that is not f[T, T], finite and, if not `directed`, symmetric; a negative threshold.
    """
    matrix = square('matrix', matrix, names, symmetric=not directed)
    if not threshold >= 0:
      raise InputError(f'threshold: found {threshold!r}, expected a number >= 0, since weights are.')
    pairs = [(s, t) for s in range(len(names)) for t in range(len(names)) if (s != t if directed else s < t)]
    edges = {(names[s], names[t]): float(matrix[s, t]) for s, t in pairs if matrix[s, t] > threshold}
    return cls(tuple(names), edges, directed)

  def sources(self, task: str) -> dict[str, float]:
    """{task it receives from: weight}, in the order of the nodes."""
    arrays.check_names('task', [task], self.nodes, all_of=False)
    column = self.adjacency()[:, self.nodes.index(task)]
    return {node: float(weight) for node, weight in zip(self.nodes, column) if weight}

  def adjacency(self) -> np.ndarray:
    """A f[T, T] in the order of the nodes, A_st the weight of s -> t; symmetric where the graph is undirected."""
    matrix = np.zeros((len(self.nodes),) * 2)
    for a, b, weight in self.edges:
      matrix[self.nodes.index(a), self.nodes.index(b)] = weight
    return matrix if self.directed else matrix + matrix.T

  def laplacian(self) -> np.ndarray:
    """The combinatorial L = D - A f[T, T], with x' L x = 1/2 sum_st A_st (x_s - x_t)^2.

    That form does not see directions, so a directed graph has the L of (A + A') / 2.
    """
    matrix = self.adjacency()
    matrix = (matrix + matrix.T) / 2
    return np.diag(matrix.sum(axis=1)) - matrix

  def __str__(self) -> str:
    arrow = '->' if self.directed else '--'
    head = f'{len(self.nodes)} tasks ({", ".join(self.nodes)}), {len(self.edges)} edges'
    return '\n'.join([head, *(f'{a} {arrow} {b}  {weight:.4g}' for a, b, weight in self.edges)])
