"""Penalties that learn how tasks are related while they train: a task covariance (MTRL) and a task graph.

Both minimise over the tasks' parameters and over a matrix of relations that has a closed form. The value takes that
form from the parameters at hand and holds it still (`stop_gradient`): a gradient step alternates with an exact update
of the relations. By the envelope theorem its gradient is that of the objective minimised over the relations. The
relations are a function of the parameters, so that there is nothing to save: they are read out when somebody asks.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Penalty, PyTree
from mtljax.relations import TaskGraph

EPS = 1e-6  # of the trace of W W', see `mtrl`


def mtrl(beta: float | Callable, where: str = 'kernel', task: str | None = None, *, eps: float = EPS) -> Penalty:
  """Multi-task relationship learning, R = min over Omega of 1/2 tr(Omega^-1 W W') with Omega >= 0, tr(Omega) = 1.

  W f[T, P] holds a task's parameters in each row (the paper's W is its transpose). The minimum is at
  Omega = (W W')^1/2 / tr((W W')^1/2), the covariance of the tasks, where R is half of the squared trace norm of W:
  related tasks are pulled together and opposite ones apart, both by as much as they are.

  Args:
    beta: lambda_2 of the paper, a number or an optax schedule. Its other term, lambda_1 / 2 |W|^2, is
      `penalties.l2(lambda_1, where)`.
    where: regular expression searched for in the path of a task's parameter ('tasks/digit/Dense_0/kernel'): the rows.
      What it finds must have the same names and shapes in all tasks.
    task: the task with which the penalty comes and goes.
    eps: the covariance of directions that no task uses, where the penalty has no derivative: W W' is replaced by
      W W' + eps tr(W W') I, in the penalty as in its minimiser. At W = 0, where any Omega is a minimiser, it is I / T.

  Returns:
    A `Penalty`.

  Raises:
    InputError: beta below 0 or not finite, eps that is not positive; while tracing, a pattern that matches nothing,
      tasks of different shapes.

  >>> params = {'shared': {}, 'tasks': {'a': {'kernel': jnp.array([3.0, 0.0])}, 'b': {'kernel': jnp.array([0.0, 1.0])}}}
  >>> round(mtrl(1.0).value(params).item(), 3)  # (3 + 1)^2 / 2
  8.0
  >>> print(task_covariance(params).round(2))
  [[0.75 0.  ]
   [0.   0.25]]

  Reference: Zhang & Yeung, A Convex Formulation for Learning Task Relationships in Multi-Task Learning (UAI 2010),
  https://arxiv.org/abs/1203.3536. Departs from it: one gradient step between two updates of Omega instead of a convex
  problem solved to the end, and eps.
  """
  arrays.check_weight('mtrl beta', beta)
  _check_positive('mtrl eps', eps)

  def value(params):
    M = _second_moment(task_matrix(params, where), eps)
    roots, Q = _roots(jax.lax.stop_gradient(M))
    inverse = _product(Q * (roots.sum() / roots)[None], Q.T)  # Omega^-1
    return 0.5 * jnp.sum(inverse * M)

  return Penalty(beta, value, task)


def task_covariance(
  params: PyTree, where: str = 'kernel', names: Sequence[str] | None = None, *, eps: float = EPS
) -> Array:
  """Omega f[T, T] of `mtrl` at these parameters, the tasks in the order of `names` (sorted if None); its trace is 1."""
  roots, Q = _roots(_second_moment(task_matrix(params, where, names), eps))
  return _product(Q * (roots / roots.sum())[None], Q.T)


def task_correlation(
  params: PyTree, where: str = 'kernel', names: Sequence[str] | None = None, *, eps: float = EPS
) -> Array:
  """`task_covariance` scaled to a diagonal of ones: f[T, T] in [-1, 1].

  >>> params = {'shared': {}, 'tasks': {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': -2 * jnp.ones(2)}}}
  >>> task_correlation(params, eps=1e-12).round(2).tolist()
  [[1.0, -1.0], [-1.0, 1.0]]
  """
  covariance = task_covariance(params, where, names, eps=eps)
  scale = jnp.sqrt(jnp.diagonal(covariance))
  return covariance / (scale[:, None] * scale[None])


def adaptive_graph(
  beta: float | Callable, temperature: float, where: str = 'kernel', task: str | None = None
) -> Penalty:
  """A graph Laplacian penalty whose graph is learned: tasks that are close become neighbours, neighbours get closer.

  R = min over A of sum_ts A_ts d_ts + temperature sum_ts A_ts log(T A_ts), d_ts = 1/2 |w_t - w_s|^2, the rows of
  A f[T, T] on the simplex. The minimum is at A_ts = softmax over s of (-d_ts / temperature). The diagonal belongs to
  the row: a task that is far from all others keeps itself company and is left alone, so that R is bounded and
  unrelated tasks do not pull. A pair is pulled with weight A_ts + A_st.

  Args:
    beta: number or optax schedule.
    temperature: the distance d (it has its unit) at which two tasks begin to matter to each other: far below, a task is
      its own only neighbour, far above, all are everybody's neighbours.
    where: regular expression as in `mtrl`.
    task: the task with which the penalty comes and goes.

  Returns:
    A `Penalty`; 0 where all tasks are equal, at most beta temperature T log T.

  Raises:
    InputError: beta below 0 or not finite, a temperature that is not positive; while tracing, as `mtrl`.

  >>> params = {'shared': {}, 'tasks': {'a': {'kernel': jnp.zeros(2)}, 'b': {'kernel': jnp.array([1.0, 1.0])}}}
  >>> round(adaptive_graph(1.0, temperature=1.0).value(params).item(), 4)  # -2 log((1 + 1/e) / 2)
  0.7598
  >>> round(task_adjacency(params, temperature=1.0)[0, 1].item(), 4)
  0.2689

  References: Kalofolias, How to Learn a Graph from Smooth Signals (AISTATS 2016), https://arxiv.org/abs/1601.02513 (the
  smoothness term, and that an entropy term makes the Gaussian kernel its minimiser); Murugesan, Liu, Carbonell & Yang,
  Adaptive Smoothed Online Multi-Task Learning (NeurIPS 2016), https://proceedings.neurips.cc/paper/2016/hash/a869ccbcbd9568808b8497e28275c7c8-Abstract.html
  (rows of task relations on the simplex with an entropy, a task's own share among them, alternating updates). Departs
  from both: distances are those of parameters, not of signals or of losses on the other tasks' data; rows on the
  simplex, not free weights.
  """
  arrays.check_weight('adaptive_graph beta', beta)
  _check_positive('adaptive_graph temperature', temperature)

  def value(params):
    W = task_matrix(params, where)
    A = jax.lax.stop_gradient(_neighbours(W, temperature))
    entropy = jax.scipy.special.xlogy(A, A * len(A)).sum()
    return jnp.sum(A * _distances(W)) + temperature * entropy

  return Penalty(beta, value, task)


def task_adjacency(
  params: PyTree, temperature: float, where: str = 'kernel', names: Sequence[str] | None = None
) -> Array:
  """(A + A') / 2 f[T, T] of `adaptive_graph` without its diagonal; tasks in the order of `names` (sorted if None)."""
  A = _neighbours(task_matrix(params, where, names), temperature)
  return (A + A.T) / 2 * (1 - jnp.eye(len(A), dtype=A.dtype))


def task_graph(
  params: PyTree,
  temperature: float,
  where: str = 'kernel',
  names: Sequence[str] | None = None,
  *,
  threshold: float | None = None,
) -> TaskGraph:
  """`task_adjacency` as an undirected `TaskGraph`: edges of weights above the threshold, if None an equal share 1/T."""
  names = tuple(sorted(params['tasks']) if names is None else names)
  threshold = 1 / len(names) if threshold is None else threshold
  return TaskGraph.from_adjacency(task_adjacency(params, temperature, where, names), names, threshold)


def task_matrix(params: PyTree, where: str = 'kernel', names: Sequence[str] | None = None) -> Array:
  """W f[T, P]: the parameters of each task that match, one row per task in the order of `names` (sorted if None).

  Raises:
    InputError: unknown names, a pattern that matches nothing, parameters that differ between tasks.
  """
  if names is None:
    names = sorted(params['tasks'])
  arrays.check_names('names', names, params['tasks'], all_of=False)
  found = {name: _matching(params['tasks'][name], f'tasks/{name}/', where) for name in names}
  shapes = {name: {path: leaf.shape for path, leaf in leaves.items()} for name, leaves in found.items()}
  first = names[0]
  if not shapes[first]:
    labels = [f'tasks/{first}/{label}' for label in arrays.labelled(params['tasks'][first])]
    raise InputError(f'learned relations: where={where!r} matches no parameter of task {first!r}, found {labels}.')
  for name in names:
    if shapes[name] != shapes[first]:
      raise InputError(
        f'learned relations: where={where!r} finds {shapes[name]} in task {name!r} and {shapes[first]} in {first!r}, '
        'expected the same names and shapes.'
      )
  dtype = arrays.real_dtype()
  return jnp.stack([jnp.concatenate([found[n][p].ravel().astype(dtype) for p in shapes[first]]) for n in names])


def _matching(tree, prefix, where):
  chosen = arrays.pattern('learned relations where', where)
  return {label: leaf for label, leaf in arrays.labelled(tree).items() if chosen.search(prefix + label)}


def _second_moment(W, eps):
  M = _product(W, W.T)
  return M + eps * jnp.trace(M) * jnp.eye(len(M), dtype=M.dtype)


def _roots(M):
  """Square roots of the eigenvalues, and the eigenvectors, of a positive semidefinite matrix."""
  values, Q = jnp.linalg.eigh(M)
  return jnp.sqrt(jnp.maximum(values, jnp.finfo(values.dtype).tiny)), Q  # all alike where M is 0


def _neighbours(W, temperature):
  return jax.nn.softmax(-_distances(W) / temperature, axis=1)


def _distances(W):
  """1/2 |w_t - w_s|^2 f[T, T], of centred rows: products of long and close ones would cancel."""
  G = _second_moment(W - W.mean(axis=0, keepdims=True), 0.0)
  squares = jnp.diagonal(G)
  return (squares[:, None] + squares[None]) / 2 - G


def _product(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check_positive(argument, value):
  if isinstance(value, bool) or not np.isscalar(value) or not 0 < value < float('inf'):
    raise InputError(f'{argument}: found {value!r}, expected a positive number.')
