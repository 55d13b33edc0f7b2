"""A run: an experiment with its options, traced and compiled."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import jax
import numpy as np

from mtljax import arrays, balancing, evaluate, hosts, parallel, train_step
from mtljax.base import Batch, InputError, StepInfo, TrainState
from mtljax.data.schedules import ByLoss
from mtljax.experiment import Experiment, Options


class Run:
  """An experiment with its options, traced: what is wrong with either is found here, before anything is trained.

  Args:
    experiment, options: what to run.

  Attributes:
    names: the order of the task axis.
    abstract: shapes and dtypes of the `TrainState`; with several processes where it lies, too.

  Raises:
    InputError: balancer, model, tasks, data and options that do not fit together.
  """

  def __init__(self, experiment: Experiment, options: Options):
    self.experiment, self.options = experiment, options
    self.names = arrays.task_names(experiment.tasks)
    model, tasks, train = experiment.model, experiment.tasks, experiment.train
    balancer = balancing.parse(options.balancer, steps_per_epoch=train.steps_per_epoch)
    optimizer = experiment.optimizer(options.learning_rate, self.names)
    step = train_step.make_train_step(
      model,
      tasks,
      optimizer,
      balancer,
      at=options.at,
      objectives=options.objectives,
      penalties=tuple(experiment.penalties),
      chunk_size=options.chunk_size or None,
      accumulate=options.accumulate,
      remat=options.remat,
      on_nonfinite='drop' if options.on_nonfinite == 'drop' else 'error',
    )
    init = functools.partial(train_step.init_state, model, tasks, optimizer, balancer, objectives=options.objectives)
    batch = train.example()
    self._init = jax.jit(lambda key: init(batch, key))
    self.abstract = self._init.eval_shape(jax.random.key(options.seed))

    self._batches = train
    if self._hears and options.steps_per_call > 1:
      raise InputError(
        f'steps_per_call: found {options.steps_per_call} with the schedule by_loss, expected 1: the steps of a call '
        'are alike, and these have a task each.'
      )
    if self._hears and hosts.several():
      raise InputError(f'schedule: found by_loss with {jax.process_count()} processes, expected another one, or one.')
    if options.mode == 'jit' and hosts.several():
      raise InputError(
        f"mode: found 'jit' with {jax.process_count()} processes, expected 'shard_map' or 'sharded': 'jit' runs on one "
        'device, and every process would train a model of its own.'
      )
    if options.mode == 'jit':  # the rows are gathered in the compiled step

      def gathered(state, draw, examples):
        return step(state, train.gather(examples, draw))

      call = jax.jit(gathered, donate_argnums=0)
      call.eval_shape(self.abstract, train.draw(options.seed, 0), train.examples)
      self._step = lambda state, index: call(state, self._batches.draw(options.seed, index), train.examples)
      if options.steps_per_call > 1:
        self._several = self._scan(gathered, options.steps_per_call)
    else:
      mesh = parallel.grid(options.model_devices)
      compiled = parallel.compile_step(step, options.mode, mesh)
      if hosts.several():
        self._batches = parallel.global_batches(train, mesh)
      compiled.eval_shape(self.abstract, self._batches(options.seed, 0))
      self._step = lambda state, index: compiled(state, self._batches(options.seed, index))

    self._eval_step = jax.jit(evaluate.make_eval_step(model, tasks))
    for split in (experiment.val, experiment.test):
      if split:
        self._eval_step.eval_shape(self.abstract.params, self.abstract.model_state, split[0])
    if hosts.several():
      lies = parallel.state_sharding(self.abstract, mesh)
      placed = lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies)
      self.abstract = jax.tree.map(placed, self.abstract, lies)

  def init(self) -> TrainState:
    """A fresh state."""
    state = self._init(jax.random.key(self.options.seed))
    if not hosts.several():
      return state
    return parallel.place(state, jax.tree.map(lambda x: x.sharding, self.abstract))

  def step(self, state: TrainState, index: int) -> tuple[TrainState, StepInfo]:
    """Step number `index`, from 0; the state is donated."""
    return self._step(state, index)

  @property
  def _hears(self) -> bool:
    return isinstance(getattr(self._batches, 'schedule', None), ByLoss)

  def hear(self, step: int, info: StepInfo) -> None:
    """What the data learn of a step, counted as done; steps in order, up to a line of the log before the next one."""
    if self._hears:
      here = {name: float(loss) for name, loss, has in zip(self.names, info.losses, info.present) if has}
      self._batches = self._batches.hear(step, here, renew=step % self.options.log_every == 0)

  def data_state(self) -> dict | None:
    """What a checkpoint keeps of the data, which are otherwise a function of the seed and the step."""
    return self._batches.schedule.state() if self._hears else None

  def restore_data(self, state: dict | None) -> None:
    """Goes on from what a checkpoint kept.

    Raises:
      InputError: another thing than `data_state` returns.
    """
    if self._hears:
      self._batches = self._batches.follow(self._batches.schedule.restore(state))

  @property
  def several(self):
    """`(state, index) -> (state, StepInfo)` of `options.steps_per_call` steps in one call; None where that is one."""
    return getattr(self, '_several', None)

  def _scan(self, step, size):
    train, seed = self.experiment.train, self.options.seed

    def draws(index):
      drawn = [train.draw(seed, i) for i in range(index, index + size)]
      shapes = {str(jax.tree.map(np.shape, draw)) for draw in drawn}
      if len(shapes) > 1:
        raise InputError(
          f'steps_per_call: found {size} with batches of {len(shapes)} shapes in one call, expected 1: the steps of '
          'a call are alike (no buckets, no schedule that leaves tasks out).'
        )
      return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)

    def scanned(state, draws, examples):
      return jax.lax.scan(lambda state, draw: step(state, draw, examples), state, draws)

    call = jax.jit(scanned, donate_argnums=0)
    call.eval_shape(self.abstract, draws(0), train.examples)
    return lambda state, index: call(state, draws(index), train.examples)

  def evaluate(self, state: TrainState, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """{task: {metric or 'loss': value}}, metrics in the task's order; {} without batches.

    Each of several processes does all of it, on its own copy of the parameters: the same numbers, and no waiting.
    """
    model, tasks = self.experiment.model, self.experiment.tasks
    if not batches:
      return {}
    params, model_state = parallel.local((state.params, state.model_state))
    values = evaluate.evaluate(model, tasks, params, model_state, batches, self._eval_step)
    return {task.name: {name: values[task.name][name] for name in (*task.metrics, 'loss')} for task in tasks}

  def gramian(self, state: TrainState, index: int) -> jax.Array:
    """G f[T, T] on the batch of step `index`, for methods whose own step does not need one."""
    seed = self.options.seed
    if hosts.several():
      return self._global_gramian(state, self._batches(seed, index))
    return self._gramian(state, self._batches.draw(seed, index), self._batches.examples)

  @functools.cached_property
  def _gramian(self):
    diagnose = train_step.make_diagnostics(self.experiment.model, self.experiment.tasks)
    return jax.jit(lambda state, draw, examples: diagnose(state, self.experiment.train.gather(examples, draw)))

  @functools.cached_property
  def _global_gramian(self):
    diagnose = train_step.make_diagnostics(self.experiment.model, self.experiment.tasks)
    return jax.jit(diagnose, out_shardings=self.abstract.step.sharding)


def choose_steps_per_call(experiment: Experiment, options: Options) -> tuple[int, str]:
  """How many steps a call shall make, by measurement, and what was found.

  The number tried is the greatest that divides the steps between lines, evaluations and checkpoints, 100 at most.
  A scan saves what a call costs, and costs what the compiler does worse inside a loop (convolutions, on a CPU).
  """
  every = math.gcd(options.log_every, options.eval_every, options.checkpoint_every)
  size = max(n for n in range(1, min(every, 100) + 1) if every % n == 0)
  if size == 1:
    return 1, 'steps_per_call: 1, as lines, evaluations and checkpoints have no common multiple of steps between them.'
  try:
    run = Run(experiment, dataclasses.replace(options, steps_per_call=size))
  except InputError as error:
    if not str(error).startswith('steps_per_call'):
      raise
    return 1, f'{error} 1 is taken.'
  times = []
  for steps, call in ((range(size), run.step), ((0,), run.several)):
    state, found = run.init(), []
    for _ in range(4):  # the first one compiles
      clock = time.perf_counter()
      for index in steps:
        state, info = call(state, index)
      jax.block_until_ready((state, info))
      found.append(1e3 * (time.perf_counter() - clock) / size)
    times.append(min(found[1:]))
  chosen = size if times[1] < times[0] else 1
  return chosen, f'steps_per_call: {chosen}; a step takes {times[0]:.3g} ms alone, {times[1]:.3g} ms as one of {size}.'
