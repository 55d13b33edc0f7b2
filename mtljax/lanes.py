"""The rows of a comparison, trained: seeds and rates as lanes of one compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays, balancing, evaluate, inputs, loop, train_step
from mtljax.base import InputError
from mtljax.data.schedules import ByLoss
from mtljax.experiment import Experiment

LARGE = 2**17  # bytes of a task's inputs in a batch


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

  A step is a plain function, so a stack of states goes through `vmap`, the learning rate being an argument. On the
  CPU lanes run one after another in that program where this is faster: for a method that builds a Jacobian (batched
  over lanes and tasks at once, XLA's products take twice as long), and for inputs so large that the activations of all
  lanes leave the cache (a LeNet on 36x36 pixels took 1.5 to 2 times as long, six lanes at once).

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
    if isinstance(getattr(train, 'schedule', None), ByLoss):
      raise InputError(
        'schedule: found by_loss, which hears of the losses of one run, expected another one: the runs of a comparison '
        'are one program with one order of tasks. `mtljax train` runs it once per seed.'
      )
    batch = train.example()

    def init(rate, key):
      return train_step.init_state(model, tasks, experiment.optimizer(rate, self.names), method, batch, key)

    def lane(rate, state, draw, examples):
      optimizer = experiment.optimizer(rate, self.names)
      step = train_step.make_train_step(
        model, tasks, optimizer, method, at=plan.at, penalties=tuple(experiment.penalties)
      )
      return step(state, train.gather(examples, draw))

    def one_by_one(rates, state, draws, examples):
      return jax.lax.map(lambda args: lane(*args, examples), (rates, state, draws))

    self.rates = jnp.repeat(jnp.asarray(plan.learning_rates, arrays.real_dtype()), len(plan.seeds))
    keys = jnp.stack([jax.random.key(seed) for _ in plan.learning_rates for seed in plan.seeds])
    self.state = jax.jit(lambda *lanes: jax.lax.map(lambda lane: init(*lane), lanes))(self.rates, keys)
    serial = _one_by_one(batch, self.names[0]) or (jax.default_backend() == 'cpu' and method.level != 'losses')
    self._program = jax.jit(one_by_one if serial else jax.vmap(lane, (0, 0, 0, None)), donate_argnums=1)
    self._program.eval_shape(*self._arguments(self.state, 0))  # finds what is wrong before anything is trained

  def _arguments(self, state, index):
    train, plan = self.experiment.train, self.plan
    draws = [train.draw(seed, index) for seed in plan.seeds] * len(plan.learning_rates)
    return self.rates, state, jax.tree.map(lambda *leaves: np.stack(leaves), *draws), train.examples

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


def _one_by_one(batch, task: str) -> bool:
  """Whether inputs are so large that the activations of all lanes at once would leave the CPU's cache."""
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(inputs.task_inputs(batch, task)[0])]
  return jax.default_backend() == 'cpu' and sum(sizes) > LARGE


def lane_evaluator(experiment: Experiment) -> Callable:
  """`(stack of states, batches, shape) -> {task: {metric: f[shape]}}`, compiled once for all rows of the experiment."""
  model, tasks = experiment.model, experiment.tasks
  one_lane = evaluate.make_eval_step(model, tasks)
  eval_lane = jax.jit(one_lane)

  @jax.jit
  def eval_step(params, model_state, batch):
    if _one_by_one(batch, tasks[0].name):
      return jax.lax.map(lambda lane: one_lane(*lane, batch), (params, model_state))
    return jax.vmap(one_lane, (0, 0, None))(params, model_state, batch)

  merge = jax.jit(jax.vmap(lambda a, b: evaluate.merge(tasks, a, b)))
  compute = jax.jit(jax.vmap(lambda sums: evaluate.compute(tasks, sums)))

  def run(state, batches, shape):
    variables = (state.params, state.model_state)
    if any(task.decode is not None for task in tasks):  # decoders run outside of jit, lane by lane
      lanes = [jax.tree.map(lambda x, i=i: x[i], variables) for i in range(state.step.size)]
      values = jax.tree.map(
        lambda *x: np.array(x), *(evaluate.evaluate(model, tasks, *lane, batches, eval_lane) for lane in lanes)
      )
    else:
      sums = [eval_step(*variables, batch) for batch in batches]
      values = jax.device_get(compute(functools.reduce(merge, sums)))
    return {
      task.name: {n: np.asarray(values[task.name][n], float).reshape(shape) for n in (*task.metrics, 'loss')}
      for task in tasks
    }

  return run
