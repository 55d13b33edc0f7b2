"""The parts of a model and what flows between them, read off its traced forward pass, whatever the architecture."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from mtljax.analysis.cost import work
from mtljax.analysis.trace import Op, Trace, live, trace
from mtljax.base import Model, PyTree


class Node(NamedTuple):
  """A part of a model, its inputs, or an operation outside of parts that joins several.

  Attributes:
    kind: 'inputs', 'part' or 'join'.
    task: the task it runs for alone, or None.
    copies: how many it stands for (experts that run as one).
    shared, own, state: numbers in its shared and own parameters, and in its floating model state (statistics, frozen
      weights).
    shape: of what it hands on, without the batch axis; () where it hands on nothing.
    flops: of one example, the copies together.
  """

  kind: str
  task: str | None = None
  copies: int = 1
  shared: int = 0
  own: int = 0
  state: int = 0
  shape: tuple[int, ...] = ()
  flops: int = 0


class Graph(NamedTuple):
  """Parts and data flow.

  Attributes:
    nodes: {name: node} in the order in which they run; names are paths such as 'trunk/streams/left/conv_0'.
    edges: (from, to), once each.
    outputs: {task: the node that makes its outputs}.
  """

  nodes: dict[str, Node]
  edges: tuple[tuple[str, str], ...]
  outputs: dict[str, str]


def parts_graph(model: Model, inputs: Mapping[str, PyTree]) -> Graph:
  """The graph of a model.

  Parts are what the architecture calls as modules: trunk, stages, experts, gates, heads. What it does between them
  flows through, except where it joins several: that is a node '+', 'concat' or 'mix' (with a product in it), one for
  operations in a row. Parts that one part alone reads side by side need no node.

  Args:
    model: of any architecture.
    inputs: {task: inputs f[B, ...]}, the same arrays for all tasks if they read one input.

  Returns:
    What leads to some task's outputs.

  Raises:
    InputError: as `trace`.

  >>> import flax.linen as nn, jax.numpy as jnp
  >>> from mtljax import sharing
  >>> model = sharing.hard(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  >>> x = jnp.ones((4, 3))
  >>> graph = parts_graph(model, {'digit': x, 'parity': x})
  >>> graph.edges
  (('inputs', 'trunk'), ('trunk', 'heads/digit'), ('trunk', 'heads/parity'))
  >>> graph.nodes['trunk'].shared, graph.nodes['heads/parity'].own
  (32, 18)
  """
  return graph_of(trace(model, inputs))


def graph_of(traced: Trace) -> Graph:
  """`parts_graph` of a model that is traced already."""
  ops, _ = live(traced, list(traced.outputs))
  paths = {tuple(name for name, _ in op.parts) for op in ops}
  containers = {path[:depth] for path in paths for depth in range(len(path))}
  found = _Builder(containers)
  for number, leaf in traced.leaves.items():
    if leaf.kind == 'inputs':
      task = None if traced.shared_input else leaf.path[0]
      name = 'inputs' if task is None else f'inputs/{task}'
      found.sources[number] = name
      found.nodes.setdefault(name, Node('inputs', task))
    elif leaf.floating:
      found.leaves[number] = frozenset({number})
  for op in ops:
    found.add(op)
  outputs = {}
  for task, values in traced.outputs.items():
    outputs[task] = next((found.sources[value] for value in values if value in found.sources), None)
  return found.graph(traced.leaves, {task: name for task, name in outputs.items() if name is not None})


class _Builder:
  """Goes through the operations once; `sources` are the nodes of values, `leaves` the parameters they are made of."""

  def __init__(self, containers):
    self.containers = containers
    self.nodes, self.edges, self.used, self.kinds = {}, {}, {}, {}
    self.sources, self.leaves = {}, {}

  def add(self, op: Op):
    path = tuple(name for name, _ in op.parts)
    sources = list(dict.fromkeys(self.sources[value] for value in op.inputs if value in self.sources))
    leaves = frozenset().union(*(self.leaves.get(value, ()) for value in op.inputs))
    if path in self.containers:  # between parts
      if len(sources) + bool(leaves) > 1:
        name = self._join(op, path)
      elif sources or leaves:
        for value in op.outputs:
          if sources:
            self.sources[value] = sources[0]
          else:
            self.leaves[value] = leaves
        if sources:
          self._count(sources[0], op)
        return
      else:
        return
    else:
      name = '/'.join(path)
      if name not in self.nodes:
        self.nodes[name] = Node('part', op.task, math.prod(copies for _, copies in op.parts))
    self.edges.update({(source, name): None for source in sources if source != name})
    self.used.setdefault(name, set()).update(leaves)
    self.sources.update(dict.fromkeys(op.outputs, name))
    self._count(name, op)

  def _join(self, op, path):
    stem, number = '/'.join((*path, 'join')), 1
    while f'{stem}{number}' in self.nodes:
      number += 1
    name = f'{stem}{number}'
    self.nodes[name], self.kinds[name] = Node('join', op.task), {op.equation.primitive.name}
    return name

  def _count(self, name, op):
    node = self.nodes[name]
    if name in self.kinds:
      self.kinds[name].add(op.equation.primitive.name)
    if name in self.kinds or node.kind == 'part' and '/'.join(part for part, _ in op.parts) == name:
      node = node._replace(shape=max((tuple(var.aval.shape) for var in op.equation.outvars), key=len))
    self.nodes[name] = node._replace(flops=node.flops + work(op))

  def graph(self, leaves, outputs) -> Graph:
    while self._contracted(outputs):
      pass
    names = self._renamed()
    nodes = {}
    for name, node in self.nodes.items():
      sizes = {'shared': 0, 'own': 0, 'state': 0}
      for number in self.used.get(name, ()):
        leaf = leaves[number]
        kind = leaf.kind if leaf.kind == 'state' else 'shared' if leaf.path[0] == 'shared' else 'own'
        sizes[kind] += leaf.size
      shape = node.shape[1:]
      shape = shape[1:] if node.copies > 1 and shape[:1] == (node.copies,) else shape
      nodes[names[name]] = node._replace(shape=shape, **sizes)
    reached, new = set(), set(outputs.values())
    while new:
      reached |= new
      new = {source for source, to in self.edges if to in new} - reached
    nodes = {names[name]: nodes[names[name]] for name in self.nodes if name in reached}
    edges = tuple((names[a], names[b]) for a, b in self.edges if b in reached)
    return Graph(nodes, edges, {task: names[name] for task, name in outputs.items()})

  def _contracted(self, outputs) -> bool:
    """Takes one join away that is not needed, if there is one."""
    after, before = {}, {}
    for a, b in self.edges:
      after.setdefault(a, set()).add(b)
      before.setdefault(b, set()).add(a)
    joins = [name for name, node in self.nodes.items() if node.kind == 'join']
    same = {}
    for name in joins:
      followers = after.get(name, set())
      only = next(iter(followers)) if len(followers) == 1 and name not in outputs.values() else None
      if only in self.kinds or (only and join_label(self.kinds[name]) == 'concat'):
        return self._merge(name, only, outputs)  # a row of operations, or a part that reads several at once
      if len(before.get(name, ())) == 1 and not self.used.get(name):
        return self._merge(name, *before[name], outputs)  # what it joined has become one
      key = (frozenset(before.get(name, ())), frozenset(followers), frozenset(self.used.get(name, ())))
      if key in same and followers:
        return self._merge(name, same[key], outputs)  # side by side
      same[key] = name
    return False

  def _merge(self, name, into, outputs) -> bool:
    moved = [tuple(into if end == name else end for end in edge) for edge in self.edges]
    self.edges = dict.fromkeys(edge for edge in moved if edge[0] != edge[1])
    self.used.setdefault(into, set()).update(self.used.pop(name, ()))
    self.nodes[into] = self.nodes[into]._replace(flops=self.nodes[into].flops + self.nodes.pop(name).flops)
    kinds = self.kinds.pop(name)
    if into in self.kinds:
      self.kinds[into] |= kinds
    for task, output in outputs.items():
      outputs[task] = into if output == name else output
    return True

  def _renamed(self) -> dict[str, str]:
    """Joins by what they do: '+', 'concat', 'mix', numbered where a container has several."""
    names = {name: name for name in self.nodes}
    for name, kinds in self.kinds.items():
      above = name.rpartition('/')[0]
      stem = (f'{above}/' if above else '') + join_label(kinds)
      number = sum(other == stem or other.startswith(f'{stem} ') for other in names.values())
      names[name] = stem if not number else f'{stem} {number + 1}'
    return names


def join_label(kinds: set[str]) -> str:
  """What operations in a row do, in a word.

  >>> join_label({'mul', 'reduce_sum'}), join_label({'add'}), join_label({'concatenate', 'reshape'})
  ('mix', '+', 'concat')
  """
  if kinds & {'mul', 'dot_general', 'div'}:
    return 'mix'
  if kinds & {'add', 'add_any', 'reduce_sum'}:
    return '+'
  if kinds & {'concatenate', 'stack'}:
    return 'concat'
  return 'select' if 'select_n' in kinds else 'mix'
