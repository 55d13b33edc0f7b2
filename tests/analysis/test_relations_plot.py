"""Figures of relations: what is drawn, labelled axes, legible text, bad input."""

import numpy as np
import pytest

from mtljax.analysis import plots, relations_plot
from mtljax.base import InputError
from mtljax.relations import TaskGraph, TaskTree


def texts(axis):
  return [text.get_text() for text in axis.texts]


def assert_legible(figure, path):
  figure.canvas.draw()
  found = [text for text in figure.findobj(lambda x: hasattr(x, 'get_fontsize')) if text.get_text()]
  assert found and min(text.get_fontsize() for text in found) >= 7 and figure.get_size_inches()[0] <= 9
  assert plots.save(figure, path / 'figure.png').stat().st_size > 1000


def test_matrices_have_one_scale_and_labels(tmp_path):
  first, second = np.array([[1, -0.04], [0.25, 1.0]]), np.array([[-2.5, 0.96], [0.0, -0.31]])
  figure = relations_plot.relation_matrices({'true': first, 'learned': second}, ('a', 'b'), 'covariance')
  axes, bar = figure.axes[:2], figure.axes[2]
  assert [axis.get_title() for axis in axes] == ['true', 'learned']
  for axis, matrix in zip(axes, (first, second)):
    np.testing.assert_array_equal(axis.images[0].get_array(), matrix)
    assert axis.images[0].get_clim() == (-2.5, 2.5)
    assert axis.get_xlabel() == 'task' and [label.get_text() for label in axis.get_xticklabels()] == ['a', 'b']
  assert axes[0].get_ylabel() == 'task' and bar.get_ylabel() == 'covariance'
  assert texts(axes[0]) == ['1', '0', '.2', '1'] and texts(axes[1]) == ['-2.5', '1', '0', '-.3']
  assert_legible(figure, tmp_path)


def test_matrices_of_many_tasks_have_no_numbers(tmp_path):
  names = [f'task {i}' for i in range(12)]
  figure = relations_plot.relation_matrices({'zero': np.zeros((12, 12))}, names)
  assert texts(figure.axes[0]) == [] and figure.axes[0].images[0].get_clim() == (-1, 1)
  assert_legible(figure, tmp_path)


def test_bad_matrices_are_named():
  with pytest.raises(InputError, match=r"matrices\['true'\]: found shape \(2, 3\).*\['a', 'b'\]"):
    relations_plot.relation_matrices({'true': np.zeros((2, 3))}, ('a', 'b'))
  with pytest.raises(InputError, match='matrices: found none'):
    relations_plot.relation_matrices({}, ('a', 'b'))


def test_tree_ends_at_its_tasks(tmp_path):
  tree = TaskTree(((('a', 'b'), 'c'), 'digit', ('e', 'f')))
  figure = relations_plot.relation_tree(tree, 'learned')
  axis = figure.axes[0]
  assert axis.get_title() == 'learned' and texts(axis) == list(tree.leaves)
  lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 3]
  assert len(lines) == len(tree.nodes) - 1  # an edge to every node but the root
  heights = {text.get_text(): text.get_position()[1] for text in axis.texts}
  ends = {line.get_ydata()[-1] for line in lines if line.get_xdata()[-1] == tree.depth}
  assert ends == set(heights.values()) and len(ends) == 6
  colors = {text.get_text(): text.get_color() for text in axis.texts}
  assert colors['a'] == colors['c'] != colors['digit'] != colors['e'] == colors['f']
  assert_legible(figure, tmp_path)


def test_tree_of_one_task(tmp_path):
  figure = relations_plot.relation_tree(TaskTree('a'))
  assert texts(figure.axes[0]) == ['a']
  assert_legible(figure, tmp_path)


def arrows(axis):
  return [text for text in axis.texts if getattr(text, 'arrow_patch', None) is not None]


@pytest.mark.parametrize('directed', [False, True])
def test_graph_shows_weights_and_directions(tmp_path, directed):
  edges = {('a', 'b'): 0.5, ('c', 'a'): 2.0} | ({('b', 'a'): 0.123} if directed else {})
  figure = relations_plot.relation_graph(TaskGraph(tuple('abcd'), edges, directed=directed), 'graph')
  axis = figure.axes[0]
  assert sorted(text for text in texts(axis) if text) == sorted(['a', 'b', 'c', 'd', '0.5', '2', *['0.12'] * directed])
  drawn = arrows(axis)
  assert len(drawn) == len(edges)
  widths = [arrow.arrow_patch.get_linewidth() for arrow in drawn]
  assert max(widths) == widths[-1] == 4.0  # c, a: the heaviest
  heads = {type(arrow.arrow_patch.get_arrowstyle()).__name__ for arrow in drawn}
  assert heads == {'CurveFilledB' if directed else 'Curve'}
  assert_legible(figure, tmp_path)


def test_arrow_ends_at_the_task_that_receives():
  axis = relations_plot.relation_graph(TaskGraph(('a', 'b'), {('b', 'a'): 1.0}, directed=True)).axes[0]
  places = {text.get_text(): np.array(text.get_position()) / 1.16 for text in axis.texts if text.get_text() in 'ab'}
  (arrow,) = arrows(axis)
  np.testing.assert_allclose(arrow.xy, places['a'], atol=1e-9)
  np.testing.assert_allclose(arrow.xyann, places['b'], atol=1e-9)


def test_graph_without_edges(tmp_path):
  figure = relations_plot.relation_graph(TaskGraph(('a', 'b', 'c'), {}))
  assert texts(figure.axes[0]) == ['a', 'b', 'c']
  assert_legible(figure, tmp_path)
