import math

import numpy as np
import pytest

from mtljax.analysis import plots


def records(tasks=('a', 'b'), steps=100, weights=True, gramian=True, metric='accuracy'):
  found = []
  for step in range(10, steps + 1, 10):
    by_task = {task: 1.0 / step + index for index, task in enumerate(tasks)}
    found.append(
      dict(step=step, losses=by_task, weights=by_task if weights else None, norms=by_task if gramian else None)
    )
    if step % 50 == 0:
      val = {task: {metric if index else 'rmse': 0.5, 'loss': 1.0} for index, task in enumerate(tasks)}
      found.append(dict(step=step, val=val))
  return found


def labels(figure):
  return [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]


def test_curves_have_labelled_axes_and_fit_a_notebook(tmp_path):
  figure = plots.curves(records())
  assert labels(figure) == ['training loss', 'validation rmse', 'validation accuracy', 'weight of the balancer']
  assert {axis.get_xlabel() for axis in figure.axes} == {'step'}
  assert figure.get_size_inches()[0] == 9
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b']
  path = plots.save(figure, tmp_path / 'curves.png')
  assert path.read_bytes()[:4] == b'\x89PNG' and path.stat().st_size > 5000


@pytest.mark.parametrize(
  'options, last',
  [
    (dict(weights=False), 'gradient norm'),
    (dict(weights=False, gramian=False), 'validation accuracy'),
    (dict(steps=40), 'weight of the balancer'),
    (dict(steps=1000, tasks=tuple('abcdefghij')), 'weight of the balancer'),
  ],
)
def test_curves_of_other_runs(tmp_path, options, last):
  figure = plots.curves(records(**options))
  assert labels(figure)[-1] == last
  plots.save(figure, tmp_path / 'curves.png')


def test_curves_draw_what_was_logged():
  figure = plots.curves(records(steps=50))
  line = figure.axes[0].get_lines()[1]
  np.testing.assert_allclose(line.get_xdata(), [10, 20, 30, 40, 50])
  np.testing.assert_allclose(line.get_ydata(), [1 + 1 / step for step in line.get_xdata()])


def test_curves_leave_out_what_is_absent(tmp_path):
  found = records()
  for record in found:
    for key in ('losses', 'weights', 'norms'):
      if key in record:
        record[key] = {**record[key], 'a': None}
  figure = plots.curves(found)
  assert len(figure.axes[0].get_lines()[0].get_xdata()) == 0
  plots.save(figure, tmp_path / 'curves.png')
  plots.save(plots.curves([]), tmp_path / 'empty.png')


def test_comparison(tmp_path):
  def row(method, delta, interval):
    value = {'mean': delta, 'interval': interval, 'values': [delta, delta]}
    return dict(method=method, delta_m=value, test={'a': {'accuracy': value}, 'b': {'rmse': value}})

  rows = [row('single-task', 0.0, None), row('equal', 1.0, 0.5), row('mgda', math.nan, math.nan)]
  figure = plots.comparison(rows, {'a': ('accuracy', True), 'b': ('rmse', False)})
  assert [axis.get_xlabel() for axis in figure.axes] == [
    'Δm against single-task [%] →',
    'a: test accuracy →',
    'b: test rmse ←',
  ]
  assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ['single-task', 'equal', 'mgda']
  assert '2 seeds' in figure.get_supxlabel()
  plots.save(figure, tmp_path / 'compare.png')


def test_many_tasks_are_grey_behind_their_mean(tmp_path):
  names = [f't{i}' for i in range(139)]
  found = [
    {'step': s, 'losses': {n: i / s for i, n in enumerate(names, 1)}, 'weights': None, 'norms': None} for s in (1, 2, 4)
  ]
  found[2]['losses']['t0'] = None  # absent
  figure = plots.curves(found)
  lines = figure.axes[0].get_lines()
  assert len(lines) == 140 and [text.get_text() for text in figure.legends[0].get_texts()] == [
    'a task',
    'mean of the 139 tasks',
  ]
  np.testing.assert_allclose(lines[-1].get_xydata(), [[1, 70], [2, 35], [4, (139 * 70 - 1) / 138 / 4]])
  plots.save(figure, tmp_path / 'curves.png')


def test_a_comparison_of_many_tasks_has_a_panel_for_each_metric(tmp_path):
  value = lambda *seeds: {'mean': sum(seeds) / len(seeds), 'interval': 0.1, 'values': list(seeds)}
  test = {f't{i}': {'rmse': value(i, i + 1)} for i in range(12)}
  row = dict(method='equal', test=test, delta_m=value(0.0, 1.0))
  figure = plots.comparison([row], {task: ('rmse', False) for task in test})
  assert [axis.get_xlabel() for axis in figure.axes][1:] == ['mean of 12 tasks: test rmse ←', ''][
    : len(figure.axes) - 1
  ]
  plots.save(figure, tmp_path / 'compare.png')
