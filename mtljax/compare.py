"""An honest comparison: single-task baselines and every balancer, one budget, rates tuned alike, seeds matched.

Seeds and rates of a row run as lanes of one compiled program: a step is a plain function, so a stack of states goes
through `vmap` with the learning rate as an argument.
"""

import csv
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays, balancing, evaluate, loop, metrics, rundir, sharing, train_step
from mtljax import inputs as inputs_lib
from mtljax.analysis import plots, tables
from mtljax.base import InputError
from mtljax.experiment import Experiment, Options, Run, subset

SINGLE = 'single-task'


@dataclasses.dataclass(frozen=True)
class Plan:
  """What every row of a comparison shares.

  Attributes:
    balancers: methods, by name or as calls with literals; `equal` is always among them.
    seeds: of the runs; the same for every row.
    learning_rates: tried for every row; the best on validation data is reported.
    steps: budget of every run.
    at: where task gradients are balanced, on shared parameters or on shared features.
  """

  balancers: Sequence[str] = ('equal',)
  seeds: Sequence[int] = (0, 1, 2)
  learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
  steps: int = 500
  at: str = 'params'

  def __post_init__(self):
    checks = {
      'seeds': ('whole numbers >= 0', lambda seed: seed >= 0 and seed == int(seed)),
      'learning_rates': ('positive numbers', lambda rate: 0 < rate < float('inf')),
    }
    for name, (expected, fits) in checks.items():
      values = list(getattr(self, name))
      if not values or not all(map(fits, values)) or len(set(values)) < len(values):
        raise InputError(f'{name}: found {values}, expected one or more different {expected}.')
    if self.steps < 1:
      raise InputError(f'steps: found {self.steps}, expected a positive integer.')


class Lanes:
  """One row of a comparison: all rates (R) times seeds (S) of one method as one compiled program.

  A step is a plain function, so a stack of states goes through `vmap`, the learning rate being an argument. A method
  that builds a Jacobian runs its lanes one after another in that program when it is on the CPU: batched over lanes and
  tasks at once, XLA's products take twice as long there.

  Args:
    experiment, plan: what to run.
    balancer: the method.
    evaluator: `lane_evaluator(experiment)`.

  Attributes:
    state: stack of states, rates first: lane r * S + s.
  """

  def __init__(self, experiment: Experiment, plan: Plan, balancer: str, evaluator: Callable):
    self.experiment, self.plan, self.evaluator = experiment, plan, evaluator
    self.names = arrays.task_names(experiment.tasks)
    model, tasks, train = experiment.model, experiment.tasks, experiment.train
    method = balancing.parse(balancer, steps_per_epoch=train.steps_per_epoch)
    batch = train(plan.seeds[0], 0)

    def init(rate, key):
      return train_step.init_state(model, tasks, experiment.optimizer(rate, self.names), method, batch, key)

    def lane(rate, state, rows, examples):
      optimizer = experiment.optimizer(rate, self.names)
      step = train_step.make_train_step(
        model, tasks, optimizer, method, at=plan.at, penalties=tuple(experiment.penalties)
      )
      return step(state, train.take(examples, rows))

    def one_by_one(rates, state, rows, examples):
      return jax.lax.map(lambda args: lane(*args, examples), (rates, state, rows))

    self.rates = jnp.repeat(jnp.asarray(plan.learning_rates, arrays.real_dtype()), len(plan.seeds))
    keys = jnp.stack([jax.random.key(seed) for _ in plan.learning_rates for seed in plan.seeds])
    self.state = jax.jit(lambda *lanes: jax.lax.map(lambda lane: init(*lane), lanes))(self.rates, keys)
    serial = jax.default_backend() == 'cpu' and method.level != 'losses'
    self._program = jax.jit(one_by_one if serial else jax.vmap(lane, (0, 0, 0, None)), donate_argnums=1)
    self._program.eval_shape(*self._arguments(self.state, 0))  # finds what is wrong before anything is trained

  def _arguments(self, state, index):
    train, plan = self.experiment.train, self.plan
    rows = [train.indices(seed, index) for seed in plan.seeds] * len(plan.learning_rates)
    return self.rates, state, jax.tree.map(lambda *rows: np.stack(rows), *rows), train.examples

  def train(self, title: str, progress: bool) -> int:
    """Runs the budget and returns how many steps of all lanes were skipped because they were not finite."""
    fitted = loop.fit(
      self.state,
      lambda state, index: self._program(*self._arguments(state, index)),
      self.plan.steps,
      names=self.names,
      log_every=20,
      on_nonfinite='skip',  # a lane that diverges stands still and keeps the others running
      title=title,
      progress=progress,
    )
    if fitted.stopped:
      raise KeyboardInterrupt
    self.state = fitted.state
    return int(fitted.skipped.sum())

  def evaluate(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """{'val' and 'test': {task: {metric: f[R, S]}}}."""
    shape = (len(self.plan.learning_rates), len(self.plan.seeds))
    return {split: self.evaluator(self.state, getattr(self.experiment, split), shape) for split in ('val', 'test')}


def lane_evaluator(experiment: Experiment) -> Callable:
  """`(stack of states, batches, shape) -> {task: {metric: f[shape]}}`, compiled once for all rows of the experiment."""
  model, tasks = experiment.model, experiment.tasks
  eval_step = jax.jit(jax.vmap(evaluate.make_eval_step(model, tasks), (0, 0, None)))
  merge = jax.jit(jax.vmap(lambda a, b: evaluate.merge(tasks, a, b)))
  compute = jax.jit(jax.vmap(lambda sums: evaluate.compute(tasks, sums)))

  def run(state, batches, shape):
    variables = (state.params, state.model_state)
    if any(task.decode is not None for task in tasks):  # decoders run outside of jit, lane by lane
      lanes = [jax.tree.map(lambda x, i=i: x[i], variables) for i in range(state.step.size)]
      values = jax.tree.map(
        lambda *x: np.array(x), *(evaluate.evaluate(model, tasks, *lane, batches) for lane in lanes)
      )
    else:
      sums = [eval_step(*variables, batch) for batch in batches]
      values = jax.device_get(compute(functools.reduce(merge, sums)))
    return {
      task.name: {n: np.asarray(values[task.name][n], float).reshape(shape) for n in (*task.metrics, 'loss')}
      for task in tasks
    }

  return run


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The outcome: `rows` as in compare.json; as text it is the leaderboard."""

  experiment: str
  plan: Plan
  metrics: Mapping[str, tuple[str, bool]]
  rows: Sequence[Mapping[str, Any]]

  def __str__(self):
    return tables.leaderboard(self.rows, {task: name for task, (name, _) in self.metrics.items()})

  def figure(self):
    """Δm and metrics with intervals, a matplotlib figure."""
    return plots.comparison(self.rows, self.metrics)

  def save(self, folder, config: Mapping[str, Any] | None = None) -> None:
    """Writes compare.json, compare.csv and compare.png."""
    head = {'experiment': self.experiment, **dataclasses.asdict(self.plan), **(config or {})}
    metrics = {task: {'metric': name, 'higher_is_better': higher} for task, (name, higher) in self.metrics.items()}
    rundir.write_json(folder / 'compare.json', {**head, 'metrics': metrics, 'rows': self.rows})
    flat = [self._flat(row) for row in self.rows]
    with (folder / 'compare.csv').open('w', newline='') as file:
      writer = csv.DictWriter(file, list(flat[0]))
      writer.writeheader()
      writer.writerows(flat)
    plots.save(self.figure(), folder / 'compare.png')

  def _flat(self, row):
    flat = {'method': row['method']}
    for task, found in row['test'].items():
      for name, value in found.items():
        flat |= {f'{task} {name}': value['mean'], f'{task} {name} interval': value['interval']}
    flat |= {'delta_m': row['delta_m']['mean'], 'delta_m interval': row['delta_m']['interval']}
    rate = row['learning_rate']
    flat |= {name: row[name] for name in ('mean_rank', 'step_time', 'steps', 'skipped')}
    return flat | {'learning_rate': ' '.join(f'{r:g}' for r in rate.values()) if isinstance(rate, Mapping) else rate}


def compare(
  experiment: Experiment,
  plan: Plan,
  *,
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
  The step time is that of a single run, measured after training, row by row in turn, and given relative to `equal`.

  Args:
    experiment, plan: what to compare, and how.
    run_dir: gets compare.json, compare.csv and compare.png; None writes nothing.
    overwrite: whether an earlier comparison there may be replaced.
    config: more for compare.json.
    report: gets a line for every row that is done.
    progress: shows bars.

  Returns:
    The rows, baselines first, then by Δm.

  Raises:
    InputError: something does not fit; before anything is trained.
  """
  better = metrics.directions(experiment.tasks)
  if not experiment.val:
    raise InputError('Experiment val: found no batch, expected some: a comparison chooses its learning rates on them.')
  inputs = inputs_lib.inputs_by_task(experiment.train(plan.seeds[0], 0), [task.name for task in experiment.tasks])
  kept = sharing.keeps_own_values(experiment.model, inputs)
  if kept and len(plan.seeds) > 1:
    raise InputError(
      f'Experiment model: {", ".join(kept)} is an nnx instance, expected a function rngs -> module: '
      'it keeps its values, so every seed would start from the same parameters.'
    )
  methods = tuple(dict.fromkeys(('equal', *(text.strip() for text in plan.balancers))))
  for method in methods:
    balancing.parse(method, steps_per_epoch=experiment.train.steps_per_epoch)  # a misspelt one is said at once
  plan = dataclasses.replace(plan, balancers=methods)
  singles = dataclasses.replace(plan, at='params')
  parts = [subset(experiment, [task.name]) for task in experiment.tasks]
  evaluator = lane_evaluator(experiment)
  lanes = {SINGLE: [Lanes(part, singles, 'equal', lane_evaluator(part)) for part in parts]}
  lanes |= {method: [Lanes(experiment, plan, method, evaluator)] for method in methods}
  folder = None if run_dir is None else rundir.create(run_dir, overwrite=overwrite)
  found, chosen, skipped, states, base = {}, {}, {}, {}, {}
  for method, row in lanes.items():
    clock, skipped[method], values = time.perf_counter(), 0, {'val': {}, 'test': {}}
    for part in row:
      title = method if len(row) == 1 else f'{method} {part.names[0]}'
      skipped[method] += part.train(title, progress)
      for split, of_part in part.evaluate().items():
        values[split] |= of_part
      states.setdefault(method, []).append(jax.tree.map(lambda x: x[0], part.state))
      part.state = None  # the memory of all lanes
    if method == SINGLE:
      picks = {task: _best_by_metric(values['val'], task, better) for task in better}
      base = {split: {t: _pick(values[split][t], picks[t]) for t in picks} for split in values}
      found[method] = base
      chosen[method] = {task: plan.learning_rates[pick] for task, pick in picks.items()}
      text = ', '.join(f'{task} rate {rate:g}' for task, rate in chosen[method].items())
    else:
      rates = range(len(plan.learning_rates))
      deltas = [np.mean(metrics.delta_m(_at(values['val'], rate), base['val'], better)) for rate in rates]
      pick = _argbest(deltas)
      found[method] = {split: _at(values[split], pick) for split in values}
      chosen[method] = plan.learning_rates[pick]
      text = f'rate {chosen[method]:g}, Δm on validation {deltas[pick]:+.2f} %'
    late = f', {skipped[method]} steps of diverging lanes skipped' if skipped[method] else ''
    if report is not None:
      report(f'{method}: {text}{late} ({time.perf_counter() - clock:.0f} s)')

  times = _step_times(experiment, plan, parts, states)
  means = {m: {t: {n: np.mean(v) for n, v in part.items()} for t, part in found[m]['test'].items()} for m in methods}
  ranks = metrics.mean_rank(means, better)
  rows = []
  for method in (SINGLE, *methods):
    delta = metrics.delta_m(found[method]['test'], base['test'], better)
    rows.append(
      {
        'method': method,
        'test': _statistics(found[method]['test']),
        'val': _statistics(found[method]['val']),
        'delta_m': _statistic(delta)
        if method != SINGLE
        else {'mean': 0.0, 'interval': None, 'values': [0.0] * len(delta)},
        'mean_rank': ranks.get(method),
        'step_time': times[method] / times['equal'],
        'step_ms': times[method],
        'steps': plan.steps,
        'learning_rate': chosen[method],
        'skipped': skipped[method],
      }
    )
  rows[1:] = sorted(rows[1:], key=lambda row: -np.nan_to_num(row['delta_m']['mean'], nan=-np.inf))
  first = {task: next(iter(found.items())) for task, found in better.items()}
  outcome = Comparison(experiment.name, plan, first, rows)
  if folder is not None:
    outcome.save(folder, config)
  return outcome


def _step_times(experiment, plan, parts, states, rounds: int = 9) -> dict[str, float]:
  """Milliseconds per step of a single run of every row, T of them for the baselines; `states` are used up.

  Rounds in turn, so that a busy machine hits all rows alike.
  """
  options = Options(seed=plan.seeds[0], learning_rate=plan.learning_rates[0], steps=plan.steps)
  runs = {SINGLE: [Run(part, options) for part in parts]}
  for method in plan.balancers:
    runs[method] = [Run(experiment, dataclasses.replace(options, balancer=method, at=plan.at))]

  def milliseconds(method, steps):
    clock = time.perf_counter()
    for part, run in enumerate(runs[method]):
      for index in range(steps):
        states[method][part], info = run.step(states[method][part], index)
      jax.block_until_ready(info)
    return 1e3 * (time.perf_counter() - clock) / steps

  for method in runs:
    milliseconds(method, 1)  # compiles
  steps = max(2, min(20, int(50 / milliseconds('equal', 2))))
  times = [{method: milliseconds(method, steps) for method in runs} for _ in range(rounds)]
  equal = float(np.median([found['equal'] for found in times]))
  return {method: equal * float(np.median([found[method] / found['equal'] for found in times])) for method in runs}


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
