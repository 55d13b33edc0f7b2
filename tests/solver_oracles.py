"""The small problems behind the balancing methods, solved again by scipy and numpy, in double precision and beyond.

Every oracle takes a Jacobian f[T, P] and works on the rows themselves where it can, not on the Gramian: the condition
of the problem is then the square root of what the solvers in the library see. Linear systems are refined with residuals
in extended precision. Used by test_linalg.py and benchmarks/solver_accuracy.py.
"""

import functools

import numpy as np
import scipy.optimize

KINDS = ('plain', 'shared direction', 'nearly cancelling', 'more tasks than dimensions', 'scaled rows', 'tiny', 'huge')
DEPENDENT, SCALED = KINDS.index('more tasks than dimensions'), KINDS.index('scaled rows')
REGULARIZATION = 1e-4  # of the dual cone, as in upgrad and dualproj
exact = np.longdouble


@functools.cache
def jacobians(T):
  """f[7, T, P], one of each kind, in double precision with values that single precision holds."""
  rng = np.random.default_rng(T)
  P = 2 * T + 1
  J = rng.normal(size=(7, T, P))
  J[1] += 0.5 * rng.normal(size=P)
  J[2] -= 0.8 * J[2].mean(0)
  J[3] = np.pad(rng.normal(size=(T, max(2, T // 2))) + 0.5, ((0, 0), (0, P - max(2, T // 2))))
  J[4] *= 10.0 ** rng.uniform(-3, 3, size=(T, 1))
  J[5] *= 1e-8
  J[6] *= 1e8
  return np.float64(np.float32(J))


def refined_solve(A, b):
  """A \\ b for a regular A: solved in double precision, refined with residuals in extended precision."""
  A, b = np.asarray(A, exact), np.asarray(b, exact)
  scale = 1 / np.sqrt(np.abs(np.diagonal(A)).astype(np.float64))
  scale = np.where(np.isfinite(scale), scale, 1)
  inverse = np.linalg.inv(np.float64(A * scale[:, None] * scale))
  x = np.zeros_like(b)
  for _ in range(4):
    x = x + scale * (inverse @ np.float64(scale * (b - A @ x)))
  return x


def min_norm(J):
  """The point of least norm in the convex hull of the rows: f[P]."""
  T, size = len(J), np.linalg.norm(J)
  system = np.vstack([J.T / size, np.ones((1, T))])  # min |J'u|^2 + (1'u - 1)^2 over u >= 0 is the same ray
  u = scipy.optimize.nnls(system, np.eye(len(system))[-1], maxiter=50 * T)[0]
  face = exact(J[u > 0])
  if np.linalg.svd(np.float64(face / np.sqrt((face**2).sum(1))[:, None]), compute_uv=False)[-1] > 1e-5:
    v = refined_solve(face @ face.T, np.ones(len(face)))  # on the face of scipy's point
    if np.all(v > 0):
      return v / v.sum() @ face
  return exact(u / u.sum()) @ J


def cone_weights(J, lowers, regularization=REGULARIZATION):
  """argmin of v'Mv over v >= lower, M = JJ' / tr + regularization I, for each lower of f[N, T]: f[N, T]."""
  J = exact(J)
  G = J @ J.T
  M = G / np.trace(G) + regularization * np.eye(len(J))
  root = np.linalg.cholesky(np.float64(M)).T

  def solve(lower):
    u = scipy.optimize.nnls(root, -root @ lower, maxiter=50 * len(J))[0]
    free, w = u > 0, exact(lower)
    if np.any(free):
      w[free] += refined_solve(M[np.ix_(free, free)], -(M @ lower)[free])
    return w

  return np.stack([solve(lower) for lower in lowers])


def conflict_averse_gap(J, weights, c):
  """How far the direction g_0 + weights @ J is from CAGrad's optimum, and outside of the ball: both >= 0.

  min_t <g_t, d> over the ball is bounded by the dual value of any point of the simplex; at the optimum they meet. The
  gap is relative to |J| |g_0|, what lies outside of the ball to |J|.
  """
  J, weights = exact(J), exact(weights)
  size, mean, extra = _norm(J), J.mean(0), weights @ J
  radius = c * _norm(mean)
  point = weights / weights.sum() @ J
  bound = point @ mean + radius * _norm(point)
  gap = bound - np.min(J @ (mean + extra))
  return float(max(gap, 0) / (size * _norm(mean))), float(max(_norm(extra) - radius, 0) / size)


def power_fair(J, alpha, share=1.0):
  """w > 0 with JJ'w = (share / w)^(1 / alpha), by Newton from the solution of scipy: f[T]."""
  power, whole = exact(1 / alpha), _norm(exact(J))
  scale = np.linalg.norm(J / float(whole), axis=1)
  U = exact(J) / whole / scale[:, None]
  C, p = U @ U.T, exact(share) ** power * scale ** (power - 1)  # with y = |g| w: C y = p y^-power
  objective = lambda z: _fair_objective(np.float64(C), np.float64(p), float(power), z)
  start = np.full(len(J), float(np.mean(np.log(np.float64(p)))) / (1 + float(power)))
  z = exact(scipy.optimize.minimize(objective, start, jac=True, method='L-BFGS-B', options={'maxiter': 500}).x)
  for _ in range(60):
    y = np.exp(z)
    work, wage = y * (C @ y), p * y ** (1 - power)
    jacobian = C * np.outer(y, y) + np.diag(work - (1 - power) * wage)
    change = refined_solve(jacobian, wage - work)
    z = z + change / max(1, np.max(np.abs(change)))
    if np.max(np.abs(change)) < 1e-17:
      break
  return np.exp(z) / scale * whole ** (-2 / (1 + power))


def _fair_objective(C, p, power, z):
  """y'Cy / 2 - sum p y^(1 - power) / (1 - power) at y = exp z, divided by the number of tasks, and its gradient."""
  with np.errstate(over='ignore'):
    y = np.exp(np.clip(z, -300, 300))
    wage = p * y ** (1 - power)
    utility = p * np.log(y) if power == 1 else wage / (1 - power)
    return (y @ C @ y / 2 - utility.sum()) / len(z), (y * (C @ y) - wage) / len(z)


def equal_projections(J):
  """IMTL-G's direction: weights of sum 1 with equal projections onto the unit rows; least squares if there are none."""
  y, norms = _pseudo_ones(J)
  w = y / norms
  return w / w.sum() @ exact(J)


def equal_angles(J):
  """ConFIG's direction."""
  y, norms = _pseudo_ones(J)
  U = exact(J) / norms[:, None]
  x = y @ U
  return (exact(J) @ x).sum() / (x @ x) * x


def _pseudo_ones(J):
  """pinv(C) 1 with the cosines C of the rows, from the unit rows themselves; and the norms of the rows."""
  norms = np.sqrt((exact(J) ** 2).sum(1))
  U = exact(J) / norms[:, None]
  values = np.linalg.svd(np.float64(U), compute_uv=False)
  if values[-1] > 1e-6:
    return refined_solve(U @ U.T, np.ones(len(J))), norms
  half = np.linalg.pinv(np.float64(U), rcond=1e-10)
  return exact(half.T @ (half @ np.ones(len(J)))), norms


def aligned(J, eps):
  """Aligned-MTL's direction with scale_mode min, from the singular values of J.

  Those are kept whose squares are above 4 T eps of the largest square, eps that of the dtype the solver runs in.
  """
  T = len(J)
  left, values, right = np.linalg.svd(np.float64(J), full_matrices=False)
  kept = values**2 > 4 * T * eps * values[0] ** 2
  return values[kept][-1] * (left[:, kept].sum(0) / T) @ right[kept]


def _norm(x):
  return np.sqrt((x**2).sum())
