"""Aligned tables for the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence

from mtljax import metrics as metrics_lib


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of text: the first column to the left, the others to the right, a rule below the header.

  >>> print(aligned(['task', 'accuracy'], [['digit', '0.97'], ['parity', '0.981']]))
  task    accuracy
  ------  --------
  digit       0.97
  parity     0.981
  """
  lines = [list(header), *[list(row) for row in rows]]
  widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
  lines.insert(1, ['-' * width for width in widths])
  text = []
  for line in lines:
    cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
    text.append('  '.join(cells).rstrip())
  return '\n'.join(text)


def metric_table(values: Mapping[str, Mapping[str, float]], title: str = 'task') -> str:
  """Tasks down, metrics across.

  >>> print(metric_table({'digit': {'accuracy': 0.97, 'loss': 0.1}, 'size': {'rmse': 2.0, 'loss': 4.0}}, 'test'))
  test   accuracy    rmse    loss
  -----  --------  ------  ------
  digit    0.9700       –  0.1000
  size          –  2.0000  4.0000
  """
  names = list(dict.fromkeys(name for task in values.values() for name in task if name != 'loss')) + ['loss']
  names = [name for name in names if any(name in task for task in values.values())]
  rows = [[task, *(number(found.get(name)) for name in names)] for task, found in values.items()]
  return aligned([title, *names], rows)


MOST_TASKS = 4  # with a column each


def leaderboard(rows: Sequence[Mapping], tasks: Mapping[str, str], reference: str = 'equal') -> str:
  """The table of a comparison, in the order of `rows`.

  Every task has a column; of more than four, those with the same first metric have one together, the mean over them
  (seed by seed, so that the interval is that of the mean).

  Args:
    rows: of `compare`.
    tasks: {task: its first metric}.
    reference: the row whose step time is 1.

  The number of parameters is shown where it differs from row to row, baselines apart.
  """
  sizes = {row.get('parameters') for row in rows[1:]}
  shown = columns(tasks)
  header = ['method', *(f'{m}, {len(of)} tasks' if len(of) > 1 else f'{of[0]} {m}' for of, m, _ in shown)]
  header += ['Δm [%]', 'rank', f'time/{reference}', *(['parameters'] if len(sizes) > 1 else []), 'steps', 'rate']
  text = []
  for row in rows:
    rate = row['learning_rate']
    rates = list(rate.values()) if isinstance(rate, Mapping) else [rate]
    text.append(
      [
        row['method'],
        *(with_interval(value(row['test'])) for _, _, value in shown),
        with_interval(row['delta_m'], '+.2f'),
        number(row['mean_rank'], '.2f'),
        number(row['step_time'], '.2f'),
        *([f'{row["parameters"]:,}'] if len(sizes) > 1 else []),
        str(row['steps']),
        '/'.join(f'{rate:g}' for rate in dict.fromkeys(rates)),
      ]
    )
  return aligned(header, text)


def columns(tasks: Mapping[str, str]) -> list[tuple[tuple[str, ...], str, Callable[[Mapping], Mapping]]]:
  """What a comparison shows of {task: its first metric}: (tasks, metric, a row's test values -> mean and interval).

  Every task alone, or of more than four those with the same metric together.
  """
  if len(tasks) <= MOST_TASKS:
    return [((task,), metric, lambda test, t=task, m=metric: test[t][m]) for task, metric in tasks.items()]
  groups = {}
  for task, metric in tasks.items():
    groups.setdefault(metric, []).append(task)
  return [
    (tuple(of), metric, lambda test, of=of, m=metric: _mean(test[task][m]['values'] for task in of))
    for metric, of in groups.items()
  ]


def _mean(values) -> dict[str, float]:
  """Mean over tasks, interval over seeds, of the values [seed] of each task; NaN where one of them has none."""
  values = [[math.nan if value is None else value for value in seeds] for seeds in values]
  mean, interval = metrics_lib.confidence_interval([math.fsum(seed) / len(seed) for seed in zip(*values)])
  return {'mean': mean, 'interval': interval}


def with_interval(value: Mapping[str, float | None], spec: str | None = None) -> str:
  """'mean ± half width', or the mean alone for a single seed."""
  mean, interval = value['mean'], value['interval']
  spec = spec or _spec(mean)
  if mean is None or interval is None or math.isnan(interval):
    return number(mean, spec)
  return f'{mean:{spec}} ± {interval:{spec.lstrip("+")}}'


def number(value: float | None, spec: str | None = None) -> str:
  """A number, or a dash where there is none.

  >>> number(0.25), number(3.2e-5), number(2567978.0)
  ('0.2500', '3.200e-05', '2.568e+06')
  """
  return '–' if value is None or math.isnan(value) else f'{value:{spec or _spec(value)}}'


def _spec(value: float | None) -> str:
  """Four places, or four digits of what they would not show: metrics in units of their own."""
  return '.3e' if value and not 1e-3 <= abs(value) < 1e5 else '.4f'
