"""Parameters and floating-point operations of a model, in all and task by task."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from mtljax.analysis import tables
from mtljax.analysis.trace import CALLS, Op, Trace, inner, live, trace
from mtljax.base import Model, PyTree

# Operations that move numbers and calculate none.
MOVES = {'reshape', 'broadcast_in_dim', 'transpose', 'slice', 'dynamic_slice', 'dynamic_update_slice', 'concatenate'}
MOVES |= {'pad', 'gather', 'copy', 'copy_p', 'convert_element_type', 'squeeze', 'expand_dims', 'rev', 'select_n'}
MOVES |= {'stop_gradient', 'split', 'iota', 'reduce_precision', 'bitcast_convert_type', 'optimization_barrier', 'stack'}
MOVES |= {'scatter', 'tile', 'device_put', 'sharding_constraint', 'reshard', 'pvary'}


class Costs(NamedTuple):
  """What a model has and does; as text it is a table.

  Attributes:
    shared: numbers in the shared parameters.
    own: {task: numbers in its own parameters}.
    needed: {task: numbers in the parameters, shared and own, that its outputs depend on}.
    flops: {task: of the forward pass of one example for that task alone}.
    flops_together: of the forward pass of one example for all tasks.
    state: floating numbers in the model state (statistics, frozen weights).
  """

  shared: int
  own: dict[str, int]
  needed: dict[str, int]
  flops: dict[str, int]
  flops_together: int
  state: int

  @property
  def total(self) -> int:
    """Numbers in all parameters."""
    return self.shared + sum(self.own.values())

  def __str__(self):
    rows = [['shared', f'{self.shared:,}', '–', '–']]
    rows += [[t, f'{self.own[t]:,}', f'{self.needed[t]:,}', compact(self.flops[t])] for t in self.own]
    rows.append(['all tasks', f'{self.total:,}', f'{self.total:,}', compact(self.flops_together)])
    if self.state:
      rows.append(['model state', f'{self.state:,}', '–', '–'])
    return tables.aligned(['', 'parameters', 'needed alone', 'FLOPs'], rows)


def costs(model: Model, inputs: Mapping[str, PyTree]) -> Costs:
  """Counts parameters and the operations of a forward pass, by tracing: nothing is computed or compiled.

  FLOPs are those of one example, without training, as the library computes it on the present backend: 2 for every
  multiply-add of a product or a convolution (padding included), 1 for every number that another operation makes or
  reduces, exponentials too; moving numbers is free. A scan counts as often as it runs, a `while` loop once,
  of branches the most expensive (the last, where an architecture calls parts in them).

  Args:
    model: of any architecture.
    inputs: {task: inputs f[B, ...]}, the same arrays for all tasks if they read one input.

  Raises:
    InputError: as `trace`.

  >>> import flax.linen as nn, jax.numpy as jnp
  >>> from mtljax import sharing
  >>> model = sharing.hard(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  >>> x = jnp.ones((4, 3))
  >>> print(costs(model, {'digit': x, 'parity': x}))
             parameters  needed alone  FLOPs
  ---------  ----------  ------------  -----
  shared             32             –      –
  digit              90           122    226
  parity             18            50     90
  all tasks         140           140    260
  """
  return count(trace(model, inputs))


def count(traced: Trace) -> Costs:
  """`costs` of a model that is traced already."""
  params = {number: leaf for number, leaf in traced.leaves.items() if leaf.kind == 'params'}
  alone = {task: live(traced, [task]) for task in traced.outputs}
  total = lambda ops: sum(map(work, ops))
  return Costs(
    shared=sum(leaf.size for leaf in params.values() if leaf.path[0] == 'shared'),
    own={t: sum(leaf.size for leaf in params.values() if leaf.path[:2] == ('tasks', t)) for t in alone},
    needed={t: sum(leaf.size for number, leaf in params.items() if number in read) for t, (_, read) in alone.items()},
    flops={task: total(ops) for task, (ops, _) in alone.items()},
    flops_together=total(live(traced, list(alone))[0]),
    state=sum(leaf.size for leaf in traced.leaves.values() if leaf.kind == 'state' and leaf.floating),
  )


def compact(number: int, digits: int = 3) -> str:
  """A count with so many significant digits, and all before the point.

  >>> compact(964, 2), compact(4640, 2), compact(113_552, 2), compact(4640), compact(999_999), compact(25_600_000)
  ('964', '4.6k', '114k', '4.64k', '1.00M', '25.6M')
  """
  size = 0
  while size < 4 and float(f'{number / 1000**size:.3g}') >= 1000:
    size += 1
  scaled = number / 1000**size
  places = max(digits - len(str(int(float(f'{scaled:.{digits}g}')))), 0) if size else 0
  return f'{scaled:.{places}f}{" kMGT"[size].strip()}'


def work(op: Op) -> int:
  """FLOPs of an operation of a trace, as often as it runs."""
  return op.times * flops(op.equation)


def flops(equation) -> int:
  """Of one equation of a jaxpr, with what is inside."""
  name = equation.primitive.name
  bodies = [sum(flops(inside) for inside in body.eqns) for body in inner(equation)]
  if name == 'scan':
    return equation.params['length'] * sum(bodies)
  if name == 'cond':
    return max(bodies)
  if bodies and (name in CALLS or name == 'while'):
    return bodies[0] if name in CALLS else sum(bodies)
  made = sum(math.prod(var.aval.shape) for var in equation.outvars if _counts(var))
  if name in MOVES or not made:
    return 0
  read = [var.aval.shape for var in equation.invars if hasattr(var.aval, 'shape')]
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * made * math.prod(read[0][axis] for axis in contracted)
  if name == 'conv_general_dilated':
    channels = read[1][equation.params['dimension_numbers'].rhs_spec[0]]
    return 2 * made * math.prod(read[1]) // channels
  if name.startswith('scatter'):  # of the updates
    return math.prod(read[2])
  if name.startswith('reduce_window'):
    return made * math.prod(equation.params['window_dimensions'])
  if name.startswith(('reduce_', 'cum', 'arg', 'sort')):
    return math.prod(read[0])
  return made


def _counts(var) -> bool:
  dtype = getattr(var.aval, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
