"""How tasks are related: a tree that groups them, or a graph with weights. Plain Python and numpy, hashable."""

from mtljax.relations.graph import TaskGraph
from mtljax.relations.tree import Node, TaskTree

__all__ = ['Node', 'TaskGraph', 'TaskTree']
