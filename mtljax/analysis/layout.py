"""Layers for a directed graph: boxes in columns, arrows that go around boxes, few crossings."""

from collections.abc import Mapping, Sequence

GAP = 0.16  # inches between neighbours in a layer
THIN = 0.1  # what an arrow takes that passes a layer
SWEEPS = 24

Edge = tuple[str, str]
Point = tuple[float, float]


def layered(
  sizes: Mapping[str, tuple[float, float]], edges: Sequence[Edge], prefer: Mapping[str, float], between: float
) -> tuple[dict[str, Point], dict[Edge, list[Point]], tuple[float, float]]:
  """Places boxes: layers along one axis, longest path first; arrows that skip layers pass between boxes.

  Args:
    sizes: {box: its size (along, across)} in the order in which they run.
    edges: of an acyclic graph.
    prefer: {box: where across it belongs, 0 to 1}, where nothing else decides.
    between: space between layers, for arrows.

  Returns:
    {box: centre}, {edge: points from box to box}, and the size of it all, as (along, across). From the first point to
    the second an arrow is level, beside the boxes of a layer, from the second to the third it is between layers, from
    the third to the fourth level, and so on.

  Reference: Sugiyama, Tagawa & Toda, Methods for Visual Understanding of Hierarchical System Structures (1981),
  https://doi.org/10.1109/TSMC.1981.4308636 (layers, dummies, barycentres); positions are least squares in the order
  found.
  """
  layer = _layers(list(sizes), edges)
  sizes, prefer, chains, links = dict(sizes), dict(prefer), {}, []
  for a, b in edges:
    chain = [a]
    for between_layers in range(layer[a] + 1, layer[b]):
      dummy = f'{a}→{between_layers}'  # arrows from one box share their way as long as they can
      sizes.setdefault(dummy, (0.0, THIN))
      layer[dummy] = between_layers
      prefer.setdefault(dummy, prefer[b])
      chain.append(dummy)
    chains[a, b] = [*chain, b]
    links += zip(chains[a, b], chains[a, b][1:])
  links = list(dict.fromkeys(links))
  columns = _ordered(layer, links, prefer)
  across = _positions(columns, links, sizes)
  starts, along = [], 0.0
  for column in columns:
    width = max(sizes[name][0] for name in column)
    starts.append((along, along + width))
    along += width + between
  places, routes = {}, {}
  for column, (start, stop) in zip(columns, starts):
    places |= {name: ((start + stop) / 2, across[name]) for name in column}
  for edge, chain in chains.items():
    points = [(stop, across[name]) for name in chain for stop in starts[layer[name]]]
    points[0] = (places[edge[0]][0] + sizes[edge[0]][0] / 2, across[edge[0]])
    points[-1] = (places[edge[1]][0] - sizes[edge[1]][0] / 2, across[edge[1]])
    routes[edge] = points
  total = max(across[name] + sizes[name][1] / 2 for name in across)
  return {name: places[name] for name in places if '→' not in name}, routes, (along - between, total)


def _layers(names, edges) -> dict[str, int]:
  """The longest path from a source; sources, and what reads only the first of them, right before what reads them."""
  before = {name: [a for a, b in edges if b == name] for name in names}
  after = {name: [b for a, b in edges if a == name] for name in names}
  layer = {}

  def depth(name):
    if name not in layer:
      layer[name] = max((depth(other) + 1 for other in before[name]), default=0)
    return layer[name]

  for name in names:
    depth(name)
  for name in names:
    if after[name] and all(layer[other] == 0 for other in before[name]):
      layer[name] = min(layer[other] for other in after[name]) - 1
  return layer


def _ordered(layer, links, prefer) -> list[list[str]]:
  """Columns in an order of few crossings: barycentres, forth and back; the best that was met."""
  count = max(layer.values()) + 1
  columns = [sorted((n for n in layer if layer[n] == i), key=lambda n: prefer[n]) for i in range(count)]
  beside = {name: ([], []) for name in layer}
  for a, b in links:
    beside[b][0].append(a)
    beside[a][1].append(b)
  best = (_crossings(columns, links, layer), columns)
  for sweep in range(SWEEPS):
    side = sweep % 2
    columns = [list(column) for column in columns]
    for i in range(count) if side == 0 else reversed(range(count)):
      place = {name: rank for column in columns for rank, name in enumerate(column)}

      def barycentre(name, place=place, side=side):
        others = beside[name][side]
        return (sum(place[other] for other in others) / len(others) if others else place[name], prefer[name])

      columns[i].sort(key=barycentre)
    found = _crossings(columns, links, layer)
    if found < best[0]:
      best = (found, columns)
  return best[1]


def _crossings(columns, links, layer) -> int:
  place = {name: rank for column in columns for rank, name in enumerate(column)}
  total = 0
  for i in range(len(columns)):
    ends = [(place[a], place[b]) for a, b in links if layer[a] == i]
    total += sum((a - c) * (b - d) < 0 for k, (a, b) in enumerate(ends) for c, d in ends[:k])
  return total


def _positions(columns, links, sizes) -> dict[str, float]:
  """Every box near the mean of its neighbours, in the order of its column, `GAP` apart."""
  beside = {name: [] for column in columns for name in column}
  for a, b in links:
    beside[a].append(b)
    beside[b].append(a)
  at = {}
  for column in columns:
    at |= _spaced(column, dict.fromkeys(column, 0.0), sizes)
  for sweep in range(2 * SWEEPS):
    for column in columns if sweep % 2 == 0 else reversed(columns):
      wanted = {n: sum(at[other] for other in beside[n]) / len(beside[n]) if beside[n] else at[n] for n in column}
      at |= _spaced(column, wanted, sizes)
  low = min(at[name] - sizes[name][1] / 2 for name in at)
  return {name: value - low for name, value in at.items()}


def _spaced(column, wanted, sizes) -> dict[str, float]:
  """argmin sum_i (p_i - wanted_i)^2 with boxes apart: isotonic regression by pooling neighbours that violate."""
  offsets, total = [], 0.0
  for i, name in enumerate(column):
    if i:
      total += (sizes[column[i - 1]][1] + sizes[name][1]) / 2 + GAP
    offsets.append(total)
  blocks = []  # (sum, count)
  for name, offset in zip(column, offsets):
    blocks.append((wanted[name] - offset, 1))
    while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
      (a, m), (b, n) = blocks.pop(), blocks.pop()
      blocks.append((a + b, m + n))
  values = [block[0] / block[1] for block in blocks for _ in range(block[1])]
  return {name: value + offset for name, value, offset in zip(column, values, offsets)}
