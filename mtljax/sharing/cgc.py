"""Customized gate control: shared experts beside experts of every task's own."""

from collections.abc import Mapping
from typing import Any

from mtljax.base import Model
from mtljax.sharing import _gates
from mtljax.sharing.modules import by_task


def cgc(
  shared: Any,
  own: Any,
  heads: Mapping[str, Any],
  num_shared: int | None = None,
  num_own: int | None = None,
  gates: Any = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """w_t = softmax(W_t x + b_t), z_t = sum_e w_te [o_t1(x), ..., o_tm(x), s_1(x), ..., s_n(x)]_e, y_t = h_t(z_t).

  No task reads another's own experts: they are its parameters, and only the shared experts are the balancer's matter.

  Args:
    shared: a module, copied `num_shared` times with a key for each, or a list of different modules.
    own: the same for the experts of a task: a module or list that every task gets its own copies of, or {task: module
      or list}; None, no own experts, which is MMoE. All experts have outputs of equal shapes.
    heads: {task: module}, mixture -> outputs; a head that names a keyword `inputs` gets the task's inputs too.
    num_shared: copies of one shared module, 2 by default; a list has its length.
    num_own: copies of one own module per task, 2 by default; a list has its length.
    gates: None, linear in the task's inputs, see `mmoe`; a module of inputs -> logits f[B, m + n], own experts first,
      of which every task gets its own; or {task: module}.
    stems: {task: module}, for inputs of different modality, as in `hard`; gates and own experts read what they make.

  Returns:
    A `Model` with `params = {'shared': {'experts'}, 'tasks': {task: {'experts', 'gate', 'head'}}}`, experts stacked as
    in `mmoe`. Features are those of the shared experts, f[B, n, ...]; own experts run in the heads, on the inputs.

  Raises:
    InputError: as `mmoe`; experts of other tasks than the heads.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = cgc(nn.Dense(8), nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, num_shared=3, num_own=1)
  >>> x = jnp.ones((4, 5))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['tasks']['parity']['experts'])
  {'bias': (1, 8), 'kernel': (1, 5, 8)}
  >>> params['tasks']['parity']['gate']['kernel'].shape
  (5, 4)

  Reference: Tang, Liu, Zhao & Gong, Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for
  Personalized Recommendations (RecSys 2020), https://doi.org/10.1145/3383313.3412236, section 4.1. Departure: the gate
  has a bias.
  """
  heads = by_task(heads, 'heads')
  common = _gates.make_experts(shared, num_shared, 'shared', 'num_shared', default=2)
  mine = None if own is None else _gates.make_own(own, heads, num_own, 'own', 'num_own', default=2)
  given = _gates.gate_per_task(gates, heads)
  count = {task: common.count + (mine[task].count if mine else 0) for task in heads}
  made = {task: _gates.softmax_gate(given[task], count[task], f'gates[{task!r}]') for task in heads}
  return _gates.one_level(common, mine, heads, made, 'shared', stems)
