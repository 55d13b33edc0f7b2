"""Figures of models: what is written fits its box, boxes and arrows keep apart."""

import itertools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax import sharing, trunks
from mtljax.analysis import draw, layout
from mtljax.analysis.structure import Graph, Node, parts_graph
from mtljax.base import InputError

X = jnp.ones((2, 12, 12))


def model_of(text, tasks=('left', 'right')):
  heads = {task: nn.Dense(3) for task in tasks}
  return sharing.parse(text)(trunks.LeNet((4, 8), hidden=16, kernel_size=3), heads), dict.fromkeys(tasks, X)


def rendered(figure):
  """Boxes and texts in pixels: the part boxes, their texts, texts of the figure and its legend."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.patches import FancyBboxPatch

  renderer = FigureCanvasAgg(figure).get_renderer()
  figure.draw(renderer)
  (axes,) = figure.axes
  boxes = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
  texts = [text.get_window_extent(renderer) for text in axes.texts]
  around = [text.get_window_extent(renderer) for text in figure.texts]
  around += [legend.get_window_extent(renderer) for legend in figure.legends]
  return boxes, texts, around


def inside(a, b, slack=1.0):
  return a.x0 >= b.x0 - slack and a.x1 <= b.x1 + slack and a.y0 >= b.y0 - slack and a.y1 <= b.y1 + slack


@pytest.mark.parametrize(
  'text, tasks',
  [
    ('hard', ('left', 'right')),
    ('cross_stitch', ('left', 'right')),
    ('nddr', ('left', 'right')),
    ('ple', ('left', 'middle_of_the_road', 'right')),
    ('lora', tuple('abcdefghij')),
  ],
)
def test_nothing_overlaps(text, tasks):
  graph = parts_graph(*model_of(text, tasks))
  figure = draw.diagram(graph, 'a title')
  boxes, texts, around = rendered(figure)
  width, height = figure.get_size_inches() * figure.dpi
  assert len(boxes) == len(graph.nodes) and len(texts) >= len(boxes)
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert all(sum(inside(text, box) for box in boxes) == 1 for text in texts)
  for box in [*boxes, *around]:
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
  assert not any(a.overlaps(b) for a, b in itertools.combinations([*around, max(boxes, key=lambda b: b.y1)], 2))
  assert figure.get_size_inches()[0] <= 10
  sizes = [text.get_fontsize() for text in (*figure.axes[0].texts, *figure.texts, *figure.legends[0].get_texts())]
  assert min(sizes) >= 8


def test_arrows_go_around_boxes():
  """An arrow that skips layers is level beside their boxes, and touches none but its own two."""
  graph = parts_graph(*model_of('ple', ('a', 'b', 'c')))
  skipping = (*graph.edges, ('inputs', 'heads/a/head'), ('trunk/level1/shared', 'heads/c/head'))
  sizes = {name: (1.0 + 0.1 * (i % 3), 0.5) for i, name in enumerate(graph.nodes)}
  places, routes, (along, across) = layout.layered(sizes, skipping, dict.fromkeys(sizes, 0.5), 0.4)
  assert set(routes) == set(skipping) and len(routes[skipping[-1]]) > 4
  for edge, points in routes.items():
    assert all(stop[0] - start[0] > -1e-9 for start, stop in zip(points, points[1:]))
    for start, stop in list(zip(points, points[1:]))[::2]:
      assert start[1] == stop[1]
      for name, (x, y) in places.items():
        beside = abs(start[1] - y) >= sizes[name][1] / 2
        apart = stop[0] <= x - sizes[name][0] / 2 + 1e-9 or start[0] >= x + sizes[name][0] / 2 - 1e-9
        assert beside or apart or name in edge, (edge, name)
    for start, stop in list(zip(points, points[1:]))[1::2]:  # between two layers, where no box is
      assert all(
        x + sizes[n][0] / 2 <= start[0] + 1e-9 or x - sizes[n][0] / 2 >= stop[0] - 1e-9 for n, (x, _) in places.items()
      )
  assert along == pytest.approx(max(x + sizes[name][0] / 2 for name, (x, _) in places.items()))


def test_layers_and_order():
  sizes = dict.fromkeys(['in', 'x', 'y', 'z', 'late'], (1.0, 1.0))
  edges = [('in', 'x'), ('in', 'y'), ('x', 'z'), ('y', 'z'), ('in', 'late'), ('late', 'end'), ('z', 'end')]
  sizes['end'] = (1.0, 1.0)
  prefer = {'in': 0.5, 'x': 0.9, 'y': 0.1, 'z': 0.5, 'late': 0.5, 'end': 0.5}
  places, _, size = layout.layered(sizes, edges, prefer, 0.5)
  assert [places[name][0] for name in ('in', 'x', 'y', 'z', 'late', 'end')] == [0.5, 2.0, 2.0, 3.5, 3.5, 5.0]
  assert places['y'][1] < places['x'][1] and size[0] == 5.5


def test_crossings_are_removed():
  sizes = dict.fromkeys('abcdef', (1.0, 1.0))
  edges = [('a', 'e'), ('b', 'd'), ('c', 'f')]
  places, _, _ = layout.layered(sizes, edges, dict.fromkeys(sizes, 0.5), 0.5)
  order = lambda names: sorted(names, key=lambda name: places[name][1])
  assert [dict(edges)[name] for name in order('abc')] == order('def')


def test_least_squares_positions():
  """Pooled where they would overlap: wanted 0, 0, 5 at a distance of 1 is -1/2, 1/2, 5."""
  sizes = dict.fromkeys('abc', (1.0, 1.0 - layout.GAP))
  found = layout._spaced(['a', 'b', 'c'], {'a': 0.0, 'b': 0.0, 'c': 5.0}, sizes)
  np.testing.assert_allclose(list(found.values()), [-0.5, 0.5, 5.0], atol=1e-12)


def test_boxes_say_what_is_in_them():
  graph = parts_graph(*model_of('mmoe(num_experts=3)'))
  texts = [text.get_text() for text in draw.diagram(graph).axes[0].texts]
  assert texts.count('mix') == 2 and 'experts ×3' in texts and texts.count('51') == 2  # 16 * 3 + 3
  legend = [text.get_text() for text in draw.diagram(graph).legends[0].get_texts()]
  assert legend == ['shared', 'left', 'right']


def test_a_box_of_both_is_explained():
  graph = parts_graph(*model_of("layer_wise(shared='Conv_')"))
  figure = draw.diagram(graph)
  assert any(' + ' in text.get_text() for text in figure.axes[0].texts)
  assert figure.legends[0].get_texts()[-1].get_text() == 'a + b: shared + own'


def test_colours():
  """Shared grey, own in the task's colour, shared in one task grey with that task's rim."""
  from matplotlib.colors import to_hex
  from matplotlib.patches import FancyBboxPatch

  graph = parts_graph(*model_of('residual_adapters'))
  patches = [p for p in draw.diagram(graph).axes[0].patches if isinstance(p, FancyBboxPatch)]
  found = {n: (to_hex(p.get_facecolor()), to_hex(p.get_edgecolor())) for n, p in zip(graph.nodes, patches, strict=True)}
  shared = found['heads/left/trunk/stages/conv_0']
  own = found['heads/left/trunk/adapters/conv_0']
  assert shared == (draw.SHARED, draw.TASKS[0].lower()) and own[1] == shared[1] != found['heads/right/head'][1]
  assert own[0] not in (draw.SHARED, '#ffffff') and found['inputs'] == ('#ffffff', draw.DARK)


def test_deep_models_run_downwards():
  stages = [nn.Dense(4) for _ in range(14)]
  model = sharing.cross_stitch(stages, {'a': nn.Dense(2), 'b': nn.Dense(2)}, cuts=(3, 13))
  figure = draw.diagram(parts_graph(model, dict.fromkeys('ab', jnp.ones((2, 3)))))
  width, height = figure.get_size_inches()
  assert width <= 10 < height
  boxes, texts, _ = rendered(figure)
  assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
  assert all(sum(inside(text, box) for box in boxes) == 1 for text in texts)


def test_frozen_weights_are_said():
  graph = Graph({'trunk': Node('part', state=5000)}, (), {'a': 'heads/a'})
  assert draw.label('trunk', graph.nodes['trunk'], graph) == ['trunk', '5.0k fixed']


def test_file(tmp_path):
  model, inputs = model_of('hard')
  found = draw.draw(model, inputs, tmp_path / 'new' / 'model.svg', 'digits')
  assert found.own == {'left': 51, 'right': 51} and '<svg' in (tmp_path / 'new' / 'model.svg').read_text()
  with pytest.raises(InputError, match=r"out: found '.*model\.gif', expected a file that ends in one of \('\.png'"):
    draw.draw(model, inputs, tmp_path / 'model.gif')
  with pytest.raises(InputError, match=r'out: .*model\.svg/x\.png cannot be written \((File exists|Not a directory)\)'):
    draw.draw(model, inputs, tmp_path / 'new' / 'model.svg' / 'x.png')
