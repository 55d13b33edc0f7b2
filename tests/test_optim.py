"""Every task its own optimiser: rates, schedules, freezing, decay, and labels that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtljax as mtl
from mtljax import optim


def params():
  return {
    'shared': {'k': jnp.ones((2, 2)), 'b': jnp.ones(2)},
    'tasks': {'a': {'w': jnp.ones(2)}, 'b': {'w': jnp.ones(2)}},
  }


def updates(optimizer, steps=1, grads=None):
  p = params()
  state = optimizer.init(p)
  for _ in range(steps):
    u, state = optimizer.update(jax.tree.map(jnp.ones_like, p) if grads is None else grads, state, p)
  return u


def test_two_tasks_move_by_their_own_learning_rates():
  u = updates(mtl.task_optimizer(shared=optax.sgd(0.1), tasks={'a': optax.sgd(1.0), 'b': optax.sgd(0.01)}))
  np.testing.assert_allclose(u['shared']['b'], -0.1)
  np.testing.assert_allclose(u['tasks']['a']['w'], -1.0)
  np.testing.assert_allclose(u['tasks']['b']['w'], -0.01)


def test_schedules_and_freezing():
  schedule = optax.linear_schedule(1.0, 0.0, 4)
  optimizer = mtl.task_optimizer(shared=optax.set_to_zero(), tasks={'a': optax.sgd(schedule), 'b': optax.adam(0.1)})
  u = updates(optimizer, steps=3)
  assert u['tasks']['a']['w'].tolist() == [-0.5, -0.5] and not u['shared']['k'].any()
  np.testing.assert_allclose(u['tasks']['b']['w'], -0.1, rtol=1e-5)


def test_patterns_choose_by_path():
  optimizer = mtl.task_optimizer(
    shared={'/k$': optax.sgd(1.0), '.*': optax.set_to_zero()}, tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}
  )
  u = updates(optimizer)
  assert u['shared']['k'].sum() == -4 and u['shared']['b'].sum() == 0


def test_decay_is_of_kernels_and_per_group():
  sgd = optax.sgd(1.0)
  optimizer = mtl.task_optimizer(shared=sgd, tasks={'a': sgd, 'b': sgd}, decay={'shared': 0.25, 'a': 0.5})
  u = updates(optimizer, grads=jax.tree.map(jnp.zeros_like, params()))
  np.testing.assert_allclose(u['shared']['k'], -0.25)
  assert not u['shared']['b'].any() and not u['tasks']['a']['w'].any()  # one axis: no kernel


def test_decay_is_in_no_gramian():
  import problems

  sgd = optax.sgd(1.0)
  infos = []
  for decay in ({}, {'shared': 0.5}):
    opt = mtl.task_optimizer(shared=sgd, tasks={'digit': sgd, 'size': sgd}, decay=decay)
    net, tasks, opt, balancer, state = problems.setup(mtl.balancing.mgda(), opt=opt)
    infos.append(mtl.make_train_step(net, tasks, opt, balancer)(state, problems.batch())[1])
  np.testing.assert_array_equal(infos[0].gramian, infos[1].gramian)


BAD = {
  'missing': (dict(shared=optax.sgd(1.0), tasks={'a': optax.sgd(1.0)}), r"found \['a'\], expected \['a', 'b'\]"),
  'unused': (
    dict(shared=optax.sgd(1.0), tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0), 'c': optax.sgd(1.0)}),
    r"unknown \['c'\]",
  ),
  'pattern unused': (
    dict(shared={'/q': optax.sgd(1.0), '.*': optax.sgd(1.0)}, tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}),
    r"'shared': patterns \['/q'\] match no parameter.*in use are \['\.\*'\]",
  ),
  'pattern missing': (
    dict(shared={'/k': optax.sgd(1.0)}, tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}),
    "'shared/b' matches none",
  ),
  'type': (dict(shared=0.1, tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}), "'shared': found 0.1"),
  'decay': (
    dict(shared=optax.sgd(1.0), tasks={'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}, decay={'c': 1.0}),
    "unknown \\['tasks/c'\\]",
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_labels_that_do_not_fit_are_printed(case):
  options, message = BAD[case]
  with pytest.raises(mtl.InputError, match=message):
    mtl.task_optimizer(**options).init(params())


@pytest.mark.parametrize(
  'make',
  [
    lambda: mtl.task_optimizer(
      shared=optax.adam(0.1), tasks={'a': optax.adamw(0.1), 'b': optax.sgd(0.1, momentum=0.9)}
    ),
    lambda: optax.adam(0.1),
    lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)),
    # labels that read like the two halves of the parameters
    lambda: optax.multi_transform(
      {'shared': optax.adam(0.1), 'tasks': optax.adam(0.2)}, {'shared': 'shared', 'tasks': 'tasks'}
    ),
    lambda: optax.multi_transform(
      {'shared': optax.adam(0.1), 'b': optax.adam(0.2)}, {'shared': 'shared', 'tasks': {'a': 'b', 'b': 'shared'}}
    ),
  ],
  ids=['task_optimizer', 'adam', 'chain', 'halves', 'groups'],
)
def test_state_of_absent_tasks_is_held(make):
  optimizer, p = make(), params()
  old = optimizer.init(p)
  _, new = optimizer.update(jax.tree.map(jnp.ones_like, p), old, p)
  held = optim.hold_absent(new, old, ('a', 'b'), jnp.array([True, False]))
  for (path, h), (_, n), (_, o) in zip(
    *(jax.tree_util.tree_leaves_with_path(t) for t in (held, new, old)), strict=True
  ):
    own = "['tasks']['b']" in jax.tree_util.keystr(path)
    np.testing.assert_array_equal(h, o if own else n, err_msg=jax.tree_util.keystr(path))


def test_tables_by_task_below_shared_are_not_held():
  new = {'shared': {'tasks': {'a': jnp.ones(1), 'b': jnp.ones(1)}}, 'tasks': {'a': jnp.ones(1), 'b': jnp.ones(1)}}
  old = jax.tree.map(jnp.zeros_like, new)
  held = optim.hold_absent(new, old, ('a', 'b'), jnp.array([True, False]))
  assert held['shared']['tasks']['b'] == 1 and held['tasks']['b'] == 0 and held['tasks']['a'] == 1
