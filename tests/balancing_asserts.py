"""Properties that a balancer may hold to: assertions over a batch of Jacobians f[N, T, P] in double precision."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from balancing_cases import CASES
from balancing_samplers import DEGENERATE, EVERY, INDEPENDENT, TASKS, draws, jacobians, losses

from mtljax import balancing

TRACES = collections.Counter()
CHEAP = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}  # compiling takes the time here
COUNT = 12  # Jacobians in a batch, the same everywhere: a method is compiled once for each number of tasks


def aggregate(balancer, J, losses=None, **extras):
  """`balancing.aggregate`, compiled in a hurry: much faster than one operation after another."""
  run = jax.jit(lambda J, l, extras: balancing.aggregate(balancer, J, l, **extras), compiler_options=CHEAP)
  return run(J, losses, extras)


@functools.cache
def compiled(name, tasks=tuple(range(TASKS))):
  """`aggregate` of a case over a batch, traced once: (J, losses, state, present, step, after, draws) -> Aggregate."""
  balancer = CASES[name].make(tasks)

  def one(J, l, state, present, step, after, extras):
    TRACES[name, tasks] += 1
    return balancing.aggregate(
      balancer, J, l, state, present=present, step=step, losses_after=after, key=jax.random.key(1), **extras
    )

  return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None, 0, 0)), compiler_options=CHEAP)


def initial(name, J, tasks=tuple(range(TASKS))):
  """The fresh state of every Jacobian of a batch."""
  balancer = CASES[name].make(tasks)
  count, number, parameters = J.shape
  shapes = {'losses': (number,), 'gramian': (number, number)}
  example = jax.ShapeDtypeStruct(shapes.get(balancer.level, (number, parameters)), jnp.float64)
  with jax.ensure_compile_time_eval():
    state = balancer.init(example)
  return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *x.shape)), state)


def run(name, J, l, state=None, present=None, step=0, after=None, extras=None, tasks=None):
  """A batch through a case; numpy arrays in, numpy arrays out."""
  count, number = J.shape[:2]
  tasks = tuple(range(number)) if tasks is None else tasks
  state = initial(name, J, tasks) if state is None else state
  present = np.ones((count, number), bool) if present is None else present
  after = 0.9 * l if after is None else after
  extras = draws(count, number) if extras is None else extras
  result = compiled(name, tasks)(J, l, state, present, np.int32(step), after, extras)
  assert TRACES[name, tasks] == 1
  return jax.tree.map(np.asarray, (result.direction, result.weights, result.state))


def close(got, want, tolerance, scale=None):
  """Batch entries agree up to a share of the size of each."""
  axes = tuple(range(1, np.ndim(want)))
  size = np.sqrt(np.sum(np.square(want), axis=axes)) if scale is None else scale
  error = np.sqrt(np.sum(np.square(got - want), axis=axes))
  assert np.all(error <= tolerance * size + 1e-300), (error / np.maximum(size, 1e-300)).max()


def independent():
  return jacobians(INDEPENDENT, COUNT), losses(COUNT)


def assert_finite(name):
  """No NaN on any class at any scale, over three steps; zero where everything is zero."""
  for scale in (1e-8, 1.0, 1e8):
    J, l = scale * jacobians(EVERY, COUNT), losses(COUNT)
    state = None
    for step in range(3):
      direction, weights, state = run(name, J, l, state, step=step)
      assert np.all(np.isfinite(direction))
      assert weights is None or np.all(np.isfinite(weights))
      assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state) if leaf.dtype.kind == 'f')
    zero = [i for i in range(COUNT) if not J[i].any()]
    assert zero and not direction[zero].any()


def assert_scale_rule(name):
  """direction(s J) = s^p direction(J)."""
  power = CASES[name].scale
  J, l = independent()
  want = run(name, J, l)[0]
  for scale in (1e-8, 1e8):
    close(run(name, scale * J, l)[0] / scale**power, want, 1e-7)


def assert_row_scale_rule(name):
  """Rescaling rows one by one does not turn the direction."""
  J, l = independent()
  unit = lambda d: d / np.linalg.norm(d, axis=1, keepdims=True)
  factors = np.array([1e-3, 1.0, 1e3, 10.0])[:, None]
  close(unit(run(name, J * factors, l)[0]), unit(run(name, J, l)[0]), 1e-6)


def assert_permutation_equivariant(name):
  """Tasks in another order: the same direction, weights in that order."""
  J, l = independent()
  new = np.array([2, 0, 3, 1])
  old = np.argsort(new)
  given = draws(COUNT)
  moved = given | {'order': old[given['order'][:, new]], 'normal': given['normal'][:, new]}
  direction, weights, _ = run(name, J, l)
  tasks = tuple(int(t) for t in new) if CASES[name].per_task else tuple(range(TASKS))
  again, permuted, _ = run(name, J[:, new], l[:, new], extras=moved, tasks=tasks)
  close(again, direction, 1e-7)
  assert (weights is None) == (permuted is None)
  if weights is not None:
    close(permuted, weights[:, new], 1e-7)


def assert_simplex(name):
  for step, classes in enumerate((INDEPENDENT, DEGENERATE)):
    weights = run(name, jacobians(classes, COUNT), losses(COUNT), step=step)[1]
    assert np.all(weights >= 0) and np.allclose(weights.sum(1), 1, rtol=1e-12)


def assert_non_conflicting(name):
  J, l = independent()
  direction = run(name, J, l)[0]
  cosines = np.einsum('ntp,np->nt', J, direction) / np.linalg.norm(J, axis=2)
  assert np.all(cosines >= -CASES[name].non_conflict * np.linalg.norm(direction, axis=1, keepdims=True))


def assert_absent_is_deleted(name):
  """An absent task, whatever its row and its losses hold, is as if it were not there; its state rests."""
  J, l = independent()
  after = 0.8 * losses(COUNT, seed=5)
  absent = np.full(COUNT, 1) if CASES[name].per_task else np.arange(COUNT) % TASKS
  rows = np.arange(COUNT)
  kept = np.stack([np.delete(np.arange(TASKS), a) for a in absent])
  present = np.ones((COUNT, TASKS), bool)
  present[rows, absent] = False
  cut = lambda x: x[rows[:, None], kept]
  spoilt = lambda x: np.where(present.reshape(COUNT, TASKS, *(1,) * (x.ndim - 2)), x, np.nan)
  given = draws(COUNT)
  renumbered = lambda i, order: [int(np.searchsorted(kept[i], j)) for j in order if j != absent[i]]
  orders = [[renumbered(i, given['order'][i, k]) for k in kept[i]] for i in rows]
  fewer = {'order': np.array(orders), 'uniform': given['uniform'], 'normal': cut(given['normal'])}
  tasks = tuple(int(t) for t in kept[0]) if CASES[name].per_task else tuple(range(TASKS - 1))
  state, small = initial(name, J), None
  for step in range(2):
    before = state
    direction, weights, state = run(name, spoilt(J), spoilt(l), state, present, step, spoilt(after), given)
    want, want_weights, small = run(name, cut(J), cut(l), small, None, step, cut(after), fewer, tasks)
    close(direction, want, 1e-9)
    if weights is not None:
      assert not weights[rows, absent].any()
      close(cut(weights), want_weights, 1e-9)
    for new, old, deleted in zip(*map(jax.tree.leaves, (state, before, small))):
      np.testing.assert_array_equal(new[rows, absent], old[rows, absent])
      mine = cut(new)
      if new.shape[2:] == (TASKS,):
        mine = np.take_along_axis(mine, kept[:, None, :], axis=2)
      np.testing.assert_allclose(mine, deleted, rtol=1e-8, atol=1e-12)


def assert_rests_when_all_are_absent(name):
  J, l = independent()
  state = run(name, J, l)[2]
  nobody = np.zeros((COUNT, TASKS), bool)
  direction, weights, after = run(name, J * np.nan, l * np.nan, state, nobody, 1, l * np.nan)
  assert not direction.any() and (weights is None or not weights.any())
  chex.assert_trees_all_equal(after, state)
