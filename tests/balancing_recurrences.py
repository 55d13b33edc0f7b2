"""A small problem that is not linear, as an oracle, and the methods of level oracle in plain numpy on it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from balancing_asserts import CHEAP

from mtljax.base import TaskGradients

STEPS, RATE, T, P = 4, 0.2, 3, 4
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(3, T, 5, P))  # part, task, example
THETA = RNG.normal(size=P)


def tree(x):
  """[..., P] as a pytree."""
  return {'w': x[..., : P - 1], 'b': x[..., P - 1]}


def flat(x):
  return np.concatenate([np.asarray(x['w']), np.asarray(x['b'])[..., None]], axis=-1)


def task_losses(theta, data, np=np, kinds=(0, 1, 2)):
  """A quadratic, a log-sum-exp and a smooth absolute value; f[T] for data f[T, 5, P]."""
  z = data @ theta
  of = (lambda z: 0.5 * np.mean((z - 1) ** 2), lambda z: np.log(np.sum(np.exp(z))), lambda z: np.mean(np.cosh(z)) / 4)
  return np.stack([of[kind](z[t]) for t, kind in enumerate(kinds)])


def make_oracle(theta, data, labelled, kinds=(0, 1, 2), calls=None):
  """What the engine gives, `data` f[parts, T, 5, P], `labelled` bool[parts, T]; rows and losses of others are NaN."""

  def oracle(shared_delta=None, part=0, *, weights=None):
    present = labelled[part]
    if calls is not None:
      calls.append((part, weights is not None))
    delta = tree(jnp.zeros_like(theta)) if shared_delta is None else shared_delta
    value = lambda d: task_losses(theta + jnp.append(d['w'], d['b']), data[part], jnp, kinds)
    losses, pull = jax.vjp(value, delta)
    if weights is not None:
      shared = pull(jnp.where(present, weights, 0))[0]
    else:
      rows = jax.vmap(pull)(jnp.eye(len(losses)))[0]
      bad = jnp.where(present, 0.0, jnp.nan)
      shared = jax.tree.map(lambda x: x + bad.reshape(-1, *[1] * (x.ndim - 1)), rows)
    rest = dict.fromkeys(TaskGradients._fields)
    losses = jnp.where(present, losses, jnp.nan)
    return TaskGradients(**rest | {'grads': {'shared': shared, 'tasks': {}}, 'losses': losses, 'present': present})

  return oracle


def update(balancer, state, theta, data, step=0, present=None, kinds=(0, 1, 2), calls=None):
  """`present` bool[T], or bool[parts, T] where not every part has labels of every task."""
  labelled = jnp.broadcast_to(True if present is None else jnp.asarray(present), data.shape[:2])
  present = jnp.any(labelled, axis=0)
  oracle = make_oracle(jnp.asarray(theta), jnp.asarray(data), labelled, kinds, calls)
  losses = jnp.where(present, 1.0, jnp.nan)
  return balancer.update(oracle, state, losses=losses, present=present, key=jax.random.key(0), step=step)


def fresh(balancer, tasks=T):
  return balancer.init(tree(np.zeros((tasks, P))))


@functools.cache
def stepper(balancer, kinds=(0, 1, 2)):
  """One compiled training step, (theta, state, data, step, present) -> (theta, state, direction), and its traces."""
  traces = []

  def one(theta, state, data, step, present):
    traces.append(1)
    direction, state = update(balancer, state, theta, data, step, present, kinds)
    d = jnp.append(direction['w'], direction['b'])
    return theta - RATE * d, state, d

  return jax.jit(one, compiler_options=CHEAP), traces


# plain numpy


def central(f, x, h=1e-5):
  """df/dx, leading with the axes of f."""
  return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=-1)


def rows_at(theta, part):
  return central(lambda x: task_losses(x, DATA[part]), theta)


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


def simplex_qp(K, linear, tasks):
  """argmin x'Kx / 2 + linear.x over x >= 0 whose first `tasks` entries sum to 1, by trying every face."""
  best, n = (np.inf, None), len(K)
  ones = (np.arange(n) < tasks).astype(float)
  for size in range(1, n + 1):
    for face in map(list, itertools.combinations(range(n), size)):
      if not ones[face].any():
        continue
      m = len(face)
      system = np.block([[K[np.ix_(face, face)], -ones[face, None]], [ones[None, face], np.zeros((1, 1))]])
      x = np.zeros(n)
      x[face] = np.linalg.lstsq(system, np.append(-linear[face], 1), rcond=None)[0][:m]
      value = x @ K @ x / 2 + linear @ x
      if x.min() >= -1e-12 and abs(x[:tasks].sum() - 1) < 1e-9 and value < best[0] - 1e-14:
        best = (value, x)
  return best[1]


class Adam:
  def __init__(self, rate):
    self.rate, self.m, self.v, self.k = rate, 0.0, 0.0, 0

  def __call__(self, x, g):
    self.k += 1
    self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
    return x - self.rate * (self.m / (1 - 0.9**self.k)) / (np.sqrt(self.v / (1 - 0.999**self.k)) + 1e-8)


def modo(gamma, rho):
  w = np.full(T, 1 / T)
  theta = yield
  while True:
    J0, J1, J2 = (rows_at(theta, part) for part in range(3))
    v = w - gamma * (J1 @ (J2.T @ w) + rho * w)
    w = simplex_qp(np.eye(T), -v, T)
    theta = yield w @ J0, w


def sdmgrad(lam, steps, rate, momentum):
  w = np.full(T, 1 / T)
  theta = yield
  while True:
    J0, J1, J2 = (rows_at(theta, part) for part in range(3))
    A = J1 @ J2.T
    A = A / np.mean(np.sqrt(np.maximum(np.diag(A), 0))) ** 2
    velocity = 0
    for _ in range(steps):
      velocity = momentum * velocity + A @ (w + lam / T)
      w = simplex_qp(np.eye(T), -(w - rate * velocity), T)
    theta = yield (w @ J0 + lam * J0.mean(0)) / (1 + lam), w


def auto_lambda(primary, inner_lr, initial, rate):
  w, adam = np.full(T, initial), Adam(rate)
  theta = yield
  while True:
    J = rows_at(theta, 0)
    outer = lambda w: primary @ task_losses(theta - inner_lr * w @ J, DATA[1])  # noqa: B023
    w = adam(w, central(outer, w))
    theta = yield w @ J, w


def moml(inner_lr, rate):
  logits, adam = np.zeros(T), Adam(rate)
  theta = yield
  while True:
    J = rows_at(theta, 0)
    rows = central(lambda x: task_losses(theta - inner_lr * softmax(x) @ J, DATA[1]), logits)  # noqa: B023
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    logits = adam(logits, simplex_qp(rows @ rows.T, np.zeros(T), T) @ rows)
    theta = yield softmax(logits) @ J, logits


def forum(rho, inner_lr, inner_steps, decay, rate):
  logits, adam, average = np.zeros(T), Adam(rate), np.full(T, 1 / T)
  theta, step = (yield), 0
  while True:
    ahead = theta
    for _ in range(inner_steps):
      ahead = ahead - inner_lr * softmax(logits) @ rows_at(ahead, 0)
    q = lambda z: softmax(z[:T]) @ (task_losses(z[T:], DATA[0]) - task_losses(ahead, DATA[0]))  # noqa: B023
    grad_q = central(q, np.append(logits, theta))
    F = rows_at(theta, 1)
    F = np.append(np.zeros((T, T)), F / np.linalg.norm(F, axis=1, keepdims=True), axis=1)
    every = np.append(F, grad_q[None], axis=0)
    m = simplex_qp(every @ every.T, np.append(np.zeros(T), -rho * grad_q @ grad_q), T)[:T]
    average = average + (step + 1) ** -decay * (m - average)
    nu = max(rho - grad_q @ (average @ F) / (grad_q @ grad_q), 0)
    total = average @ F + nu * grad_q
    step += 1
    theta = yield total[T:], (logits := adam(logits, total[:T]))
