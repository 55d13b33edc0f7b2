"""Figures of task relations: matrices, a tree, a graph; as a figure of their own or into the axis of another."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mtljax.analysis.plots import COLORS
from mtljax.base import InputError
from mtljax.relations import TaskGraph, TaskTree

COLORMAP = 'RdBu_r'  # red: related, blue: opposite
NUMBERS = 10  # no numbers in the cells of more tasks


def relation_matrices(matrices: Mapping[str, np.ndarray], names: Sequence[str], label: str = 'correlation'):
  """Matrices over tasks side by side, on one colour scale that is symmetric around 0.

  Args:
    matrices: {title: f[T, T]}.
    names: the T tasks, in the order of rows and columns.
    label: of the colour bar.

  Returns:
    A matplotlib figure, 9 inches wide.

  Raises:
    InputError: no matrix, or one of another shape.
  """
  if not matrices:
    raise InputError('matrices: found none, expected {title: f[T, T]}.')
  figure = _figure(9, 1 + 8.2 / max(len(matrices), 2))
  axes = figure.subplots(1, len(matrices), squeeze=False)[0]
  draw_matrices(axes, matrices, names, label)
  return figure


def draw_matrices(axes, matrices, names, label='correlation') -> None:
  """`relation_matrices` into axes of a figure, one per matrix, with one colour bar for all."""
  names = list(names)
  matrices = {title: np.asarray(matrix, float) for title, matrix in matrices.items()}
  for title, matrix in matrices.items():
    if matrix.shape != (len(names),) * 2:
      raise InputError(f'matrices[{title!r}]: found shape {matrix.shape}, expected f[T, T] of the tasks {names}.')
  limit = max(np.nanmax(np.abs(matrix), initial=0) for matrix in matrices.values()) or 1.0
  for place, (axis, (title, matrix)) in enumerate(zip(axes, matrices.items())):
    image = axis.imshow(matrix, cmap=COLORMAP, vmin=-limit, vmax=limit)
    axis.set_title(title, fontsize=9)
    axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
    axis.set_yticks(range(len(names)), names if place == 0 else [], fontsize=8)
    axis.set_xlabel('task', fontsize=9)
    axis.tick_params(length=0)
    if len(names) <= NUMBERS and len(matrices) <= 3:
      for (row, column), value in np.ndenumerate(matrix):
        color = 'white' if abs(value) > 0.6 * limit else 'black'
        axis.text(column, row, _short(value), ha='center', va='center', fontsize=7, color=color)
  axes[0].set_ylabel('task', fontsize=9)
  bar = axes[0].figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=25, pad=0.01)
  bar.set_label(label, fontsize=9)
  bar.ax.tick_params(labelsize=8)


def relation_tree(tree: TaskTree, title: str = ''):
  """A tree from the root on the left to the tasks on the right, a colour for each of the root's branches.

  Args:
    tree: to draw.
    title: above it.

  Returns:
    A matplotlib figure, 9 inches wide at most.
  """
  figure = _figure(min(9, 2 + 1.5 * max(tree.depth, 1)), 0.6 + 0.3 * len(tree.leaves))
  draw_tree(figure.subplots(), tree, title)
  return figure


def draw_tree(axis, tree: TaskTree, title: str = '') -> None:
  """`relation_tree` into an axis of a figure; tasks are at one distance from the root, whatever their depth."""
  nodes, depth = {node.path: node for node in tree.nodes}, max(tree.depth, 1)
  height = {task: -place for place, task in enumerate(tree.leaves)}

  def position(node):
    x = depth if len(node.tasks) == 1 else len(node.path)
    return x, np.mean([height[task] for task in node.tasks])

  for path, node in nodes.items():
    x, y = position(node)
    color = COLORS[path[0] % len(COLORS)] if path else '#555555'
    if path:
      left, start = position(nodes[path[:-1]])
      axis.plot([left, left, x], [start, y, y], color=color, lw=1.8, solid_joinstyle='round', zorder=1)
    if len(node.tasks) > 1 or not path:
      axis.plot(x, y, 'o', color=color, ms=5, zorder=2)
    if len(node.tasks) == 1:
      axis.text(x + 0.05 * depth, y, node.tasks[0], va='center', ha='left', fontsize=9, color=color)
  longest = max(map(len, tree.leaves))
  axis.set(xlim=(-0.08 * depth, depth * (1.12 + 0.03 * longest)), ylim=(-len(height) + 0.4, 0.6))
  axis.set_title(title, fontsize=9)
  axis.set_axis_off()


def relation_graph(graph: TaskGraph, title: str = ''):
  """A graph on a circle: the width of an edge is its weight, which is written beside it; arrows where it is directed.

  Args:
    graph: to draw.
    title: above it.

  Returns:
    A matplotlib figure, 4.5 inches wide.
  """
  figure = _figure(4.5, 4.5)
  draw_graph(figure.subplots(), graph, title)
  return figure


def draw_graph(axis, graph: TaskGraph, title: str = '') -> None:
  """`relation_graph` into an axis of a figure."""
  count = len(graph.nodes)
  angles = math.pi / 2 - 2 * math.pi * np.arange(count) / count
  places = dict(zip(graph.nodes, np.stack([np.cos(angles), np.sin(angles)], axis=1)))
  heaviest = max((weight for *_, weight in graph.edges), default=1.0)
  pairs = {(a, b) for a, b, _ in graph.edges}
  for a, b, weight in graph.edges:
    bend = 0.15 if graph.directed and (b, a) in pairs else 0.0  # both directions: two arcs
    style = dict(
      arrowstyle='-|>' if graph.directed else '-',
      color='#777777',
      lw=0.8 + 3.2 * weight / heaviest,
      alpha=0.35 + 0.65 * weight / heaviest,
      shrinkA=9,
      shrinkB=9,
      mutation_scale=12,
      connectionstyle=f'arc3,rad={bend}',
    )
    axis.annotate('', xy=places[b], xytext=places[a], arrowprops=style, zorder=1)
    along = places[b] - places[a]  # off the middle: edges that cross in the middle stay legible
    x, y = places[a] + along * 0.4 + bend * 0.47 * np.array([along[1], -along[0]])
    white = dict(boxstyle='round,pad=0.1', fc='white', ec='none')
    axis.text(x, y, f'{weight:.2g}', fontsize=7, color='#444444', ha='center', va='center', bbox=white, zorder=2)
  for node, (x, y) in places.items():
    axis.plot(x, y, 'o', color=COLORS[0], ms=9, zorder=3)
    axis.text(1.16 * x, 1.16 * y, node, fontsize=9, ha='center', va='center', zorder=4)
  axis.set(xlim=(-1.4, 1.4), ylim=(-1.3, 1.3), aspect='equal')
  axis.set_title(title, fontsize=9)
  axis.set_axis_off()


def _figure(width, height):
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout='constrained')


def _short(value):
  """'.8', '-.4', '1': what fits a cell."""
  text = f'{value:.1f}' if abs(value) < 9.95 else f'{value:.0f}'
  return '0' if float(text) == 0 else text.replace('0.', '.').removesuffix('.0')
