"""Classes of Jacobians f[T, P] to try methods on, drawn by numpy in double precision."""

import numpy as np

TASKS, PARAMETERS = 4, 12


def _draw(seed, tasks=TASKS, parameters=PARAMETERS):
  rng = np.random.default_rng(seed)
  return rng, rng.normal(size=(tasks, parameters))


def random(seed):
  return _draw(seed)[1]


def conflicting(seed):
  """Rows that nearly cancel: large negative cosines, but 0 is not in their hull."""
  _, J = _draw(seed)
  return J - 0.8 * J.mean(0)


def aligned(seed):
  rng, J = _draw(seed)
  return J + 2 * rng.normal(size=J.shape[1])


def orthogonal(seed):
  rng, J = _draw(seed)
  rows = np.linalg.qr(J.T)[0].T
  return rows * rng.uniform(0.5, 2.0, size=(len(J), 1))


def row_scales(seed):
  return random(seed) * np.array([1e-2, 1.0, 30.0, 3.0])[:, None]


def duplicate(seed):
  J = random(seed)
  J[2] = J[0]
  return J


def identical(seed):
  return np.repeat(random(seed)[:1], TASKS, 0)


def opposed(seed):
  J = random(seed)
  J[1] = -0.3 * J[0]
  return J


def zero_row(seed):
  J = random(seed)
  J[1] = 0
  return J


def zeros(seed):
  return 0 * random(seed)


def stationary(seed):
  J = random(seed)
  J[3] = -J[0] - 2 * J[1] - 0.5 * J[2]
  return J


def low_rank(seed):
  """More tasks than dimensions."""
  rng, J = _draw(seed)
  return J[:, :2] @ rng.normal(size=(2, PARAMETERS))


INDEPENDENT = (random, conflicting, aligned, orthogonal, row_scales)  # rows linearly independent: problems well posed
DEGENERATE = (duplicate, identical, opposed, zero_row, zeros, stationary, low_rank)
EVERY = INDEPENDENT + DEGENERATE


def jacobians(classes, count, seed=0):
  """f[count, T, P], the classes in turn."""
  return np.stack([classes[i % len(classes)](seed + i) for i in range(count)])


def losses(count, tasks=TASKS, seed=100):
  return np.random.default_rng(seed).uniform(0.3, 2.0, size=(count, tasks))


def draws(count, tasks=TASKS, seed=200):
  """The random draws that methods accept in place of a key."""
  rng = np.random.default_rng(seed)
  order = np.stack([[rng.permutation(tasks) for _ in range(tasks)] for _ in range(count)])
  uniform = rng.uniform(size=(count, PARAMETERS))
  return {'order': order, 'uniform': uniform, 'normal': rng.normal(size=(count, tasks))}
