"""Regularisers R(f): `Penalty(beta, value)`, added to the objective outside the balancer."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import InputError, Penalty, PyTree


def l2(beta: float | Callable, where: str = '.*', task: str | None = None) -> Penalty:
  """R = 1/2 sum theta^2, whose gradient is theta: beta is a weight decay inside the optimiser's gradient.

  Args:
    beta: number or optax schedule.
    where: regular expression searched for in a parameter's path ('shared/Dense_0/kernel', 'tasks/digit/bias').
    task: the task with which the penalty comes and goes.

  Returns:
    A `Penalty`.

  >>> import jax.numpy as jnp
  >>> l2(0.1, where='shared').value({'shared': jnp.array([3.0, 4.0]), 'tasks': {}}).item()
  12.5
  """
  return Penalty(beta, lambda params: 0.5 * _total(lambda p: jnp.sum(p * p), params, where), task)


def l1(beta: float | Callable, where: str = '.*', task: str | None = None) -> Penalty:
  """R = sum |theta|; arguments as in `l2`."""
  return Penalty(beta, lambda params: _total(lambda p: jnp.sum(jnp.abs(p)), params, where), task)


def l2_sp(beta: float | Callable, start: PyTree, where: str = '.*', task: str | None = None) -> Penalty:
  """R = 1/2 sum (theta - theta_0)^2, L2 to a starting point (Li et al. 2018, https://arxiv.org/abs/1802.01483).

  Args:
    beta: number or optax schedule.
    start: theta_0, parameters with the same paths; those it has not are an error.
    where: regular expression searched for in a parameter's path.
    task: the task with which the penalty comes and goes.

  Returns:
    A `Penalty`.
  """
  # copies: the parameters of a state that is donated to the step would be gone at the next trace
  origin = {arrays.path_label(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(start)}

  def value(params):
    total = jnp.zeros((), arrays.real_dtype())
    for label, leaf in _matching(params, where):
      if label not in origin:
        raise InputError(f'l2_sp start: no parameter {label!r}, found {sorted(origin)}.')
      if origin[label].shape != leaf.shape:
        raise InputError(f'l2_sp start: {label!r} has shape {origin[label].shape}, expected {leaf.shape}.')
      total += 0.5 * jnp.sum((leaf - origin[label]) ** 2)
    return total

  return Penalty(beta, value, task)


def _matching(params, where):
  leaves = [(arrays.path_label(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
  found = [(label, leaf) for label, leaf in leaves if re.search(where, label)]
  if not found:
    raise InputError(f'penalty: where={where!r} matches no parameter, found {[label for label, _ in leaves]}.')
  return found


def _total(function, params, where):
  return sum((function(leaf) for _, leaf in _matching(params, where)), jnp.zeros((), arrays.real_dtype()))
