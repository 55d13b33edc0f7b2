"""beta_t R_t and its gradients, outside every balancer."""

import functools
import inspect

import jax
import jax.numpy as jnp

from mtljax import arrays, inputs
from mtljax.base import Array, InputError, Penalty
from mtljax.gradients import _trees


def output_penalties(penalties, names, present, step, params, forward, batch):
  """Sum of beta_t R_t(params, outputs), its gradient with respect to the parameters, and its row."""
  there = [name for name in names if inputs.has_task(batch, name)]
  penalties = [p for p in penalties if p.on == 'outputs' and (p.task is None or p.task in there)]
  if not penalties:
    return jnp.zeros((), arrays.real_dtype()), None, None
  floats, others, merge = arrays.split_floats(forward.outputs)
  value, grads, cotangents = jnp.zeros((), arrays.real_dtype()), *jax.tree.map(jnp.zeros_like, (params, floats))
  for penalty in penalties:
    weight = penalty_weight(penalty, names, present, step) / arrays.psum(1)  # the mean over devices
    regulariser = _value(penalty, there, batch)
    try:
      scaled = scaled_penalty(lambda p, z, r=regulariser: r(p, merge(z, others)), weight, params, floats)
    except KeyError as error:
      if len(there) == len(names) or error.args[0] not in names:
        raise
      raise InputError(
        f'batch: found the tasks {there}, expected {error.args[0]!r} too: a penalty reads its outputs.'
      ) from error
    value, grads, cotangents = _trees.tree_sum([(value, grads, cotangents), scaled])
  by_task = merge(cotangents, [None] * len(others))
  rows = []
  for t, name in enumerate(names):
    if name not in there:
      continue
    mine = [c for c in jax.tree.leaves(by_task[name])]
    head, row = arrays.select(present[t], *_trees.with_zeros(forward.pull[name](mine)))
    grads['tasks'][name] = _trees.tree_sum([grads['tasks'][name], head])
    rows.append(row)
  return arrays.psum(value), grads, _trees.tree_sum(rows)


def _value(penalty, names, batch):
  """`(params, outputs) -> scalar` of a penalty on outputs, given the inputs of the batch if it names them."""
  if 'inputs' not in inspect.signature(penalty.value).parameters:
    return penalty.value
  return functools.partial(penalty.value, inputs={name: inputs.task_inputs(batch, name)[0] for name in names})


def scaled_penalty(function, weight, *primals):
  """weight * R and its gradients; exactly 0 where the weight is, even if R or its gradient is not finite there."""
  value, grads = jax.value_and_grad(function, argnums=tuple(range(len(primals))))(*primals)
  return jax.tree.map(lambda x: jnp.where(weight != 0, weight * x, 0).astype(x.dtype), (value, *grads))


def penalty_weight(penalty: Penalty, names, present: Array, step: Array) -> Array:
  """beta_t at a step; 0 while the penalty's task is absent."""
  beta = jnp.asarray(penalty.weight(step) if callable(penalty.weight) else penalty.weight, arrays.real_dtype())
  return beta if penalty.task is None else jnp.where(present[names.index(penalty.task)], beta, 0)
