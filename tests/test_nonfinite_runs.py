"""NaN in the data, in one task's loss or in one task's gradient only: stopped, skipped or dropped, never spread.

Every cell trains three steps by `fit`, the second of which is bad. The default suite rotates through the product of
what is NaN, what is chosen, a method of each level, and single and multi input; `full` has all of it for every method
that keeps a state.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import mtljax as mtl
from mtljax import balancing, rundir
from mtljax.loop import NonFiniteError, fit

WHAT, CHOICES, KINDS = ('data', 'loss', 'gradient'), ('error', 'skip', 'drop'), ('single', 'multi')
METHODS = ('famo', 'gradnorm', 'moco')  # of level losses, gramian, jacobian, all with a state
OTHERS = (
  *('uncertainty', 'dwa', 'imtl_l', 'go4align', 'ldc_mtl', 'stch_nadir', 'gradvac', 'imtl', 'nash_mtl', 'pcd', 'mgda'),
  *('excess_mtl', 'db_mtl', 'config_momentum', 'bloop', 'graddrop', 'equal'),
)
FLAG = 1e6


def steep(outputs, labels):
  """Squared error; where the labels are FLAG it is 1, and its gradient is not finite."""
  flag = labels == FLAG
  root = jnp.sqrt(jnp.where(flag, 0 * outputs, 1.0))  # 0 * inf where it is 0
  return jnp.sum(jnp.where(flag, 1 + root, (outputs - labels) ** 2), axis=-1)


def batch(kind, seed):
  data = problems.multi(seed) if kind == 'multi' else problems.batch(seed)
  everybody = jnp.ones(problems.B, bool)
  if kind == 'multi':
    return {name: {**part, 'mask': everybody} for name, part in data.items()}
  return {**data, 'mask': {name: everybody for name in problems.NAMES}}


def spoilt(data, kind, what):
  """One number of 'size' (of all tasks, where they share the inputs)."""
  part = data['size'] if kind == 'multi' else data
  if what == 'data':
    part = {**part, 'inputs': part['inputs'].at[1, 2].set(jnp.nan)}
  else:
    value = jnp.nan if what == 'loss' else FLAG
    labels = (part['labels'] if kind == 'multi' else part['labels']['size']).at[1, 0].set(value)
    part = {**part, 'labels': labels if kind == 'multi' else {**part['labels'], 'size': labels}}
  return {**data, 'size': part} if kind == 'multi' else part


def without_size(data, kind):
  nobody = jnp.zeros(problems.B, bool)
  if kind == 'multi':
    return {**data, 'size': {**data['size'], 'mask': nobody}}
  return {**data, 'mask': {**data['mask'], 'size': nobody}}


@functools.cache
def compiled(method, kind, drop):
  """The first state, and the step; everything lives as long as the module's tests."""
  balancer = balancing.parse(method, steps_per_epoch=2)
  tasks = (problems.tasks()[0], mtl.Task('size', loss=steep))
  net, _, optimizer, _, state = problems.setup(
    balancer, net=problems.model(norm=True), data=batch(kind, 0), task_list=tasks
  )
  step = mtl.make_train_step(net, tasks, optimizer, balancer, on_nonfinite='drop' if drop else 'error')
  return state, mtl.compile_step(step, donate=False)


def train(method, kind, choice, batches):
  """What `fit` returns, the states after every step, and the lines of metrics.jsonl."""
  state, step = compiled(method, kind, choice == 'drop')
  states, lines = [], []

  def stepping(state, index):
    state, info = step(state, batches[index])
    states.append(state)
    return state, info

  log = lambda step, info: lines.append(rundir.record(step, info, problems.NAMES))
  try:
    found = fit(state, stepping, 3, names=problems.NAMES, log_every=1, log=log, on_nonfinite=choice, progress=False)
  except NonFiniteError as error:
    found = error
  return found, states, lines


def cells():
  """(what, choice, method, kind): the rotation, then the rest of the product."""
  kind_of = lambda place, choice: KINDS[(place + (choice != 'drop')) % 2]
  rotation = [
    (what, choice, METHODS[(2 * i + j + 1) % 3], kind_of((2 * i + j + 1) % 3, choice))
    for (i, what), (j, choice) in itertools.product(enumerate(WHAT), enumerate(CHOICES))
  ]
  whole = itertools.product(WHAT, CHOICES, METHODS + OTHERS, KINDS)
  yield from (pytest.param(*cell, id='-'.join(cell)) for cell in rotation)
  yield from (pytest.param(*cell, id='-'.join(cell), marks=pytest.mark.full) for cell in whole if cell not in rotation)


@pytest.mark.parametrize('what, choice, method, kind', list(cells()))
def test_reported_and_never_spread(what, choice, method, kind):
  good = [batch(kind, seed) for seed in (0, 3, 6)]
  batches = [good[0], spoilt(good[1], kind, what), good[2]]
  names = ['digit', 'size'] if (what, kind) == ('data', 'single') else ['size']
  found, states, lines = train(method, kind, choice, batches)
  for state in states:
    for name, leaf in jax.tree_util.tree_leaves_with_path(state.replace(key=None)):
      assert np.isfinite(leaf).all(), jax.tree_util.keystr(name)

  stood = choice != 'drop' or len(names) == 2
  if stood:  # bit for bit
    problems.leaves_close(states[1].replace(step=states[0].step), states[0], rtol=0)
  if choice == 'error':
    problem = 'gradient of task {!r} was not finite' if what == 'gradient' else 'loss of task {!r} became nan'
    assert isinstance(found, NonFiniteError) and str(found) == f'The {problem.format(names[0])} at step 2.'
    assert len(states) == 2 and [line['step'] for line in lines] == [1]
    return

  assert found.step == 3 and [line['nonfinite'] for line in lines] == [[], names, []]
  assert [line['finite'] for line in lines] == [True, choice == 'drop', True]
  assert int(found.skipped) == (choice == 'skip')
  assert found.dropped.tolist() == [choice == 'drop' and name in names for name in problems.NAMES]
  first, last = (jax.tree.leaves(states[i].params['shared']) for i in (1, 2))
  assert any((a != b).any() for a, b in zip(first, last, strict=True))  # it goes on
  if not stood:
    _, absent, _ = train(method, kind, choice, [good[0], without_size(good[1], kind), good[2]])
    if (what, kind) == ('gradient', 'multi'):  # the shared statistics have seen its inputs
      states, absent = ([state.replace(model_state=()) for state in run] for run in (states, absent))
    for state, want in zip(states, absent, strict=True):
      problems.leaves_close(state, want, rtol=1e-6, atol=1e-7)
