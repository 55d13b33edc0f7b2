"""Progressive layered extraction: levels of shared and own experts, with a shared gate and stream between them."""

from collections.abc import Callable, Mapping
from typing import Any

from mtljax.base import InputError, Model
from mtljax.sharing import _gates
from mtljax.sharing.cgc import cgc
from mtljax.sharing.modules import by_task


def ple(
  shared: Any,
  own: Any,
  heads: Mapping[str, Any],
  num_shared: int | None = None,
  num_own: int | None = None,
  gates: Callable[[int], Any] | None = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """Levels j = 1..L of shared experts s and own experts o_t, on streams x_s and x_t that start at the inputs.

      x_t <- sum_e softmax(W_tj x_t)_e [o_tj(x_t), s_j(x_s)]_e      every task's gate, over its own and the shared ones
      x_s <- sum_e softmax(W_sj x_s)_e [o_1j(x_1), ..., o_Tj(x_T), s_j(x_s)]_e     the shared gate, over all, if j < L
      y_t = h_t(x_t)

  Where parameters live follows from who reaches them. Through the shared gate of a level below the last, every task's
  loss reaches the own experts of all tasks there, so those are in `params['shared']`, beside shared experts and shared
  gates. A task's gate is reached by others only through its own experts of the next level: gates of the levels 1..L-2
  are shared, too. In `params['tasks'][t]` are the gates of the last two levels, the own experts of the last, and the
  head. A model of one level is `cgc`.

  Args:
    shared: a list with the shared experts of every level, each a module, copied `num_shared` times, or a list of
      different modules; one module is one level. A level's experts take what the level below mixes.
    own: a list of the same length with the experts of a task: a module or list, of which every task gets its own
      copies, or {task: module or list}. In a level all outputs have equal shapes.
    heads: {task: module}, mixture -> outputs; a head that names a keyword `inputs` gets the task's inputs too.
    num_shared, num_own: copies of one module, 2 by default.
    gates: a function `number of experts -> module` of a stream -> logits; None, linear in the stream, as in
      `mmoe`. The shared gates see the inputs of all tasks, so different lengths take sequences {'x', 'mask'}.
    stems: {task: module}, for inputs of different modality, as in `hard`; the streams start at what they make.

  Returns:
    A `Model` with `params['shared'] = {'level1': {'shared', 'own': {task}, 'gate', 'gates': {task}}, ...}` and
    `params['tasks'][t] = {'level<L-1>': {'gate'}, 'level<L>': {'own', 'gate'}, 'head'}`, for L > 1. The features have
    parts that only one task reads, so with L > 1 the Jacobian is taken `at='params'`.

  Raises:
    InputError: as `cgc`; no level, lists of different length, a level without own experts.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> heads = {'digit': nn.Dense(10), 'parity': nn.Dense(2)}
  >>> model = ple([nn.Dense(8), nn.Dense(6)], [nn.Dense(8), nn.Dense(6)], heads, num_shared=3, num_own=1)
  >>> x = jnp.ones((4, 5))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> params['shared']['level1']['gate']['kernel'].shape  # over 1 + 1 own and 3 shared experts
  (5, 5)
  >>> jax.tree.map(jnp.shape, params['tasks']['parity']['level2']['gate'])
  {'bias': (4,), 'kernel': (8, 4)}

  Reference: Tang, Liu, Zhao & Gong, Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for
  Personalized Recommendations (RecSys 2020), https://doi.org/10.1145/3383313.3412236, section 4.2. Departures: gates
  have a bias. Own experts in a shared gate are in the alphabetical order of their tasks.
  """
  heads = by_task(heads, 'heads')
  names = tuple(sorted(heads))
  shared, own = (list(x) if _gates.is_list(x) else [x] for x in (shared, own))
  if len(shared) != len(own) or not shared:
    raise InputError(f'ple: found {len(shared)} levels of shared and {len(own)} of own experts, expected equally many.')
  if any(level is None for level in own):
    raise InputError('own: found None, expected own experts at every level (mmoe has none).')
  if gates is not None and (not callable(gates) or hasattr(gates, 'apply')):
    found = ' '.join(repr(gates).split())[:80]  # linen modules print over many lines
    raise InputError(f'gates: found {found}, expected a function number of experts -> module, or None.')
  make_gate = lambda count: None if gates is None else gates(count)
  levels = len(shared)
  common = [_gates.make_experts(x, num_shared, f'shared[{j}]', 'num_shared', default=2) for j, x in enumerate(shared)]
  mine = [_gates.make_own(x, names, num_own, f'own[{j}]', 'num_own', default=2) for j, x in enumerate(own)]
  count = [{t: common[j].count + mine[j][t].count for t in names} for j in range(levels)]
  if levels == 1:
    return cgc(shared[0], own[0], heads, num_shared, num_own, {t: make_gate(count[0][t]) for t in names}, stems)

  def gate(n):
    return _gates.softmax_gate(make_gate(n), n, 'gates')

  task_gates = [{t: gate(count[j][t]) for t in names} for j in range(levels)]
  shared_gates = [gate(common[j].count + sum(mine[j][t].count for t in names)) for j in range(levels - 1)]

  def trunk_walk(call, x, tasks):
    stream, streams = x, dict.fromkeys(names, x)
    for j in range(levels - 1):
      level = f'level{j + 1}'
      s = call((level, 'shared'), common[j], stream)
      o = {t: call((level, 'own', t), mine[j][t], streams[t]) for t in names}
      weights = call((level, 'gate'), shared_gates[j], stream)
      stream = _gates.mix(weights, _gates.join({**{f'own[{j}] of {t!r}': o[t] for t in names}, f'shared[{j}]': s}))
      if j < levels - 2:
        weights = {t: call((level, 'gates', t), task_gates[j][t], streams[t]) for t in names}
        streams = {t: _gates.mix(weights[t], _gates.join({'own': o[t], 'shared': s})) for t in names}
    features = {
      'last': call((f'level{levels}', 'shared'), common[-1], stream),
      'shared': s,
      'own': {t: o[t] for t in tasks},
    }
    # With two levels the streams are still the inputs, which heads are given anyway.
    return features if levels == 2 else {**features, 'streams': {t: streams[t] for t in tasks}}

  def head_walk(call, task, features, x):
    stream = x if levels == 2 else features['streams'][task]
    weights = call((f'level{levels - 1}', 'gate'), task_gates[-2][task], stream)
    stream = _gates.mix(weights, _gates.join({'own': features['own'][task], 'shared': features['shared']}))
    o = call((f'level{levels}', 'own'), mine[-1][task], stream)
    weights = call((f'level{levels}', 'gate'), task_gates[-1][task], stream)
    return _gates.mix(
      weights, _gates.join({f'own[{levels - 1}] of {task!r}': o, f'shared[{levels - 1}]': features['last']})
    )

  return _gates.make_model(heads, trunk_walk, head_walk, stems)
