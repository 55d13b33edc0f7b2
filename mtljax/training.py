"""Training: `train`, one run of an experiment in its directory."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtljax import checkpoint, rundir
from mtljax.analysis import plots, tables
from mtljax.base import InputError
from mtljax.experiment import Experiment, Options, score
from mtljax.loop import NonFiniteError, fit
from mtljax.runs import Run


def train(
  experiment: Experiment,
  options: Options,
  run_dir,
  *,
  overwrite: bool = False,
  resume: bool = False,
  config: Mapping[str, Any] | None = None,
  progress: bool = True,
) -> dict | None:
  """One run of an experiment, in its directory: config, metrics, checkpoints, figure, result.

  A run that was killed at any moment and resumed ends with the same bits and the same files.

  Args:
    experiment, options: what to run.
    run_dir: where; made if it is not there.
    overwrite: whether an earlier run in `run_dir` may be replaced.
    resume: goes on from the last checkpoint in `run_dir`, or from the start where there is none.
    config: more for `config.json` (where the experiment came from).
    progress: shows a bar and prints.

  Returns:
    The content of `result.json`, or None when a signal stopped the run.

  Raises:
    InputError: something does not fit, or `run_dir` cannot be used.
    NonFiniteError: the loss became NaN or infinite; the message names the last good checkpoint.
  """
  clock = time.perf_counter()
  say = print if progress else lambda *_: None
  run = Run(experiment, options)
  state, start, seconds = None, 0, 0.0
  run_dir = pathlib.Path(run_dir) if resume else rundir.create(run_dir, overwrite=overwrite)
  folder = run_dir / 'checkpoints'
  if resume and checkpoint.steps(folder):
    state, manifest, start = checkpoint.restore_latest(folder, run.abstract)
    seconds = manifest['seconds']
    if start > options.steps:
      raise InputError(f'steps: found {options.steps}, expected at least {start}, where the run in {run_dir} is.')
    checkpoint.discard_after(folder, start)
  meta = {'experiment': experiment.name, 'tasks': list(run.names), **dataclasses.asdict(options), **(config or {})}
  say(f'{experiment.name}, {options.balancer}, seed {options.seed}: steps {start} to {options.steps} in {run_dir}')
  recorder = _Recorder(run, run_dir, start, meta, lambda: seconds + time.perf_counter() - clock)
  try:
    try:
      fitted = fit(
        run.init() if state is None else state,
        run.step,
        options.steps,
        names=run.names,
        start=start,
        log_every=options.log_every,
        eval_every=options.eval_every,
        save_every=options.checkpoint_every,
        log=recorder.log,
        evaluate=recorder.evaluate,
        save=recorder.save,
        on_nonfinite=options.on_nonfinite,
        title=options.balancer,
        progress=progress,
      )
    finally:
      recorder.close()
  except NonFiniteError as error:
    saved = checkpoint.steps(folder)
    last = f'The last good checkpoint is {folder / str(saved[0])}.' if saved else 'There is no checkpoint yet.'
    raise NonFiniteError(f'{error} {last}') from None
  if fitted.skipped:
    say(f'{int(fitted.skipped)} steps were skipped, their loss or gradient was not finite.')
  for name, count in zip(run.names, fitted.dropped):
    if count:
      say(f'Task {name!r} was dropped from {count} steps, its loss or gradient was not finite.')
  plots.save(plots.curves(rundir.read_metrics(recorder.metrics.path)), run_dir / 'curves.png')
  if fitted.stopped:
    say(f'Stopped by {fitted.stopped} after step {fitted.step} of {options.steps}, which is saved. Go on with:')
    say(f'  mtljax train --resume {run_dir}')
    return None

  values = {split: run.evaluate(fitted.state, getattr(experiment, split)) for split in ('test', 'val')}
  result = {
    'experiment': experiment.name,
    'balancer': options.balancer,
    'seed': options.seed,
    'steps': fitted.step,
    'seconds': recorder.seconds(),
    'step_ms': recorder.step_ms if fitted.step_ms is None else fitted.step_ms,
    'params_sha256': checkpoint.params_sha256(fitted.state.params),
    **values,
  }
  rundir.write_json(run_dir / 'result.json', result)
  say(tables.metric_table(values['test'], 'test'))
  return rundir.finite(result)


class _Recorder:
  """Writes what `fit` hands out: lines of metrics, TensorBoard events, checkpoints."""

  def __init__(self, run, run_dir, start, meta, seconds):
    self.run, self.meta, self.seconds = run, meta, seconds
    self.metrics = rundir.MetricsFile(run_dir / 'metrics.jsonl', keep_to=start)
    rundir.write_json(run_dir / 'config.json', meta)
    self.board = rundir.TensorBoard(run_dir / 'tensorboard', start)
    self.checkpoints = checkpoint.Checkpoints(run_dir / 'checkpoints')
    self.scores = {r['step']: r['score'] for r in rundir.read_metrics(self.metrics.path) if r.get('score') is not None}
    result = run_dir / 'result.json'  # of a run that goes on
    self.step_ms = rundir.read_json(result)['step_ms'] if result.exists() else None

  def write(self, record):
    self.metrics.write(record)
    self.board.write(record)

  def log(self, step, info):
    self.write(rundir.record(step, self._of_tasks(info), self.run.names))

  def _of_tasks(self, info):
    """Without what belongs to other objectives than tasks."""
    plain = self.run.options.objectives == 'tasks'
    return info if plain else info._replace(weights=None, gramian=None, norms=None)

  def evaluate(self, step, state, info):
    """Returns whether it is the best so far."""
    experiment = self.run.experiment
    values = self.run.evaluate(state, experiment.val)
    found = score(experiment.tasks, values)
    record = {'step': step, 'val': values, 'score': found}
    if self._of_tasks(info).gramian is None:
      record |= rundir.angles(np.asarray(self.run.gramian(state, step)), self.run.names)
    self.write(record)
    best = found is not None and found > max(self.scores.values(), default=-math.inf)
    if found is not None:
      self.scores[step] = found
    return best

  def save(self, step, state):
    self.checkpoints.save(step, state, {**self.meta, 'seconds': self.seconds()}, self.scores.get(step))

  def close(self):
    self.checkpoints.close()
    self.metrics.close()
    self.board.close()
