"""The types that every part of the library meets in: task, model, balancer, penalty, metric, state.

They hold functions and arrays and do nothing; the order of the task axis is the order of the `tasks` tuple
(`arrays.task_names`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Any]
BalancerState = PyTree

RESERVED_NAMES = ('inputs', 'labels', 'mask', 'outer', 'shared')  # the keys of a batch, and the trunk's
LEVELS = ('losses', 'gramian', 'jacobian', 'oracle')


class InputError(ValueError):
  """Something that a user handed in is wrong: the message names it, what was found and what was expected."""


class Metric(NamedTuple):
  """A streaming metric: sums of batches are merged before anything is divided.

  Attributes:
    update: `(predictions, labels, mask) -> sums`, a pytree of one batch; `mask` is bool and marks what counts.
    merge: `(sums, sums) -> sums`.
    compute: `sums -> scalar`.
    higher_is_better: the direction that Δm and ranks need.
  """

  update: Callable[[PyTree, PyTree, Array], PyTree]
  merge: Callable[[PyTree, PyTree], PyTree]
  compute: Callable[[PyTree], Array]
  higher_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Task:
  """One task: a per-example loss L_t, its weight alpha_t and its metrics.

  Attributes:
    name: key of the task in labels, masks, heads and parameters.
    loss: `(outputs, labels) -> losses`, f[B] or f[B, ...] (tokens, pixels); the step takes the masked mean.
    weight: alpha_t, multiplies L_t before balancing: a number or an optax schedule. A task whose weight is 0 counts
      as absent. Under Adam and its kin a weight does not act as a learning rate on the task's own head: the scale of
      a gradient cancels there. Weights act on what is shared, learning rates (`task_optimizer`) on heads.
    metrics: name -> `Metric`; the first one stands for the task in Δm and in ranks.
    decode: evaluation only, `(head as a function of inputs, inputs) -> predictions` (CTC, beam search); metrics then
      get the predictions instead of the outputs.

  Raises:
    InputError: a reserved or empty name, a loss that cannot be called, a negative weight, a metric of another type.
  """

  name: str
  loss: Callable[[PyTree, PyTree], Array]
  weight: float | Callable[[Array], Array] = 1.0
  metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
  decode: Callable[..., PyTree] | None = None

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name or '/' in self.name:
      raise InputError(f'Task name: found {self.name!r}, expected a non-empty string without "/".')
    if self.name in RESERVED_NAMES:
      raise InputError(f'Task name: found {self.name!r}, which is reserved, as are {RESERVED_NAMES}.')
    if not callable(self.loss):
      raise InputError(
        f'Task {self.name!r}: loss is {self.loss!r}, expected a function (outputs, labels) -> losses f[B, ...].'
      )
    if not callable(self.weight) and not _non_negative(self.weight):
      raise InputError(f'Task {self.name!r}: weight is {self.weight!r}, expected a number >= 0 or a schedule.')
    for name, metric in dict(self.metrics).items():
      if not isinstance(metric, Metric):
        raise InputError(f'Task {self.name!r}: metrics[{name!r}] is {metric!r}, expected an mtljax.Metric.')


def _non_negative(weight) -> bool:
  if isinstance(weight, jax.core.Tracer):
    return True  # a traced value cannot be checked
  try:
    return 0 <= float(weight) < float('inf')
  except (TypeError, ValueError):
    return False


class Penalty(NamedTuple):
  """beta_t R_t(f), added to the objective outside the balancer.

  Attributes:
    weight: beta_t, a number or an optax schedule.
    value: `params -> scalar`, or with `on='outputs'` `(params, {task: outputs}) -> scalar`, which may name a keyword
      `inputs` and then gets {task: inputs} of the batch (gates that are functions of the inputs).
    task: the task whose absence from a batch switches the penalty off; None for one that always acts.
    on: what `value` reads, 'params' or 'outputs' (distillation, gate entropy).
  """

  weight: float | Callable[[Array], Array]
  value: Callable[..., Array]
  task: str | None = None
  on: Literal['params', 'outputs'] = 'params'


class Model(NamedTuple):
  """A trunk and T heads as pure functions; `params = {'shared': ..., 'tasks': {task: ...}}`, always.

  Attributes:
    init: `(key, {task: inputs}) -> (params, model_state)`; a single input is given once per task. A subset of the
      tasks gives the parameters of that subset.
    trunk: `(shared_params, shared_state, inputs, *, tasks, train, key) -> (features, shared_state)`.
    head: `(task_params, task_state, features, *, inputs=None, task, train, key) -> (outputs, task_state)`; `inputs`
      are the task's own, before the stem, and never differentiated.
    stem: `(task_params, task_state, inputs, *, task, train, key) -> (trunk_inputs, task_state)`, for inputs of
      different modality, or None.
    penalties: those that belong to the architecture.

  `model_state` has the same two keys as `params`; every task has an entry, `{}` where there is none. `features` is any
  pytree; integer and bool leaves are left out of the Jacobian and the Gramian. `key` may be None when not `train`.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  trunk: Callable[..., tuple[PyTree, PyTree]]
  head: Callable[..., tuple[PyTree, PyTree]]
  stem: Callable[..., tuple[PyTree, PyTree]] | None = None
  penalties: tuple[Penalty, ...] = ()


class Balancer(NamedTuple):
  """A balancing method, in the style of `optax.GradientTransformation`.

  Attributes:
    init: example of the statistic (arrays or ShapeDtypeStructs) -> state.
    update: `(statistic, state, /, *, losses, present, key, step, **extras) -> (result, state)`.
    level: which statistic `update` takes and what it returns: 'losses' f[T] -> weights f[T]; 'gramian' f[T, T] ->
      weights f[T]; 'jacobian' leaves f[T, *param] -> direction f[*param]; 'oracle' a function -> direction.
    parts: how many independent parts of the batch it wants.
    observe: `(losses after the step, state) -> state`, losses of the same batch.
  """

  init: Callable[[PyTree], BalancerState]
  update: Callable[..., tuple[PyTree, BalancerState]]
  level: Literal['losses', 'gramian', 'jacobian', 'oracle']
  parts: int = 1
  observe: Callable[[Array, BalancerState], BalancerState] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step reads and writes, arrays only: saved whole, it resumes bit for bit.

  Attributes:
    step: int32[].
    params: `{'shared': ..., 'tasks': {task: ...}}`.
    model_state: the same two keys; BatchNorm statistics, counters, frozen weights.
    opt_state, balancer_state: of the optimiser and the balancer.
    key: typed PRNG key; the key of a step is `fold_in(key, step)`.
  """

  step: Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  balancer_state: BalancerState
  key: Array

  def replace(self, **changes) -> 'TrainState':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)


class TaskGradients(NamedTuple):
  """What the engine returns: `gradients.task_gradients`.

  Attributes:
    grads: like params, the balanced direction for what is shared, alpha_t g_t (or w_t alpha_t g_t at level losses)
      for heads.
    losses: f[T] raw L_t, 0 where absent (no label, or a weight alpha_t of 0).
    present: bool[T].
    weights: f[T] of the balancer, 0 where absent; None at the levels that return a direction.
    gramian: f[T, T] of alpha_t g_t, rows of absent tasks 0; None at levels losses and oracle.
    model_state, balancer_state: the new ones.
    penalty: f[] sum of beta_t R_t with `on='outputs'`.
    nonfinite: bool[T], tasks dropped because their loss or gradient was not finite (`on_nonfinite='drop'`).

  What an oracle returns is one too, with the Jacobian f[T, *param] for `grads['shared']` and alpha_t L_t for `losses`.
  """

  grads: PyTree
  losses: Array
  present: Array
  weights: Array | None
  gramian: Array | None
  model_state: PyTree
  balancer_state: BalancerState
  penalty: Array
  nonfinite: Array


class StepInfo(NamedTuple):
  """What a step tells; everything stays on the device until somebody reads it.

  Attributes:
    losses: f[T] raw L_t, 0 where the task is absent.
    present: bool[T], the task had a label and a weight alpha_t > 0.
    weights: f[T] of the balancer, 0 where absent; None at the levels that return a direction. Objectives of examples
      have f[m] here, and in `gramian` and `norms`.
    gramian: f[T, T], None at levels losses and oracle.
    norms: f[T] gradient norms sqrt(G_tt), None where there is no Gramian.
    grad_norm: f[] norm of the whole gradient that the optimiser got.
    penalty: f[] sum of beta_t R_t.
    finite: bool[], losses and gradients were finite; when False the step left everything but `step` as it was.
    nonfinite: bool[T], the task's loss or gradient was not finite: dropped from the step, or the reason that it stood.
  """

  losses: Array
  present: Array
  weights: Array | None
  gramian: Array | None
  norms: Array | None
  grad_norm: Array
  penalty: Array
  finite: Array
  nonfinite: Array
