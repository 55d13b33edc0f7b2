"""Figures of runs and comparisons, legible at the width of a notebook; matplotlib without global state."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mtljax.analysis import tables

COLUMNS = 3
MOST_LINES = 12  # with a colour and a name each
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')  # Okabe & Ito
STYLES = ('-', '--', ':', '-.')


def curves(records: Sequence[Mapping]):
  """Losses, validation metrics and weights over steps.

  Args:
    records: of `metrics.jsonl` (`rundir.read_metrics`).

  Returns:
    A matplotlib figure, 9 inches wide: losses, a panel for every kind of first metric, and the balancer's weights
    (gradient norms for a method without weights). More than twelve tasks are grey behind their mean.
  """
  steps = [record for record in records if 'losses' in record]
  val = [record for record in records if 'val' in record]
  names = list(dict.fromkeys(task for record in steps for task in record['losses']))
  names = names or list(dict.fromkeys(task for record in val for task in record['val']))
  metrics: dict[str, list[str]] = {}  # {first metric: its tasks}
  for task in names:
    found = [metric for metric in (val[-1]['val'].get(task, {}) if val else {}) if metric != 'loss']
    if found:
      metrics.setdefault(found[0], []).append(task)
  panels = [('training loss', lambda task: _series(steps, task, 'losses'))]
  for metric, tasks in metrics.items():
    panels.append(
      (f'validation {metric}', lambda t, m=metric, of=tasks: _series(val, t, 'val', m) if t in of else ([], []))
    )
  if any(record['weights'] for record in steps):
    panels.append(('weight of the balancer', lambda task: _series(steps, task, 'weights')))
  elif any(record['norms'] for record in steps):
    panels.append(('gradient norm', lambda task: _series(steps, task, 'norms')))

  figure, axes = _grid(len(panels), 2.9)
  for axis, (label, series) in zip(axes, panels):
    values = []
    for index, task in enumerate(names):
      x, y = series(task)
      values += y
      if len(names) > MOST_LINES:
        axis.plot(x, y, color='#bbbbbb', lw=0.5, label='a task' if index == 0 else None)
        continue
      wide = 1.4 * (1 - index / max(len(names) - 1, 1)) if 'weight' in label else 0  # equal weights: all visible
      _line(axis, x, y, index, task, 1.5 + wide)
    if len(names) > MOST_LINES:
      _line(axis, *_mean([series(task) for task in names]), 0, f'mean of the {len(names)} tasks', 1.8)
    positive = [value for value in values if value > 0]
    if 'loss' in label or 'norm' in label:
      if len(positive) == len(values) and values and max(values) > 20 * min(values):
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:g}')
    elif values and max(values) - min(values) < 1e-3 * max(map(abs, values)):
      middle = sum(values) / len(values)  # constant weights: no axis of 1e-9 offsets
      axis.set_ylim(middle - 0.5 * abs(middle) - 0.1, middle + 0.5 * abs(middle) + 0.1)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(_ticks(6))
    axis.set_xlabel('step')
    axis.set_ylabel(label)
  _legend(figure, axes[0])
  return figure


def comparison(rows: Sequence[Mapping], metrics: Mapping[str, tuple[str, bool]]):
  """Δm and the first metric of every task, method by method, with 95 % intervals over seeds.

  Of more than four tasks those with the same first metric have one panel, the mean over them.

  Args:
    rows: of `compare`.
    metrics: {task: (its first metric, whether higher is better)}.

  Returns:
    A matplotlib figure, 9 inches wide.
  """
  methods = [row['method'] for row in rows]
  panels = [('Δm against single-task [%] →', [row['delta_m'] for row in rows])]
  for of, metric, value in tables.columns({task: metric for task, (metric, _) in metrics.items()}):
    who = of[0] if len(of) == 1 else f'mean of {len(of)} tasks'
    arrow = '→' if metrics[of[0]][1] else '←'
    panels.append((f'{who}: test {metric} {arrow}', [value(row['test']) for row in rows]))
  figure, axes = _grid(len(panels), 1.1 + 0.27 * len(methods), sharey=True)
  for axis, (label, values) in zip(axes, panels):
    for y, value in enumerate(values):
      if value['mean'] is None or not math.isfinite(value['mean']):
        continue
      width = value['interval'] if value['interval'] is not None and math.isfinite(value['interval']) else 0
      color = '#999999' if methods[y] == 'single-task' else COLORS[0]
      axis.errorbar(value['mean'], y, xerr=width, fmt='o', ms=4, capsize=2.5, lw=1.2, color=color)
    baseline = values[methods.index('single-task')]['mean'] if 'single-task' in methods else None
    if baseline is not None and math.isfinite(baseline):
      axis.axvline(baseline, color='#999999', lw=0.8, ls='--', zorder=0)
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(_ticks(4))
  seeds = max(len(row['delta_m']['values']) for row in rows)
  text = 'dashed: single-task; →/←: better' + (f'; bars: 95 % interval over {seeds} seeds' if seeds > 1 else '')
  figure.supxlabel(text, fontsize=8, color='#555555')
  return figure


def save(figure, path) -> pathlib.Path:
  """Writes a figure as PNG and returns the path."""
  path = pathlib.Path(path)
  figure.savefig(path, dpi=150, facecolor='white')
  return path


def _grid(count, height, sharey=False):
  from matplotlib.figure import Figure

  columns = 2 if count == 4 else min(count, COLUMNS)
  lines = math.ceil(count / columns)
  figure = Figure(figsize=(9, height * lines), layout='constrained')
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
  axes = figure.subplots(lines, columns, squeeze=False, sharey=sharey).ravel()
  for axis in axes[count:]:
    axis.set_axis_off()
  for axis in axes[:count]:
    axis.grid(color='#dddddd', lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.xaxis.label.set_size(9)
    axis.yaxis.label.set_size(9)
    axis.spines[['top', 'right']].set_visible(False)
  return figure, axes[:count]


def _ticks(bins):
  from matplotlib.ticker import MaxNLocator

  return MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10])


def _series(records, task, key, metric=None):
  """Steps and values of one task, without the records that do not have it."""
  x, y = [], []
  for record in records:
    value = (record.get(key) or {}).get(task)
    value = value.get(metric) if isinstance(value, Mapping) else value
    if value is not None:
      x.append(record['step'])
      y.append(value)
  return x, y


def _mean(series):
  """Steps, and the mean at each over those that have a value there."""
  found = {}
  for x, y in series:
    for step, value in zip(x, y):
      found.setdefault(step, []).append(value)
  return sorted(found), [sum(found[step]) / len(found[step]) for step in sorted(found)]


def _line(axis, x, y, index, task, width):
  style = dict(color=COLORS[index % len(COLORS)], ls=STYLES[index // len(COLORS) % len(STYLES)])
  if len(y) > 40:  # noise of single batches behind, a running mean in front
    axis.plot(x, y, lw=0.6, alpha=0.3, color=style['color'])
    window = max(len(y) // 20, 3)
    padded = np.pad(np.asarray(y, float), (window // 2, window - 1 - window // 2), mode='edge')
    y = np.convolve(padded, np.ones(window) / window, mode='valid')
  axis.plot(x, y, lw=width, marker='o' if len(y) <= 12 else None, ms=3, label=task, **style)


def _legend(figure, axis):
  handles, labels = axis.get_legend_handles_labels()
  if handles:
    figure.legend(handles, labels, loc='outside upper center', ncols=min(len(labels), 6), fontsize=9, frameon=False)
