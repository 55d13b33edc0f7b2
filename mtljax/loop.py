"""`fit`, the only loop over steps.

It drives any state, a single one or a stack (lanes of a comparison), and knows steps, windows, progress and signals.
What a run leaves on disk is in `training`.
"""

import array
import contextlib
import dataclasses
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mtljax import hosts
from mtljax.analysis import tables
from mtljax.base import PyTree, StepInfo

IN_FLIGHT = 8  # steps that the device may be behind: a signal waits for them
PATIENCE = 2.0


class NonFiniteError(ArithmeticError):
  """A loss or a gradient became NaN or infinite; the message names the step and the task."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """What `fit` returns.

  Attributes:
    state: after the last step.
    step: how many steps it has had.
    stopped: name of the signal that ended it early, or None.
    skipped: steps that were not finite, in the shape of `StepInfo.finite` (a number, or one per lane).
    dropped: steps without a task that was not finite, in the shape of `StepInfo.nonfinite` (T last).
    step_ms: median over windows of the time per step, compilation, evaluation and saving left out; None without steps.
  """

  state: PyTree
  step: int
  stopped: str | None
  skipped: np.ndarray
  dropped: np.ndarray
  step_ms: float | None


def fit(
  state: PyTree,
  step: Callable[[PyTree, int], tuple[PyTree, StepInfo]],
  steps: int,
  *,
  names: Sequence[str],
  start: int = 0,
  log_every: int = 10,
  eval_every: int | None = None,
  save_every: int | None = None,
  log: Callable[[int, StepInfo], None] | None = None,
  evaluate: Callable[[int, PyTree, StepInfo], bool] | None = None,
  save: Callable[[int, PyTree], None] | None = None,
  hear: Callable[[int, StepInfo], None] | None = None,
  on_nonfinite: str = 'error',
  several: Callable[[PyTree, int], tuple[PyTree, StepInfo]] | None = None,
  steps_per_call: int = 1,
  signals: 'Signals | None' = None,
  title: str = '',
  progress: bool = True,
) -> Fit:
  """Runs `step` from `start` to `steps`; the device is waited for once every `log_every` steps.

  Steps are counted as done: the first one is step 1. Ctrl-C and SIGTERM end the loop after the step they fall into,
  with a last `save`; a second one acts at once.

  Args:
    state: the first state; what `step` does to it (donation) is up to `step`.
    step: `(state, index) -> (state, StepInfo)`, index from 0.
    steps: how many steps the state shall have had at the end.
    names: of the tasks, the order of the task axis.
    start: steps that the state has had.
    log_every, eval_every, save_every: in steps; None never, but at the end.
    log: `(step, StepInfo of numpy arrays)` of the step; the losses of tasks that it did not have are the last ones
      since the call before (since `start` at first).
    evaluate: `(step, state, StepInfo of numpy arrays) -> whether to save this state`.
    save: `(step, state)`.
    hear: `(step, StepInfo of numpy arrays)` of every step, in order, by the time that the host looks at it: that of a
      line, an evaluation or a checkpoint before the step after it.
    on_nonfinite: what becomes of a step that is not finite: 'skip' counts it (the step itself left the state as it
      was), 'error' raises, and so does 'drop', whose steps have dropped what they could.
    several: as `step`, for the `steps_per_call` steps from an index that is a multiple of them; leaves of the StepInfo
      lead with them. It is called where no line, evaluation or checkpoint falls between two of them, so that a run
      that is resumed makes the same calls.
    steps_per_call: of `several`.
    signals: where they are caught already; None catches them here, while the loop runs.
    title, progress: of the progress bar.

  Raises:
    NonFiniteError: a step was not finite and is not to be skipped.
    Stopped: a signal ended the first step, with `signals` that do so.
  """
  from tqdm import tqdm

  def stops(done):
    """Whether the host looks at the state after so many steps."""
    due = _due(done, log_every) or (evaluate is not None and _due(done, eval_every))
    return due or done >= steps or (save is not None and _due(done, save_every))

  window, skipped, dropped, step_done = [], np.zeros((), int), np.zeros(len(names), int), start
  times = array.array('d')  # a float in a list takes four times the room
  seen = None  # since the last `log`
  caught = contextlib.nullcontext(signals) if signals else Signals()
  with caught as stop, tqdm(total=steps, initial=start, desc=title, disable=not progress) as bar:
    clock = time.perf_counter()
    index = start
    while index < steps:
      together = several is not None and index % steps_per_call == 0
      together = together and not any(stops(done) for done in range(index + 1, index + steps_per_call))
      with stop.may_end(exits=True) if index == start else contextlib.nullcontext():  # it compiles
        state, info = (several if together else step)(state, index)
      first, index = index == start, index + (steps_per_call if together else 1)
      window.append((info, together))
      if len(window) > IN_FLIGHT:
        jax.block_until_ready(window[-1 - IN_FLIGHT][0].finite)
      step_done = index
      last = stop.after_step() or step_done == steps
      # a signal changes nothing but the end: no line and no evaluation that an undisturbed run would not have
      logs = step_done % log_every == 0 or step_done == steps
      evaluates = evaluate is not None and (step_done == steps or _due(step_done, eval_every))
      saves = save is not None and (last or _due(step_done, save_every))
      if not (logs or evaluates or saves or first):
        continue
      infos = _apart(jax.device_get(window), steps_per_call)  # the one place where the host waits for the device
      if not first:
        times.append(1e3 * (time.perf_counter() - clock) / len(infos))
      window.clear()
      for offset, past in enumerate(infos):
        skipped = skipped + ~past.finite
        dropped = dropped + (past.nonfinite & past.finite[..., None])
        seen = _with_earlier(past, seen)
        if on_nonfinite != 'skip' and not np.all(past.finite):
          raise NonFiniteError(_what(past, names, step_done - len(infos) + offset + 1))
        if hear is not None:
          hear(step_done - len(infos) + offset + 1, past)
      bar.set_postfix_str(_losses(seen, names), refresh=False)
      bar.update(len(infos))
      if logs and log is not None:
        log(step_done, seen)
      if logs:
        seen = None
      if evaluates:
        with contextlib.suppress(Stopped), stop.may_end():
          saves = evaluate(step_done, state, infos[-1]) or saves
      last = last or stop.name is not None
      if save is not None and (saves or last):
        save(step_done, state)
        last = last or stop.name is not None
      if last:
        break
      clock = time.perf_counter()
  stopped = stop.name if step_done < steps else None
  return Fit(state, step_done, stopped, skipped, dropped, statistics.median(times) if times else None)


class Stopped(BaseException):
  """A signal ended a block of `Signals.may_end`; no error, and not to be caught as one."""


class Signals:
  """Catches the first Ctrl-C or SIGTERM and notes its name; a second one acts at once.

  Python hands signals to the main thread only: in another thread nothing is caught. Of several processes SIGTERM is
  the runtime's, which tells the others and finds a step for all to stop after; a Ctrl-C becomes one.

  Args:
    ends: whether blocks of `may_end` are ended.

  Attributes:
    name: of the signal, or None.
  """

  def __init__(self, *, ends: bool = False):
    self.name = None
    self._ends, self._ending, self._exits = ends, False, False
    self._heard, self._before, self._wakeup = threading.Event(), {}, None

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      numbers = (signal.SIGINT,) if hosts.several() else (signal.SIGINT, signal.SIGTERM)
      self._before = {number: signal.signal(number, self._note) for number in numbers}
      if self._ends:
        source, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(source,), daemon=True).start()
    return self

  def __exit__(self, *_):
    self._restore()
    if self._wakeup is not None:
      signal.set_wakeup_fd(self._wakeup_before)
      os.close(self._wakeup)
      self._wakeup = None

  def after_step(self) -> bool:
    """Whether a signal has come: to be asked after every step, by all processes, which then stop after the same one."""
    if hosts.several() and self.name is None and hosts.reached_stop():
      self.name = 'SIGTERM'
    return self.name is not None

  @contextlib.contextmanager
  def may_end(self, *, exits: bool = False):
    """A block that can be done again at any time: a signal ends it with `Stopped`, if signals do so.

    Args:
      exits: whether nothing is lost if the process ends in it. SIGTERM does that, with exit code 0, where Python does
        not get a turn for `PATIENCE` seconds, as in a compiler.
    """
    if not self._ends:
      yield
      return
    if self.name is not None:
      raise Stopped(self.name)
    self._ending, self._exits = True, exits
    try:
      yield
    finally:
      self._ending = self._exits = False

  def _note(self, number, frame):
    if hosts.several():
      self._restore()
      signal.raise_signal(signal.SIGTERM)
      return
    self.name = signal.Signals(number).name
    self._heard.set()
    self._restore()
    if self._ending:
      self._ending = False
      raise Stopped(self.name)

  def _restore(self):
    for number, handler in self._before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's own
    self._before = {}

  def _watch(self, source):
    """Reads the numbers of signals, which arrive whatever the main thread does; the pipe's end is the thread's."""
    with os.fdopen(source, 'rb', buffering=0) as pipe:
      while number := pipe.read(1):
        if number[0] == signal.SIGTERM and not self._heard.wait(PATIENCE) and self._exits:
          print('Stopped by SIGTERM while compiling or reading; no step is lost.', file=sys.stderr, flush=True)
          os._exit(0)


def _apart(window, size):
  """The StepInfo of every step."""
  infos = []
  for info, together in window:
    infos += [jax.tree.map(lambda x, i=i: x[i], info) for i in range(size)] if together else [info]
  return infos


def _with_earlier(info, earlier):
  """The step's info, with the losses of the tasks that it lacks from earlier ones."""
  if earlier is None:
    return info
  losses = np.where(info.present, info.losses, earlier.losses)
  return info._replace(losses=losses, present=info.present | earlier.present)


def _due(step, every):
  return every is not None and step % every == 0


def _losses(info, names):
  """'digit 0.123 parity 0.456', means over lanes where there are some; of many tasks the mean over them alone."""
  losses = np.where(info.present, info.losses, np.nan).reshape(-1, len(names)).T
  means = {name: row[np.isfinite(row)].mean() for name, row in zip(names, losses) if np.isfinite(row).any()}
  if len(names) > tables.MOST_TASKS:
    return f'mean of {len(means)} tasks {np.mean(list(means.values())):.4g}' if means else ''
  return ' '.join(f'{name} {mean:.4g}' for name, mean in means.items())


def _what(info, names, step):
  """Which task was not finite, and at which step."""
  losses = np.reshape(info.losses, (-1, len(names)))
  for t in np.flatnonzero(np.reshape(info.nonfinite, (-1, len(names))).any(axis=0)):
    wrong = losses[~np.isfinite(losses[:, t]), t]
    what = (
      f'loss of task {names[t]!r} became {wrong[0]}' if wrong.size else f'gradient of task {names[t]!r} was not finite'
    )
    return f'The {what} at step {step}.'
  return (
    f'The gradient (or a penalty) became {info.grad_norm} at step {step}, while all losses {list(names)} are finite.'
  )
