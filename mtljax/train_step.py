"""One step: gradients of all tasks, penalties, optimiser, as a plain function of (state, batch)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtljax import arrays, gradients, inputs, microbatches, optim
from mtljax.base import (
  LEVELS,
  Array,
  Balancer,
  Batch,
  InputError,
  Model,
  Penalty,
  PyTree,
  StepInfo,
  Task,
  TrainState,
)

TrainStep = Callable[..., tuple[TrainState, StepInfo]]


def init_state(
  model: Model,
  tasks: Sequence[Task],
  optimizer: optax.GradientTransformation,
  balancer: Balancer,
  batch: Batch,
  key: Array,
  *,
  objectives: str = 'tasks',
) -> TrainState:
  """A fresh state; it can be vmapped over keys.

  Every leaf is copied: nothing in the state aliases an array of the user's or another leaf, so a donated state takes
  nothing else with it.

  Args:
    model, tasks, optimizer, balancer: as for `make_train_step`.
    batch: an example, only its inputs are read (and its structure is checked).
    key: typed PRNG key.
    objectives: as for `make_train_step`; those of examples make the balancer's state one of their number.

  Returns:
    A `TrainState` at step 0.

  Raises:
    InputError: a batch that does not fit the tasks, a task without a head, an optimiser that does not fit.
  """
  names = arrays.task_names(tasks)
  inputs.check_batch(batch, names, model)
  if not jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
    raise InputError(f'key: found {key!r}, expected a typed key such as jax.random.key(0).')
  _check_optimizer(optimizer)
  if objectives not in gradients.OBJECTIVES:
    raise InputError(f'objectives: found {objectives!r}, expected one of {gradients.OBJECTIVES}.')
  params, model_state = model.init(arrays.name_key(key, 'init'), inputs.inputs_by_task(batch, names))
  for argument, tree in (('params', params), ('model_state', model_state)):
    if not hasattr(tree, 'keys') or set(tree) != {'shared', 'tasks'}:
      raise InputError(f"model.init: {argument} is {_keys(tree)}, expected {{'shared': ..., 'tasks': ...}}.")
    arrays.check_names(f"model.init: {argument}['tasks']", tree['tasks'], names)
  params = jax.tree.map(jnp.asarray, params)  # those of a pair of functions may be numbers
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=optimizer.init(params),
    balancer_state=balancer.init(_statistic(balancer, params, gradients.count_objectives(batch, names, objectives))),
    key=key,
  )
  return jax.tree.map(_copy, state)


def make_train_step(
  model: Model,
  tasks: Sequence[Task],
  optimizer: optax.GradientTransformation,
  balancer: Balancer,
  *,
  at: str = 'params',
  objectives: str = 'tasks',
  penalties: Sequence[Penalty] = (),
  chunk_size: int | None = None,
  accumulate: int = 1,
  remat: bool = False,
  on_nonfinite: str = 'error',
) -> TrainStep:
  """The step as a pure function `(state, batch, *, extras={}, axis_name=None) -> (state, StepInfo)`.

  It can be jitted, vmapped over a stack of states, scanned over steps; `compile_step` puts it on several devices. A
  step whose losses or gradients are not finite, or whose batch has no label at all, moves `step` and nothing else.

  Args:
    model: a trunk and T heads.
    tasks: the order of the task axis.
    optimizer: any optax transformation over `{'shared': ..., 'tasks': ...}`; `task_optimizer` makes one per task.
    balancer: a balancing method.
    at: 'params' or 'features', where the rows of the Jacobian are taken (see `gradients.task_gradients`).
    objectives: what the balancer weighs. 'tasks'; 'examples', the B losses of examples, each summed over its tasks;
      'examples_tasks', every task's loss of every example (Quinton and Rey 2024, https://arxiv.org/abs/2406.16232).
      The objectives of a task are its examples' shares of L_t, so that they sum to the task's. For methods of level
      gramian and models that see one example at a time; `init_state` takes the same argument.
    penalties: beta_t R_t, added to those of the model.
    chunk_size: rows of the Jacobian computed at once; T and more are all, of which a Gramian method forms no rows of
      kernels where that is less work. None is 1 on a CPU, where it is faster, and all elsewhere.
    accumulate: in how many parts trunk and heads run over the batch, to need less memory; the balancer sees the whole
      batch once, so the result is that of one part, for every method (see `microbatches.split`).
    remat: keeps nothing of trunk and heads for the pullback but their inputs, and runs them once more.
    on_nonfinite: what becomes of a task whose loss or gradient is NaN or infinite: 'error', the whole step stands
      still (`StepInfo.finite`) and `fit` raises; 'drop', the task is absent from this step. `StepInfo.nonfinite` tells
      which it was in both cases.

  Returns:
    The step. `extras` reach the balancer's `update`.

  Raises:
    InputError: an option out of range; while tracing, a batch that does not fit.
  """
  names = arrays.task_names(tasks)
  if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
    raise InputError(f'chunk_size: found {chunk_size!r}, expected None or a positive integer.')
  if not isinstance(balancer, Balancer) or balancer.level not in LEVELS:
    raise InputError(f'balancer: found {balancer!r}, expected an mtljax.Balancer such as mtljax.balancing.equal().')
  for name, value, choices in (
    ('at', at, ('params', 'features')),
    ('objectives', objectives, gradients.OBJECTIVES),
    ('on_nonfinite', on_nonfinite, ('error', 'drop')),
  ):
    if value not in choices:
      raise InputError(f'{name}: found {value!r}, expected one of {choices}.')
  if objectives != 'tasks' and (at != 'params' or on_nonfinite != 'error'):
    raise InputError(
      f"objectives: found {objectives!r} with at={at!r}, on_nonfinite={on_nonfinite!r}, expected 'params' and 'error'."
    )
  if objectives != 'tasks' and accumulate != 1:
    raise InputError(f'accumulate: found {accumulate!r} with objectives={objectives!r}, expected 1.')
  model = microbatches.split(model, accumulate, remat)
  _check_optimizer(optimizer)
  if isinstance(penalties, Penalty):
    raise InputError('penalties: found a single mtljax.Penalty, expected a tuple of them.')
  penalties = (*model.penalties, *penalties)
  _check_penalties(penalties, names)
  on_params = [p for p in penalties if p.on == 'params']
  optimizer = optax.with_extra_args_support(optimizer)

  def step(state, batch, *, extras: Mapping[str, Any] | None = None, axis_name: str | None = None):
    inputs.check_state(state)
    arrays.check_names("state.params['tasks']", state.params['tasks'], names)
    _check_belongs('opt_state', state.opt_state, lambda: optimizer.init(state.params), 'optimizer')
    if objectives == 'tasks':
      fresh = lambda: balancer.init(_statistic(balancer, state.params, len(names)))
      _check_belongs('balancer_state', state.balancer_state, fresh, 'balancer')
    with arrays.use_axis(axis_name):
      key = jax.random.fold_in(state.key, state.step)
      out = gradients.task_gradients(
        model,
        tasks,
        balancer,
        state.params,
        state.model_state,
        state.balancer_state,
        batch,
        key=key,
        step=state.step,
        at=at,
        objectives=objectives,
        chunk_size=chunk_size,
        penalties=penalties,
        on_nonfinite=on_nonfinite,
        extras=extras,
      )
      grads, penalty = out.grads, out.penalty
      for item in on_params:
        weight = gradients.penalty_weight(item, names, out.present, state.step)
        value, extra = gradients.scaled_penalty(item.value, weight, state.params)
        grads, penalty = jax.tree.map(jnp.add, grads, extra), penalty + value
      zeros = jax.tree.map(jnp.zeros_like, grads['tasks'])
      grads['tasks'] = {n: arrays.select(out.present[t], grads['tasks'][n], zeros[n]) for t, n in enumerate(names)}

      alphas = gradients.task_weights(tasks, state.step)
      objective = jnp.where(out.present, alphas * out.losses, 0).sum() + penalty
      grad_norm = _norm(grads)
      finite = jnp.isfinite(grad_norm) & jnp.isfinite(out.losses).all() & jnp.isfinite(penalty)
      if out.gramian is not None:  # a method may give a finite direction for a row that is not
        finite &= jnp.isfinite(jnp.diagonal(out.gramian)).all()
      moves = finite & out.present.any()

      def moved():
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=objective)
        return {
          'params': optim.hold_absent(optax.apply_updates(state.params, updates), state.params, names, out.present),
          'model_state': out.model_state,
          'opt_state': optim.hold_absent(opt_state, state.opt_state, names, out.present),
          'balancer_state': out.balancer_state,
        }

      old = {name: getattr(state, name) for name in ('params', 'model_state', 'opt_state', 'balancer_state')}
      new = state.replace(step=state.step + 1, **_if_moves(moves, moved, old))
      if balancer.observe is not None:
        after = gradients.task_losses(
          model, tasks, new.params, state.model_state, batch, key=key, step=state.step, present=out.present
        )
        observed = balancer.observe(after, new.balancer_state)
        new = new.replace(balancer_state=arrays.select(moves, observed, state.balancer_state))

      info = StepInfo(
        losses=out.losses,
        present=out.present,
        weights=out.weights,
        gramian=out.gramian,
        norms=None if out.gramian is None else jnp.sqrt(jnp.diagonal(out.gramian)),
        grad_norm=grad_norm,
        penalty=penalty,
        finite=finite,
        nonfinite=jax.lax.cond(
          finite, lambda: out.nonfinite, lambda: out.nonfinite | _nonfinite(out, names, objectives, balancer.level)
        ),
      )
      return new, info

  return step


def make_diagnostics(model: Model, tasks: Sequence[Task]) -> Callable[[TrainState, Batch], Array]:
  """`(state, batch) -> G f[T, T]` of alpha_t g_t over the shared parameters: norms and cosines for any method.

  It costs T trunk pullbacks, so call it when a line is logged and not at every step.
  """
  ones = Balancer(lambda g: (), lambda g, s, /, *, losses, **_: (jnp.ones_like(losses), s), 'gramian')

  def diagnose(state, batch):
    key = jax.random.fold_in(state.key, state.step)
    return gradients.task_gradients(
      model, tasks, ones, state.params, state.model_state, (), batch, key=key, step=state.step
    ).gramian

  return diagnose


def _if_moves(moves, moved, old):
  """`moved()`, or `old` where the step stands still.

  On a CPU as a branch: a step of half a millisecond took 1.2 times as long with every leaf selected. Elsewhere the
  selection is part of the kernels that write the leaves, while a branch would wait for its condition.
  """
  if jax.default_backend() == 'cpu':
    return jax.lax.cond(moves, moved, lambda: old)
  return arrays.select(moves, moved(), old)


def _nonfinite(out, names, objectives, level):
  """bool[T], tasks whose loss, head or row of the Jacobian is not finite."""
  heads = jnp.stack([~arrays.all_finite(out.grads['tasks'][n]) for n in names])
  if level == 'losses':  # heads get weights, which one loss can make NaN for all
    heads &= jnp.isfinite(out.weights)
  wrong = ~jnp.isfinite(out.losses) | heads
  if out.gramian is not None and objectives == 'tasks':
    wrong |= ~jnp.isfinite(jnp.diagonal(out.gramian))
  return wrong


def _check_optimizer(optimizer):
  if not isinstance(optimizer, optax.GradientTransformation):
    raise InputError(f'optimizer: found {optimizer!r}, expected an optax transformation such as mtljax.task_optimizer.')


def _check_belongs(field, found, init, owner):
  """Raises unless a part of the state has the leaves of a fresh one: some optimisers take any state without a word."""
  found, expected = (list(arrays.labelled(tree)) for tree in (found, jax.eval_shape(init)))
  if found != expected:
    differ = sorted({*found} ^ {*expected})
    raise InputError(
      f'state.{field}: found {len(found)} arrays, expected {len(expected)}, those of the {owner}; the first that only '
      f'one of them has is {differ[0]!r}. Was the state made for another {owner}?'
    )


def _check_penalties(penalties, names):
  for penalty in penalties:
    if not isinstance(penalty, Penalty) or penalty.on not in ('params', 'outputs'):
      raise InputError(f"penalties: found {penalty!r}, expected mtljax.Penalty with on='params' or 'outputs'.")
    weight = penalty.weight
    if not callable(weight) and not isinstance(weight, jax.core.Tracer) and not np.all(np.isfinite(weight)):
      raise InputError(f'penalties: found the weight {weight!r}, expected a finite number or a schedule.')
    if penalty.task is not None and penalty.task not in names:
      raise InputError(f'penalties: found one for task {penalty.task!r}, expected one of {names}.')


def _statistic(balancer: Balancer, params: PyTree, size: int) -> PyTree:
  """The shape of what the balancer's `update` will take."""
  dtype = arrays.real_dtype()
  if balancer.level == 'losses':
    return jax.ShapeDtypeStruct((size,), dtype)
  if balancer.level == 'gramian':
    return jax.ShapeDtypeStruct((size, size), dtype)
  if not jax.tree.leaves(params['shared']):
    expected = "'losses' or 'gramian' as the model shares no parameters"
    raise InputError(f'balancer: found one of level {balancer.level!r}, expected {expected}.')
  return jax.tree.map(lambda p: jax.ShapeDtypeStruct((size, *p.shape), p.dtype), params['shared'])


def _copy(leaf):
  if jnp.issubdtype(getattr(leaf, 'dtype', None), jax.dtypes.prng_key):
    return jax.random.wrap_key_data(jnp.array(jax.random.key_data(leaf), copy=True), impl=jax.random.key_impl(leaf))
  return jnp.array(leaf, copy=True)


def _norm(tree):
  """Norm of a tree of gradients; small leaves go together, a reduction each costs more than what it reduces."""
  flat = [g.ravel() for g in jax.tree.leaves(tree)]
  small, large = ([g for g in flat if (g.size < 2**14) == kind] for kind in (True, False))
  parts = ([jnp.concatenate(small)] if small else []) + large
  return jnp.sqrt(sum((jnp.vdot(g, g, preferred_element_type=arrays.real_dtype()) for g in parts), jnp.zeros(())))


def _keys(tree):
  return sorted(tree) if hasattr(tree, 'keys') else type(tree).__name__
