"""Training: `train`, one run of an experiment in its directory."""

import contextlib
import dataclasses
import math
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtljax import balancing, checkpoint, events, hosts, lock, parallel, rundir
from mtljax.analysis import plots, tables
from mtljax.base import InputError
from mtljax.checkpoint import SaveError
from mtljax.experiment import Experiment, Options, score
from mtljax.loop import NonFiniteError, Signals, Stopped, fit
from mtljax.runs import Run, choose_steps_per_call


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

  A run that was killed at any moment and resumed ends with the same bits and the same files. Of several processes
  (`hosts.start`) all call it, with the same arguments and a `run_dir` that all see; the first writes and prints.

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
    InputError: something does not fit, or `run_dir` cannot be used, as when another run is using it.
    NonFiniteError: the loss became NaN or infinite; the message names the last good checkpoint.
    SaveError: something could not be written, and `options.on_save_error` is 'stop'; the same.
  """
  progress = progress and hosts.is_first()
  say = print if progress else lambda *_: None
  run_dir = pathlib.Path(run_dir)
  if options.on_save_error != 'stop' and hosts.several():
    found = options.on_save_error
    raise InputError(f"on_save_error: found {found!r} with several processes, expected 'stop': they save together.")
  with Signals(ends=not hosts.several()) as stop:
    try:
      with stop.may_end(exits=True):
        if options.steps_per_call == 0:
          chosen, why = choose_steps_per_call(experiment, options)
          options = dataclasses.replace(options, steps_per_call=chosen)
          say(why)
        run = Run(experiment, options)
      meta = {'experiment': experiment.name, 'tasks': list(run.names), **dataclasses.asdict(options), **(config or {})}
      hosts.check_same({'run_dir': str(run_dir), **meta})
      with contextlib.ExitStack() as held:
        hosts.on_first(lambda: held.enter_context(rundir.use(run_dir, overwrite=overwrite, resume=resume)))
        hosts.check_shared(run_dir / lock.NAME)
        return _train(run, run_dir, resume, meta, stop, progress, say)
    except Stopped:
      say(f'Stopped by {stop.name}; no step is lost. Go on with:')
    except (NonFiniteError, SaveError) as error:
      saved = checkpoint.steps(run_dir / 'checkpoints')
      last = f'The last good checkpoint is {run_dir / "checkpoints" / str(saved[0])}.' if saved else None
      raise type(error)(f'{error} {last or "There is no checkpoint yet."}') from error
    say(f'  mtljax train --resume {run_dir}')
    return None


def _train(run, run_dir, resume, meta, stop, progress, say):
  clock = time.perf_counter()
  experiment, options = run.experiment, run.options
  state, start, seconds = None, 0, 0.0
  folder = run_dir / 'checkpoints'
  if resume and checkpoint.steps(folder):
    with stop.may_end(exits=True):
      state, manifest, start = checkpoint.restore_latest(folder, run.abstract)
    seconds = manifest.get('seconds', 0.0)
    if not isinstance(seconds, int | float):
      raise InputError(f'checkpoint {folder / str(start)}: its manifest says {seconds!r} seconds, expected a number.')
    if start > options.steps:
      raise InputError(f'steps: found {options.steps}, expected at least {start}, where the run in {run_dir} is.')
    try:
      run.restore_data(manifest.get('data'))
    except InputError as error:
      raise InputError(f'checkpoint {folder / str(start)}: {error}') from error
    hosts.on_first(lambda: checkpoint.discard_after(folder, start))
  say(f'{experiment.name}, {options.balancer}, seed {options.seed}: steps {start} to {options.steps} in {run_dir}')
  with contextlib.ExitStack() as files:
    recorder = _Recorder(run, run_dir, start, meta, lambda: seconds + time.perf_counter() - clock, files)
    with stop.may_end(exits=True):
      if state is None:
        state = run.init()
      recorder.catch_up(start, state)
    fitted = fit(
      state,
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
      hear=run.hear,
      on_nonfinite=options.on_nonfinite,
      several=run.several,
      steps_per_call=options.steps_per_call,
      signals=stop,
      title=options.balancer,
      progress=progress,
    )
  if fitted.skipped:
    say(f'{int(fitted.skipped)} steps were skipped, their loss or gradient was not finite.')
  for name, count in zip(run.names, fitted.dropped):
    if count:
      say(f'Task {name!r} was dropped from {count} steps, its loss or gradient was not finite.')
  hosts.on_first(recorder.draw)
  if stop.name:
    saved = checkpoint.steps(folder)
    where = (
      'which is saved' if fitted.step in saved else f'the last checkpoint is of step {saved[0] if saved else None}'
    )
    say(f'Stopped by {stop.name} after step {fitted.step} of {options.steps}, {where}. Go on with:')
    say(f'  mtljax train --resume {run_dir}')
    return None

  with stop.may_end(exits=True):
    values = {split: run.evaluate(fitted.state, getattr(experiment, split)) for split in ('test', 'val')}
  result = {
    'experiment': experiment.name,
    'balancer': options.balancer,
    'seed': options.seed,
    'steps': fitted.step,
    'seconds': recorder.seconds(),
    'step_ms': recorder.step_ms if fitted.step_ms is None else fitted.step_ms,
    'params_sha256': checkpoint.params_sha256(parallel.local(fitted.state.params)),
    **values,
  }
  say(tables.metric_table(values['test'], 'test'))
  hosts.on_first(lambda: recorder.guard('result.json', rundir.write_json, run_dir / 'result.json', result))
  return rundir.finite(result)


class _Recorder:
  """Writes what `fit` hands out: lines of metrics, TensorBoard events, checkpoints.

  Of several processes each has one: they save checkpoints together, and the first writes the files.

  Args:
    run, run_dir: whose.
    start: step that the run goes on from.
    meta: for `config.json` and the manifests.
    seconds: time that the run has taken.
    files: closes what is open here.
  """

  def __init__(self, run, run_dir, start, meta, seconds, files):
    self.run, self.run_dir, self.meta, self.seconds = run, run_dir, meta, seconds
    self._missing = set()  # what could not be written, and is said to be so
    self.files, self.step_ms, records = {}, None, []
    hosts.on_first(lambda: records.extend(self._open(start, files)))
    self.scores = dict(hosts.from_first([[r['step'], r['score']] for r in records if r.get('score') is not None]))
    self.evaluated = set(hosts.from_first([r['step'] for r in records if 'val' in r]))
    self.checkpoints = checkpoint.Checkpoints(run_dir / 'checkpoints')
    files.callback(self.guard, 'checkpoint', self.checkpoints.close)

  def _open(self, start, files):
    """Returns the records that are there."""
    rundir.write_json(self.run_dir / 'config.json', self.meta)  # first: from here on the run can be resumed
    metrics = rundir.MetricsFile(self.run_dir / 'metrics.jsonl', keep_to=start)
    records = rundir.read_metrics(metrics.path)
    self.files = {'metrics.jsonl': metrics, 'tensorboard': events.TensorBoard(self.run_dir / 'tensorboard', start)}
    for name, file in self.files.items():
      files.callback(self.guard, name, file.close)
    result = self.run_dir / 'result.json'  # of a run that goes on
    self.step_ms = rundir.read_json(result)['step_ms'] if result.exists() else None
    return records

  def guard(self, what, write, *args):
    """Writes; where that fails and the run is to go on, says so, once until it succeeds again."""
    try:
      write(*args)
    except SaveError as error:
      if self.run.options.on_save_error == 'stop':
        raise
      if what not in self._missing or what == 'checkpoint':
        warnings.warn(f'{error} The run goes on without.', stacklevel=2)
      self._missing.add(what)
    else:
      self._missing.discard(what)

  def write(self, record):
    for name, file in self.files.items():
      self.guard(name, file.write, record)

  def log(self, step, info):
    self.write(rundir.record(step, self._of_tasks(info), self.run.names))
    self.guard('checkpoint', self.checkpoints.check)

  def _of_tasks(self, info):
    """Without what belongs to other objectives than tasks."""
    plain = self.run.options.objectives == 'tasks'
    return info if plain else info._replace(weights=None, gramian=None, norms=None)

  def evaluate(self, step, state, info):
    """Returns whether it is the best so far."""
    return self._evaluate(step, state, self._of_tasks(info).gramian is not None)

  def _evaluate(self, step, state, has_angles):
    experiment = self.run.experiment
    values = self.run.evaluate(state, experiment.val)
    found = hosts.from_first(score(experiment.tasks, values))
    record = {'step': step, 'val': values, 'score': found}
    if not has_angles:
      record |= rundir.angles(np.asarray(self.run.gramian(state, step)), self.run.names)
    self.write(record)
    best = found is not None and found > max(self.scores.values(), default=-math.inf)
    if found is not None:
      self.scores[step] = found
    return best

  def catch_up(self, step, state):
    """Does the evaluation before which a signal stopped the run, where it saved its state."""
    options, train = self.run.options, self.run.experiment.train
    if step and (step % options.eval_every == 0 or step == options.steps) and step not in self.evaluated:
      level = balancing.parse(options.balancer, steps_per_epoch=train.steps_per_epoch).level
      self._evaluate(step, state, options.objectives == 'tasks' and level in ('gramian', 'jacobian'))
      self.save(step, state)  # with its score

  def save(self, step, state):
    self.guard('checkpoint', self.checkpoints.wait)
    meta = {**self.meta, 'seconds': self.seconds(), 'data': self.run.data_state()}
    self.guard('checkpoint', self.checkpoints.save, step, state, meta, self.scores.get(step))

  def draw(self):
    figure = plots.curves(rundir.read_metrics(self.run_dir / 'metrics.jsonl'))
    self.guard('curves.png', self._draw, figure)

  def _draw(self, figure):
    with rundir.whole(self.run_dir / 'curves.png') as partial:
      plots.save(figure, partial)
