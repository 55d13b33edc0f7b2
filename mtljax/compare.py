"""An honest comparison: single-task baselines and every balancer, one budget, rates tuned alike, seeds matched."""

import contextlib
import csv
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtljax import arrays, balancing, metrics, rundir, sharing
from mtljax import inputs as inputs_lib
from mtljax.analysis import plots, tables
from mtljax.base import InputError
from mtljax.checkpoint import SaveError
from mtljax.experiment import Experiment, Options, subset
from mtljax.lanes import Lanes, Plan, lane_evaluator
from mtljax.runs import Run

SINGLE = 'single-task'


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The outcome: `rows` as in compare.json; as text it is the leaderboard."""

  experiment: str
  plan: Plan
  metrics: Mapping[str, tuple[str, bool]]
  rows: Sequence[Mapping[str, Any]]
  reference: str = 'equal'  # the row whose step time is 1

  def __str__(self):
    return tables.leaderboard(self.rows, {task: name for task, (name, _) in self.metrics.items()}, self.reference)

  def figure(self):
    """Δm and metrics with intervals, a matplotlib figure."""
    return plots.comparison(self.rows, self.metrics)

  def save(self, folder, config: Mapping[str, Any] | None = None) -> None:
    """Writes compare.json, compare.csv and compare.png."""
    head = {'experiment': self.experiment, **dataclasses.asdict(self.plan), **(config or {})}
    metrics = {task: {'metric': name, 'higher_is_better': higher} for task, (name, higher) in self.metrics.items()}
    rundir.write_json(folder / 'compare.json', {**head, 'metrics': metrics, 'rows': self.rows})
    flat = [self._flat(row) for row in self.rows]
    with rundir.whole(folder / 'compare.csv') as partial, partial.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(flat[0]))
      writer.writeheader()
      writer.writerows(flat)
    with rundir.whole(folder / 'compare.png') as partial:
      plots.save(self.figure(), partial)

  def _flat(self, row):
    flat = {'method': row['method']}
    for task, found in row['test'].items():
      for name, value in found.items():
        flat |= {f'{task} {name}': value['mean'], f'{task} {name} interval': value['interval']}
    flat |= {'delta_m': row['delta_m']['mean'], 'delta_m interval': row['delta_m']['interval']}
    rate = row['learning_rate']
    flat |= {name: row[name] for name in ('mean_rank', 'step_time', 'parameters', 'steps', 'skipped')}
    return flat | {'learning_rate': ' '.join(f'{r:g}' for r in rate.values()) if isinstance(rate, Mapping) else rate}


def compare(
  experiment: Experiment,
  plan: Plan,
  *,
  variants: Mapping[str, Experiment] | None = None,
  run_dir=None,
  overwrite: bool = False,
  config: Mapping[str, Any] | None = None,
  report: Callable[[str], None] | None = None,
  progress: bool = True,
) -> Comparison:
  """Trains the single-task baselines and every balancer, and ranks them.

  The learning rate is chosen on validation data: for a baseline by its task's first metric, for a balancer by Δm
  against the tuned baselines, both as means over seeds. Test numbers are those of the chosen rate, after the last step.
  Δm is seed-matched: every seed against the baselines of the same seed. Intervals are 95 % Student-t over seeds.
  The step time is that of a single run, measured after training, row by row in turn, and given relative to the first
  row behind the baselines.

  Args:
    experiment, plan: what to compare, and how.
    variants: {name: experiment} with the same tasks and data, such as one for every architecture: each is a row for
      every balancer, against the single-task baselines of `experiment`. None compares balancers on `experiment`.
    run_dir: gets compare.json, compare.csv and compare.png; None writes nothing.
    overwrite: whether an earlier comparison there may be replaced.
    config: more for compare.json.
    report: gets a line for every row that is done.
    progress: shows bars.

  Returns:
    The rows, baselines first, then by Δm.

  Raises:
    InputError: something does not fit, or another run is using `run_dir`; before anything is trained.
    SaveError: `run_dir` has no room for the result, which `report` has got.
  """
  better = metrics.directions(experiment.tasks)
  for variant in (experiment, *(variants or {}).values()):
    _check_variant(variant, experiment, plan)
  methods = tuple(dict.fromkeys(('equal', *(text.strip() for text in plan.balancers))))
  for method in methods:
    balancing.parse(method, steps_per_epoch=experiment.train.steps_per_epoch)  # a misspelt one is said at once
  plan = dataclasses.replace(plan, balancers=methods)
  rows = _rows(experiment, methods, variants)
  evaluators = {id(part): lane_evaluator(part) for row in rows.values() for part, _ in row}
  lanes = {}
  for label, row in rows.items():
    at = 'params' if label == SINGLE else plan.at
    try:
      lanes[label] = [
        Lanes(part, dataclasses.replace(plan, at=at), method, evaluators[id(part)]) for part, method in row
      ]
    except InputError as error:  # of many rows, which?
      raise InputError(f'{label}: {error}') from error
  place = contextlib.nullcontext() if run_dir is None else rundir.use(run_dir, overwrite=overwrite)
  with place as folder:
    comparison = _compared(experiment, plan, better, rows, lanes, report, progress)
    try:
      if folder is not None:
        comparison.save(folder, config)
    except SaveError:
      if report is not None:
        report(str(comparison))  # hours of work, and a full disk
      raise
  return comparison


def _compared(experiment, plan, better, rows, lanes, report, progress) -> Comparison:
  """Trains all rows and ranks them."""
  found, chosen, skipped, states, sizes, base = {}, {}, {}, {}, {}, {}
  for label, row in lanes.items():
    clock, skipped[label], values = time.perf_counter(), 0, {'val': {}, 'test': {}}
    for part in row:
      title = label if len(row) == 1 else f'{label} {part.names[0]}'
      skipped[label] += part.train(title, progress)
      for split, of_part in part.evaluate().items():
        values[split] |= of_part
      states.setdefault(label, []).append(jax.tree.map(lambda x: x[0], part.state))
      part.state = None  # the memory of all lanes
    sizes[label] = sum(leaf.size for state in states[label] for leaf in jax.tree.leaves(state.params))
    if label == SINGLE:
      picks = {task: _best_by_metric(values['val'], task, better) for task in better}
      base = {split: {t: _pick(values[split][t], picks[t]) for t in picks} for split in values}
      found[label] = base
      chosen[label] = {task: plan.learning_rates[pick] for task, pick in picks.items()}
      text = ', '.join(f'{task} rate {rate:g}' for task, rate in chosen[label].items())
    else:
      rates = range(len(plan.learning_rates))
      deltas = [np.mean(metrics.delta_m(_at(values['val'], rate), base['val'], better)) for rate in rates]
      pick = _argbest(deltas)
      found[label] = {split: _at(values[split], pick) for split in values}
      chosen[label] = plan.learning_rates[pick]
      text = f'rate {chosen[label]:g}, Δm on validation {deltas[pick]:+.2f} %'
    late = f', {skipped[label]} steps of diverging lanes skipped' if skipped[label] else ''
    if report is not None:
      report(f'{label}: {text}{late} ({time.perf_counter() - clock:.0f} s)')

  labels = tuple(rows)[1:]
  times = _step_times(rows, plan, states)
  means = {m: {t: {n: np.mean(v) for n, v in part.items()} for t, part in found[m]['test'].items()} for m in labels}
  ranks = metrics.mean_rank(means, better)
  outcome = []
  for label in rows:
    delta = metrics.delta_m(found[label]['test'], base['test'], better)
    outcome.append(
      {
        'method': label,
        'test': _statistics(found[label]['test']),
        'val': _statistics(found[label]['val']),
        'delta_m': _statistic(delta)
        if label != SINGLE
        else {'mean': 0.0, 'interval': None, 'values': [0.0] * len(delta)},
        'mean_rank': ranks.get(label),
        'step_time': times[label] / times[labels[0]],
        'step_ms': times[label],
        'parameters': sizes[label],
        'steps': plan.steps,
        'learning_rate': chosen[label],
        'skipped': skipped[label],
      }
    )
  outcome[1:] = sorted(outcome[1:], key=lambda row: -np.nan_to_num(row['delta_m']['mean'], nan=-np.inf))
  first = {task: next(iter(found.items())) for task, found in better.items()}
  return Comparison(experiment.name, plan, first, outcome, labels[0])


def _check_variant(variant: Experiment, experiment: Experiment, plan: Plan) -> None:
  """Raises unless a comparison can run it."""
  if not variant.val:
    raise InputError('Experiment val: found no batch, expected some: a comparison chooses its learning rates on them.')
  names, expected = (arrays.task_names(part.tasks) for part in (variant, experiment))
  if names != expected:
    raise InputError(f'variants: found one with tasks {names}, expected {expected}, those of the experiment.')
  kept = sharing.keeps_own_values(variant.model, inputs_lib.inputs_by_task(variant.train.example(), names))
  if kept and len(plan.seeds) > 1:
    raise InputError(
      f'Experiment model: {", ".join(kept)} is an nnx instance, expected a function rngs -> module: '
      'it keeps its values, so every seed would start from the same parameters.'
    )


def _rows(experiment, methods, variants) -> dict[str, list[tuple[Experiment, str]]]:
  """{label: [(experiment, balancer)]}: one of each task alone for the baselines, which come first."""
  rows = {SINGLE: [(subset(experiment, [task.name]), 'equal') for task in experiment.tasks]}
  if variants is None:
    return rows | {method: [(experiment, method)] for method in methods}
  for name, variant in variants.items():
    rows |= {name if len(methods) == 1 else f'{name}, {method}': [(variant, method)] for method in methods}
  return rows


def _step_times(rows, plan, states, rounds: int = 9) -> dict[str, float]:
  """Milliseconds per step of a single run of every row, T of them for the baselines; `states` are used up.

  Rounds in turn, so that a busy machine hits all rows alike.
  """
  options = Options(seed=plan.seeds[0], learning_rate=plan.learning_rates[0], steps=plan.steps)
  runs = {
    label: [
      Run(part, dataclasses.replace(options, balancer=method, at='params' if label == SINGLE else plan.at))
      for part, method in row
    ]
    for label, row in rows.items()
  }

  def milliseconds(label, steps):
    clock = time.perf_counter()
    for part, run in enumerate(runs[label]):
      for index in range(steps):
        states[label][part], info = run.step(states[label][part], index)
      jax.block_until_ready(info)
    return 1e3 * (time.perf_counter() - clock) / steps

  for label in runs:
    milliseconds(label, 1)  # compiles
  first = tuple(rows)[1]
  steps = max(2, min(20, int(50 / milliseconds(first, 2))))
  times = [{label: milliseconds(label, steps) for label in runs} for _ in range(rounds)]
  unit = float(np.median([found[first] for found in times]))
  return {label: unit * float(np.median([found[label] / found[first] for found in times])) for label in runs}


def _best_by_metric(values, task, better) -> int:
  name, higher = next(iter(better[task].items()))
  return _argbest([np.mean(row) * (1 if higher else -1) for row in values[task][name]])


def _argbest(scores) -> int:
  return int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))


def _at(values, rate):
  return {task: _pick(part, rate) for task, part in values.items()}


def _pick(part, rate):
  return {name: value[rate] for name, value in part.items()}


def _statistics(values):
  return {task: {name: _statistic(found) for name, found in part.items()} for task, part in values.items()}


def _statistic(values):
  mean, interval = metrics.confidence_interval(values)
  return {'mean': mean, 'interval': interval, 'values': [float(value) for value in values]}
