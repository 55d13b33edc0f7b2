"""Multi-gate mixture of experts: shared experts, and a gate per task that mixes them."""

from collections.abc import Mapping
from typing import Any

from mtljax.base import Model
from mtljax.sharing import _gates
from mtljax.sharing.modules import by_task


def mmoe(
  experts: Any,
  heads: Mapping[str, Any],
  num_experts: int | None = None,
  gates: Any = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """w_t = softmax(W_t x + b_t), z_t = sum_e w_te f_e(x), y_t = h_t(z_t).

  Every expert runs once, whatever the number of tasks. A gate is read by one task only, so it is no part of what the
  balancer sees.

  Args:
    experts: a module (any trunk; features of any pytree), copied `num_experts` times with a key for each, or a list of
      different modules whose outputs have equal shapes. Floating features are mixed, others are the first expert's.
    heads: {task: module}, mixture -> outputs; a head that names a keyword `inputs` gets the task's inputs too.
    num_experts: copies of one module, 4 by default; a list has its length.
    gates: None, linear in the task's inputs, flattened, or in the mean over the places of a sequence {'x': f[B, N, C],
      'mask': bool[B, N]}, whose lengths may differ; a module of inputs -> logits f[B, E], of which every task gets its
      own; or {task: module}. Inputs that are no numbers (tokens) need a gate of their own. One expert has no gate.
    stems: {task: module}, for inputs of different modality, as in `hard`; gates read what the stems make.

  Returns:
    A `Model` with `params = {'shared': {'experts': leaves f[E, ...]}, 'tasks': {task: {'gate', 'head'}}}`; different
    experts are `{'experts': {'0': ..., '1': ...}}`. Features are f[B, E, ...] and take `at='features'`.

  Raises:
    InputError: a part that is no module, fewer than one expert, a list of another length than `num_experts`, an nnx
      instance to be copied, no heads, gates for other tasks; while initialising, experts of different output shapes,
      a gate of another width, a part that cannot take its input.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = mmoe(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, num_experts=3)
  >>> x = jnp.ones((4, 5))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['shared'])
  {'experts': {'bias': (3, 8), 'kernel': (3, 5, 8)}}
  >>> jax.tree.map(jnp.shape, params['tasks']['parity'])
  {'gate': {'bias': (3,), 'kernel': (5, 3)}, 'head': {'bias': (2,), 'kernel': (8, 2)}}

  Reference: Ma, Zhao, Yi, Chen, Hong & Chi, Modeling Task Relationships in Multi-task Learning with Multi-gate
  Mixture-of-Experts (KDD 2018), https://doi.org/10.1145/3219819.3220007. Departures: the gate has a bias; experts may
  be of different kinds.
  """
  shared = _gates.make_experts(experts, num_experts, 'experts', 'num_experts', default=4)
  heads = by_task(heads, 'heads')
  given = _gates.gate_per_task(gates, heads)
  made = {task: _gates.softmax_gate(given[task], shared.count, f'gates[{task!r}]') for task in heads}
  return _gates.one_level(shared, None, heads, made, 'experts', stems)
