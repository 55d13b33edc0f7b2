"""A model as a figure of boxes and arrows, made from its graph of parts."""

import math
import pathlib
import re
from collections.abc import Mapping

from mtljax.analysis.cost import Costs, compact, count
from mtljax.analysis.layout import layered
from mtljax.analysis.plots import COLORS, save
from mtljax.analysis.structure import Graph, Node, graph_of
from mtljax.analysis.trace import trace
from mtljax.base import InputError, Model, PyTree

SUFFIXES = ('.png', '.svg', '.pdf')
WIDTH = 9.5  # inches, of a notebook
BETWEEN = (0.42, 0.3)  # inches for arrows between layers, and where that is too wide
SIZE = 8.5  # points
LINE = 0.155  # inches of a line of text
SHARED = '#e4e4e4'
TASKS = (*COLORS[:6], '#882255', '#44AA99', '#332288', '#999933')  # no black and no grey, which are for what is shared
DARK = '#444444'
CHAINS = ('trunk', 'streams', 'stages')  # names of what holds stages, which say little in a box


def draw(model: Model, inputs: Mapping[str, PyTree], path, title: str = '') -> Costs:
  """Writes a model's figure and counts what it costs.

  Args:
    model: of any architecture.
    inputs: {task: inputs f[B, ...]}, the same arrays for all tasks if they read one input.
    path: of the figure; its folder is made.
    title: above the figure.

  Raises:
    InputError: as `trace.trace`; a file of another kind than .png, .svg or .pdf, or one that cannot be written.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise InputError(f'out: found {str(path)!r}, expected a file that ends in one of {SUFFIXES}.')
  traced = trace(model, inputs)
  figure, found = diagram(graph_of(traced), title), count(traced)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
  except OSError as error:
    raise InputError(f'out: {path} cannot be written ({error.strerror}).') from error
  return found


def diagram(graph: Graph, title: str = ''):
  """Boxes and arrows: shared parts grey, those of a task in its colour, numbers of parameters in the boxes.

  A part with shared parameters that runs for one task, or is named after it, is grey with a rim of the task's colour;
  'a + b' are shared and own parameters of one part. The figure runs from left to right where that fits into the width
  of a notebook, else from top to bottom.

  Args:
    graph: of `parts_graph`.
    title: above it.

  Returns:
    A matplotlib figure.
  """
  tasks = list(graph.outputs)
  color = {task: TASKS[i % len(TASKS)] for i, task in enumerate(tasks)}
  lines = {name: label(name, node, graph) for name, node in graph.nodes.items()}
  sizes = {name: _size(lines[name], node) for name, node in graph.nodes.items()}
  middle = {task: (i + 0.5) / len(tasks) for i, task in enumerate(tasks)}
  prefer = {name: middle.get(stream(name, node, tasks), 0.5) for name, node in graph.nodes.items()}
  for between in BETWEEN:
    places, routes, (width, height) = layered(sizes, graph.edges, prefer, between)
    if width <= WIDTH:
      break
  down = width > WIDTH
  if down:
    turned = {name: (b, a) for name, (a, b) in sizes.items()}
    places, routes, (height, width) = layered(turned, graph.edges, prefer, BETWEEN[-1])

  def at(point):  # from (along, across) to the axes, whose y goes up
    along, across = point
    return (across, height - along) if down else (along, height - across)

  handles = _legend(graph, color)
  inches, widths = max(width, 4.5), [0.55 + 0.068 * len(handle.get_label()) for handle in handles]
  columns = len(handles) if sum(widths) <= inches else max(int(inches / max(widths)), 1)
  figure, axes, anchor = _canvas(width, height, inches, title, -(-len(handles) // columns))
  for points in routes.values():
    _arrow(axes, [at(point) for point in points], down)
  for name, node in graph.nodes.items():
    of = stream(name, node, tasks)
    fill = _light(color[of]) if is_own(node) else SHARED
    _box(axes, at(places[name]), sizes[name], node, lines[name], fill, color.get(of, DARK))
  style = dict(fontsize=SIZE, frameon=False, borderpad=0, labelspacing=0.4)
  figure.legend(handles=handles, loc='upper center', bbox_to_anchor=anchor, ncols=columns, **style)
  return figure


def stream(name: str, node: Node, tasks) -> str | None:
  """The task that a node runs for or is named after."""
  named = [part for part in name.split('/') if part in tasks]
  return node.task if node.task is not None else named[-1] if named else None


def is_own(node: Node) -> bool:
  """Whether a node is a task's alone: it runs for the task and has no shared parameters only."""
  return node.task is not None and (node.own > 0 or node.shared == 0)


def label(name: str, node: Node, graph: Graph) -> list[str]:
  """The lines in a node's box.

  >>> graph = Graph({}, (), {'left': 'heads/left', 'right': 'heads/right'})
  >>> label('trunk/streams/left/conv_0', Node('part', shared=4640), graph)
  ['conv_0', 'left', '4.6k']
  >>> label('heads/left/attention/conv_0', Node('part', 'left', own=18), graph)
  ['attention', 'conv_0', '18']
  >>> label('heads/left', Node('part', 'left', shared=4640, own=18), graph)
  ['head', 'left', '4.6k + 18']
  """
  if node.kind == 'join':
    return [name.rpartition('/')[2].partition(' ')[0]]
  tasks = list(graph.outputs)
  parts = name.split('/')
  if parts[0] in ('heads', 'stems'):
    parts = parts[2:] or [parts[0][:-1]]
  elif parts[0] == 'trunk':
    parts = parts[1:] or parts
  text = [part for part in parts[:-1] if part not in (*tasks, *CHAINS)] + [parts[-1]] * (parts[-1] not in tasks)
  text = re.sub(r'\n(\d+)\b', r' \1', '\n'.join(text)).split('\n')  # nodes of a layer, by number
  if node.copies > 1:
    text[-1] += f' ×{node.copies}'
  of = stream(name, node, tasks)
  if of is not None and (node.task is None or node.kind == 'inputs' or name in graph.outputs.values()):
    text.append(of)
  counts = [compact(count, 2) for count in (node.shared, node.own) if count]
  if not counts and node.state:
    counts = [f'{compact(node.state, 2)} fixed']
  return text + [' + '.join(counts)] * bool(counts)


def _size(lines, node) -> tuple[float, float]:
  from matplotlib.textpath import TextPath

  widest = max(TextPath((0, 0), line, size=SIZE, prop={'weight': 'bold'}).get_extents().width for line in lines) / 72
  pad = 0.1 if node.kind == 'join' else 0.18
  return widest + pad, len(lines) * LINE + (0.08 if node.kind == 'join' else 0.14)


def _canvas(width, height, inches, title, rows):
  from matplotlib.figure import Figure

  margin, above = 0.12, 0.28 * bool(title)
  top = above + 0.2 * rows + 0.12
  inches, tall = inches + 2 * margin, height + top + 2 * margin
  figure = Figure(figsize=(inches, tall))
  axes = figure.add_axes(((inches - width) / 2 / inches, margin / tall, width / inches, height / tall))
  axes.set(xlim=(0, width), ylim=(0, height))
  axes.set_axis_off()
  if title:
    figure.text(margin / inches, 1 - margin / tall, title, fontsize=11, va='top')
  return figure, axes, (0.5, 1 - (margin + above) / tall)


def _arrow(axes, points, down):
  """A smooth line through the points: across layers level, between them in a bend."""
  from matplotlib.patches import FancyArrowPatch
  from matplotlib.path import Path

  vertices, codes = [points[0]], [Path.MOVETO]
  for index, (start, stop) in enumerate(zip(points, points[1:])):
    if index % 2 == 0:  # beside a layer
      if math.dist(start, stop) > 1e-6:
        vertices.append(stop)
        codes.append(Path.LINETO)
      continue
    if down:
      half = (start[1] + stop[1]) / 2
      vertices += [(start[0], half), (stop[0], half), stop]
    else:
      half = (start[0] + stop[0]) / 2
      vertices += [(half, start[1]), (half, stop[1]), stop]
    codes += [Path.CURVE4] * 3
  axes.add_patch(
    FancyArrowPatch(
      path=Path(vertices, codes), arrowstyle='-|>', mutation_scale=7, lw=0.9, color='#666666', clip_on=False, zorder=1
    )
  )


def _box(axes, centre, size, node, lines, fill, rim):
  from matplotlib.patches import FancyBboxPatch

  x, y = centre[0] - size[0] / 2, centre[1] - size[1] / 2
  rounding = min(size) / 2 if node.kind == 'join' else 0.05
  style = dict(facecolor=fill, edgecolor=rim, lw=1.2)
  if node.kind != 'part':
    style |= dict(facecolor='white', lw=1.0)
  patch = FancyBboxPatch((x, y), *size, boxstyle=f'round,pad=0,rounding_size={rounding}', clip_on=False, zorder=2)
  patch.set(**style)
  axes.add_patch(patch)
  for i, line in enumerate(lines):
    height = centre[1] + ((len(lines) - 1) / 2 - i) * LINE
    weight = 'bold' if i == 0 and node.kind == 'part' and len(lines) > 1 else 'normal'
    axes.text(centre[0], height, line, fontsize=SIZE, ha='center', va='center_baseline', weight=weight, zorder=3)


def _legend(graph, color):
  from matplotlib.patches import Patch

  parts = [(is_own(node), stream(name, node, color)) for name, node in graph.nodes.items() if node.kind == 'part']
  handles = [Patch(facecolor=SHARED, edgecolor=DARK, label='shared')] if (False, None) in parts else []
  rims = [color[task] for task in color if (False, task) in parts]
  handles += [Patch(facecolor=SHARED, edgecolor=rim, label='shared, in one task') for rim in rims[:1]]
  handles += [Patch(facecolor=_light(rim), edgecolor=rim, label=task) for task, rim in color.items()]
  both = any(node.shared and node.own for node in graph.nodes.values())
  return handles + [Patch(facecolor='none', label='a + b: shared + own')] * both


def _light(color) -> tuple[float, float, float]:
  """The colour, a quarter of it on white."""
  from matplotlib.colors import to_rgb

  return tuple(0.75 + 0.25 * part for part in to_rgb(color))
