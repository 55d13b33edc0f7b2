"""Distillation: a multi-task net that follows single-task teachers, and tasks that follow each other."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays, losses
from mtljax.base import Array, InputError, Model, Penalty, PyTree, Task
from mtljax.sharing.modules import describe, explained

EPSILON = 1e-6  # of a squared norm


class Distilled(NamedTuple):
  """What a head that has a teacher gives in training: the losses of `distill` read the outputs and penalties the rest.

  Attributes:
    outputs: of the student.
    distance: f[B] to the teacher.
  """

  outputs: PyTree
  distance: Array


def distill(
  model: Model,
  tasks: Sequence[Task],
  teachers: Mapping[str, tuple[Model, PyTree, PyTree]],
  *,
  beta: float | Callable | Mapping[str, float | Callable] = 1.0,
  features: bool | Callable[[PyTree, str], PyTree] = True,
  responses: Callable[[Array, Array], Array] | Mapping[str, Callable[[Array, Array], Array]] | None = None,
) -> tuple[Model, tuple[Task, ...]]:
  """A model with beta_t R_t in its objective, R_t = mean |A_t z / |A_t z| - z' / |z'||^2 + mean responses(y_t, y'_t).

  z and y_t are the student's features and outputs, z' and y'_t those of the task's teacher, a single-task net; A_t is a
  linear adaptor over channels, norms and distance are over channels, means over examples (those without a label too)
  and positions. So every task pulls at the trunk with a term of the same scale.

  Any architecture can be student or teacher. A teacher runs in the head of its task, as in evaluation and on the task's
  own inputs, while the student trains; its frozen weights are in
  `model_state['tasks'][task]['teacher']`, and no gradient, Gramian or optimiser sees them. Adaptors are in
  `params['tasks'][task]['adaptor']`, the student's own parameters in `params['tasks'][task]['student']`, which alone
  are what `model` takes. R_t is a penalty of the architecture, outside the balancer, and goes with its task when the
  task is absent. Evaluation, metrics and `decode` are those of `model` and `tasks`.

  Args:
    model: the student.
    tasks: its tasks. Their losses read plain outputs; so do the model's penalties, but not others with `on='outputs'`
      (except `follow`): these get `Distilled` and find the outputs in its field.
    teachers: {task: (model, params, model_state)}, for some tasks or all: nets with a head for the task.
    beta: number, optax schedule, or {task: number or schedule}.
    features: the first term; True compares the features one by one, those of the task in architectures that hand on
      {task: z_t}. A function `(features, task) -> arrays` picks others, of student and teacher alike.
    responses: the second term, `(outputs, teacher's outputs) -> f[B, ...]` such as `losses.distillation` or
      `losses.squared_error`, or one per task; None leaves it out.

  Returns:
    The model and the tasks to train it with.

  Raises:
    InputError: teachers of unknown tasks, that are no (model, params, model_state) or have no head for the task;
      nothing to distil; while initialising, a teacher that cannot take the task's inputs, features of other shapes than
      the teacher's (but for their channels).

  >>> from mtljax import sharing
  >>> x, heads = jnp.ones((4, 3)), {'a': nn.Dense(2), 'b': nn.Dense(2)}
  >>> teacher = sharing.hard(nn.Dense(16), {'a': nn.Dense(2)})
  >>> taught = {'a': (teacher, *teacher.init(jax.random.key(0), {'a': x}))}
  >>> tasks = (Task('a', losses.softmax_cross_entropy), Task('b', losses.softmax_cross_entropy))
  >>> model, tasks = distill(sharing.hard(nn.Dense(8), heads), tasks, taught, responses=losses.distillation)
  >>> params, _ = model.init(jax.random.key(1), {'a': x, 'b': x})
  >>> params['tasks']['a']['adaptor']['0'].shape, sorted(params['tasks']['b'])
  ((8, 16), ['bias', 'kernel'])

  References: Li & Bilen, Knowledge Distillation for Multi-task Learning (ECCV workshops 2020),
  https://arxiv.org/abs/2007.06889; Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (2015),
  https://arxiv.org/abs/1503.02531. Departs from the first: teachers run with their running statistics (in the authors'
  code with those of the batch); the response term; adaptors get the optimiser of the task (in the authors' code Adam at
  a rate of .1 with weight decay, which a pattern of `task_optimizer` can choose: `'/adaptor/'`).
  """
  names = arrays.task_names(tasks)
  if not isinstance(teachers, Mapping) or not teachers:
    raise InputError(f'teachers: found {describe(teachers)}, expected {{task: (model, params, model_state)}}.')
  arrays.check_names('teachers', teachers, names, all_of=False)
  if not features and responses is None:
    raise InputError('distill: found features=False and responses=None, expected one of the two terms.')
  if not isinstance(features, bool) and not callable(features):
    raise InputError(f'distill features: found {features!r}, expected True, False or a function (features, task).')
  taught = {task: _teacher(task, given) for task, given in teachers.items()}
  betas, measures = (_per_task(name, x, taught) for name, x in (('beta', beta), ('responses', responses)))
  for task, weight in betas.items():
    arrays.check_weight(f'distill beta of {task!r}', weight)
  pick = (lambda z, task: features(z, task)) if callable(features) else _own_features

  def compare(task, adaptor, z, y, frozen, x):
    """f[B], the distance of features z and outputs y to those of the teacher."""
    teacher_z, teacher_y = _evaluated(taught[task][0], *frozen, x, task)
    total = jnp.zeros(jax.tree.leaves(x)[0].shape[0], arrays.real_dtype())
    if features:
      pairs = _pairs(task, pick(z, task), pick(teacher_z, task))
      total += sum(_feature_distance(adaptor[str(i)], *pair) for i, pair in enumerate(pairs))
    if measures[task] is not None:
      total += _per_example(measures[task](y, teacher_y))
    return total

  def init(key, inputs):
    params, state = model.init(key, inputs)
    own_params, own_state = dict(params['tasks']), dict(state['tasks'])
    for task in (task for task in inputs if task in taught):
      frozen = jax.tree.map(jnp.asarray, taught[task][1:])
      shapes = jax.eval_shape(functools.partial(_evaluated, model, task=task), params, state, inputs[task])
      with explained(f'teachers[{task!r}]', inputs[task]):
        teacher = jax.eval_shape(functools.partial(_evaluated, taught[task][0], task=task), *frozen, inputs[task])
      own_params[task] = {'student': params['tasks'][task]}
      if features:
        picked = (jax.eval_shape(functools.partial(pick, task=task), seen[0]) for seen in (shapes, teacher))
        pairs = _pairs(task, *picked)
        adaptor_key = arrays.name_key(arrays.name_key(key, task), 'adaptor')
        own_params[task]['adaptor'] = {
          str(i): nn.initializers.xavier_normal()(arrays.name_key(adaptor_key, str(i)), (a.shape[-1], b.shape[-1]))
          for i, (a, b) in enumerate(pairs)
        }
      own_state[task] = {'student': state['tasks'][task], 'teacher': dict(zip(('params', 'state'), frozen))}
    return {**params, 'tasks': own_params}, {**state, 'tasks': own_state}

  def head(params, state, z, *, inputs=None, task, train, key):
    run = functools.partial(model.head, inputs=inputs, task=task, train=train, key=key)
    if task not in taught:
      return run(params, state, z)
    y, student = run(params['student'], state['student'], z)
    if train:
      frozen = state['teacher']['params'], state['teacher']['state']
      y = Distilled(y, compare(task, params.get('adaptor'), z, y, frozen, inputs))
    return y, {**state, 'student': student}

  def stem(params, state, inputs, *, task, train, key):
    run = functools.partial(model.stem, task=task, train=train, key=key)
    if task not in taught:
      return run(params, state, inputs)
    z, student = run(params['student'], state['student'], inputs)
    return z, {**state, 'student': student}

  def term(task):
    return lambda params, outputs: outputs[task].distance.mean()

  penalties = [_of_student(penalty, taught) for penalty in model.penalties]
  penalties += [Penalty(betas[task], term(task), task, 'outputs') for task in taught]
  wrapped = tuple(
    dataclasses.replace(task, loss=_of_outputs(task.loss)) if task.name in taught else task for task in tasks
  )
  return Model(init, model.trunk, head, None if model.stem is None else stem, tuple(penalties)), wrapped


def follow(
  beta: float | Callable,
  student: str,
  teacher: str,
  *,
  read: Callable[[PyTree], Array] | None = None,
  loss: Callable[[PyTree, Array], Array] = losses.squared_error,
  stop_gradient: bool = True,
) -> Penalty:
  """R = mean loss(y_s, read(y_t)): the outputs of one task follow those of another on the same inputs.

  Args:
    beta: number or optax schedule.
    student: the task s; the penalty is off while it is absent.
    teacher: the task t.
    read: the teacher's outputs -> what the student's should be; None, the same.
    loss: `(outputs, read outputs) -> f[B, ...]`, such as `losses.distillation`.
    stop_gradient: the teacher does not move towards the student. Two such penalties, one each way, are mutual learning
      (Zhang, Xiang, Hospedales & Lu, CVPR 2018, https://arxiv.org/abs/1706.00384); False is one that pulls at both.

  Returns:
    A `Penalty` on outputs, for `make_train_step(penalties=...)`. A net of one task has nothing to follow: R = 0.

  Raises:
    InputError: one task twice; while tracing, a task that the model does not have, a multi-input batch, whose outputs
      are of different examples.

  >>> def even_or_odd(digit):
  ...   return jnp.stack([jax.nn.logsumexp(digit[:, start::2], axis=1) for start in (0, 1)], axis=1)
  >>> penalty = follow(0.1, 'parity', 'digit', read=even_or_odd, loss=losses.distillation)
  >>> x, digit = jnp.ones((1, 3)), jnp.zeros((1, 10))
  >>> print(penalty.value({}, {'parity': jnp.zeros((1, 2)), 'digit': digit}, inputs={'parity': x, 'digit': x}))
  0.0
  """
  if student == teacher:
    raise InputError(f'follow: found {student!r} as student and teacher, expected two tasks.')
  arrays.check_weight('follow beta', beta)

  def value(params, outputs, *, inputs):
    if len(outputs) == 1:  # a single-task baseline
      return jnp.zeros((), arrays.real_dtype())
    arrays.check_names('follow', {student, teacher}, outputs, all_of=False)
    if any(a is not b for a, b in zip(jax.tree.leaves(inputs[student]), jax.tree.leaves(inputs[teacher]))):
      raise InputError(f'follow: found a multi-input batch, expected {student!r} and {teacher!r} on the same inputs.')
    mine, theirs = (_plain(outputs[task]) for task in (student, teacher))
    theirs = jax.lax.stop_gradient(theirs) if stop_gradient else theirs
    return _per_example(loss(mine, theirs if read is None else read(theirs))).mean()

  return Penalty(beta, value, student, 'outputs')


def _teacher(task: str, given) -> tuple[Model, PyTree, PyTree]:
  """The model, and copies of the shared parameters and state and of the task's own."""
  if not isinstance(given, tuple) or len(given) != 3 or not isinstance(given[0], Model):
    raise InputError(f'teachers[{task!r}]: found {type(given).__name__}, expected (model, params, model_state).')
  model, *trees = given
  for name, tree in zip(('params', 'model_state'), trees):
    if not isinstance(tree, Mapping) or set(tree) != {'shared', 'tasks'}:
      raise InputError(f"teachers[{task!r}]: {name} is {describe(tree)}, expected {{'shared': ..., 'tasks': ...}}.")
    if task not in tree['tasks']:
      raise InputError(
        f'teachers[{task!r}]: {name} has the tasks {sorted(tree["tasks"])}, expected a head for {task!r}.'
      )
  mine = [{'shared': tree['shared'], 'tasks': {task: tree['tasks'][task]}} for tree in trees]
  return model, *jax.tree.map(np.array, mine)  # copies: those of a state that is donated would be gone


def _per_task(name: str, x, tasks) -> dict[str, Any]:
  if isinstance(x, Mapping):
    arrays.check_names(f'distill {name}', x, tasks)
    return dict(x)
  return dict.fromkeys(tasks, x)


def _evaluated(model: Model, params: PyTree, state: PyTree, x: PyTree, task: str) -> tuple[PyTree, PyTree]:
  """Features and outputs of one task, as in evaluation."""
  mode = dict(train=False, key=None)
  z, own, own_state = x, params['tasks'][task], state['tasks'][task]
  if model.stem is not None:
    z, own_state = model.stem(own, own_state, x, task=task, **mode)
  z, _ = model.trunk(params['shared'], state['shared'], z, tasks=(task,), **mode)
  return z, model.head(own, own_state, z, inputs=x, task=task, **mode)[0]


def _own_features(features: PyTree, task: str) -> PyTree:
  return features[task] if isinstance(features, Mapping) and task in features else features


def _pairs(task: str, student: PyTree, teacher: PyTree) -> list[tuple[Array, Array]]:
  """The floating leaves of both, side by side."""
  mine, theirs = ([x for x in jax.tree.leaves(tree) if arrays.is_float(x)] for tree in (student, teacher))
  alike = all(a.ndim > 1 and a.shape[:-1] == b.shape[:-1] for a, b in zip(mine, theirs))
  if not mine or len(mine) != len(theirs) or not alike:
    raise InputError(
      f'distill features of {task!r}: found {describe(student)} of the student and {describe(teacher)} of the teacher, '
      'expected arrays [B, ..., C] in pairs that differ in C only; a function picks some, features=False none.'
    )
  return list(zip(mine, theirs))


def _feature_distance(adaptor: Array, z: Array, teacher: Array) -> Array:
  """f[B] of z f[B, ..., C] and the teacher's f[B, ..., D]."""
  z, teacher = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (z, teacher))
  return _per_example(((_unit(z @ adaptor) - _unit(teacher)) ** 2).sum(axis=-1))


def _unit(x: Array) -> Array:
  return x * jax.lax.rsqrt((x * x).sum(axis=-1, keepdims=True) + EPSILON)


def _per_example(values: Array) -> Array:
  """f[B, ...] -> f[B]."""
  return values.reshape(values.shape[0], -1).mean(axis=1)


def _plain(outputs: PyTree) -> PyTree:
  return outputs.outputs if isinstance(outputs, Distilled) else outputs


def _of_outputs(loss: Callable) -> Callable:
  @functools.wraps(loss)
  def plain_loss(outputs, labels):
    return loss(_plain(outputs), labels)

  return plain_loss


def _of_student(penalty: Penalty, taught) -> Penalty:
  """A penalty of the student on the parameters and outputs that it knows."""

  @functools.wraps(penalty.value)  # with its signature: it may name `inputs`
  def value(params, *outputs, **inputs):
    own = {task: part['student'] if task in taught else part for task, part in params['tasks'].items()}
    outputs = [{task: _plain(y) for task, y in by_task.items()} for by_task in outputs]
    return penalty.value({**params, 'tasks': own}, *outputs, **inputs)

  return penalty._replace(value=value)
