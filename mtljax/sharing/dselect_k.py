"""DSelect-k: a differentiable gate that selects at most k experts per task."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model, Penalty
from mtljax.sharing import _gates
from mtljax.sharing.modules import Module, by_task, describe

EPSILON = 1e-6  # inside the logarithm of the entropy, whose derivative is infinite at 0


def dselect_k(
  experts: Any,
  heads: Mapping[str, Any],
  k: int = 2,
  num_experts: int | None = None,
  gamma: float = 1.0,
  entropy: float | Callable = 0.0,
  gates: Any = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """z_t = sum_e w_te f_e(x) with weights of which, once the gate has settled, at most k are not 0.

      S(u) = -2 u^3 / gamma^3 + 3 u / (2 gamma) + 1/2 for |u| <= gamma/2, 0 below, 1 above
      r_ie = prod_b S(z_ib) where bit b of e is 1, 1 - S(z_ib) where it is 0          selector i = 1..k
      w_e  = sum_i softmax(a)_i r_ie
      R_t  = -sum_i sum_e r_ie log r_ie                                               added to the objective

  A bit whose |z_ib| has passed gamma/2 is settled: its gradient is 0 by design. Without the entropy term nothing
  pushes a gate there.

  Args:
    experts: a module, copied `num_experts` times with a key for each, or a list of modules, as in `mmoe`.
    heads: {task: module}, mixture -> outputs; a head that names a keyword `inputs` gets the task's inputs too.
    k: how many experts a task may select, 1 to the number of experts.
    num_experts: copies of one module, 4 by default; a list has its length.
    gamma: width of the smooth step; the smaller, the sooner a bit settles.
    entropy: beta of the penalty R_t, a number or an optax schedule. Where gates read inputs R_t is its mean over the
      batch, and gates are without state (BatchNorm) and, behind stems, 'static'.
    gates: None, z and a are linear in the task's inputs, see `mmoe`; 'static', they are parameters of the task, the
      same for all examples; a module of inputs -> f[B, k m + k] (z row by row, then a; without a if k = 1) with m =
      ceil(log2 E), of which every task gets its own; or {task: module}.
    stems: {task: module}, for inputs of different modality, as in `hard`; gates read what the stems make.

  Returns:
    A `Model` with `params = {'shared': {'experts'}, 'tasks': {task: {'gate', 'head'}}}` and, if `entropy` is not 0, one
    penalty per task, which acts on that task's gate and is absent when the task is.

  Raises:
    InputError: as `mmoe`; k out of range, gamma not positive, a negative entropy, an entropy of gates that have state
      or read what stems make.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> heads = {'digit': nn.Dense(10), 'parity': nn.Dense(2)}
  >>> model = dselect_k(nn.Dense(8), heads, k=2, num_experts=8, entropy=0.1, gates='static')
  >>> x = jnp.ones((4, 5))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['tasks']['parity']['gate'])
  {'a': (2,), 'z': (2, 3)}
  >>> [penalty.task for penalty in model.penalties]
  ['digit', 'parity']

  Reference: Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong & Chi, DSelect-k: Differentiable Selection in
  the Mixture of Experts with Applications to Multi-Task Learning (NeurIPS 2021), https://arxiv.org/abs/2106.03760; the
  smooth step: Hazimeh, Ponomareva, Mol, Tan & Mazumder, The Tree Ensemble Layer (ICML 2020),
  https://arxiv.org/abs/2002.07772. Departures: where E is no power of two the paper penalises selectors whose code
  stands for no expert; here code c stands for expert c mod E, so that weights always sum to one.
  """
  shared = _gates.make_experts(experts, num_experts, 'experts', 'num_experts', default=4)
  heads = by_task(heads, 'heads')
  if isinstance(k, bool) or not isinstance(k, numbers.Integral) or not 1 <= k <= shared.count:
    raise InputError(f'k: found {k!r}, expected a whole number from 1 to the number of experts, {shared.count}.')
  gamma = _gates.positive('gamma', gamma)
  arrays.check_weight('entropy', entropy)
  static = isinstance(gates, str)
  if static and gates != 'static':
    raise InputError(f"gates: found {gates!r}, expected None, 'static', a module or {{task: module}}.")
  regularised = callable(entropy) or entropy > 0
  if regularised and not static and stems is not None:
    raise InputError(f"entropy: found {entropy!r} with gates that read what stems make, expected gates='static' or 0.")
  count = shared.count
  if static:
    made = dict.fromkeys(heads, _static_gate(count, k, gamma))
    penalties = tuple(
      Penalty(entropy, _static_entropy(task, count, gamma, stems is not None), task=task) for task in heads
    )
  else:
    given = _gates.gate_per_task(gates, heads)
    logits = {task: _logits(given[task], count, k, gamma, f'gates[{task!r}]') for task in heads}
    made = {task: _gate(logits[task], count, k, gamma) for task in heads}
    penalties = tuple(
      Penalty(entropy, _mean_entropy(task, logits[task], count, k, gamma), task=task, on='outputs') for task in heads
    )
  penalties = penalties if regularised and count > 1 else ()
  return _gates.one_level(shared, None, heads, made, 'experts', stems, penalties)


def smooth_step(t: Array, gamma: float) -> Array:
  """S_gamma: 0 up to -gamma/2, 1 from gamma/2 on, and the cubic between them whose derivative is continuous.

  >>> print(smooth_step(jnp.array([-2.0, 0.0, 1.0, 5.0]), 4.0))
  [0.      0.5     0.84375 1.     ]
  """
  u = jnp.clip(t / gamma, -0.5, 0.5)  # the cubic is flat at both ends, so the derivative is that of S
  return 0.5 + 1.5 * u - 2 * u**3


def selectors(z: Array, count: int, gamma: float) -> Array:
  """Bits z f[..., k, m] -> r f[..., k, count]: the distribution of every selector over the experts."""
  s = smooth_step(z, gamma)
  bits = jnp.stack([1 - s, s], axis=-1)
  m = z.shape[-1]
  codes = (np.arange(2**m)[:, None] >> np.arange(m)[None, ::-1]) & 1  # the highest bit first
  r = math.prod([bits[..., b, codes[:, b]] for b in range(m)])
  return r[..., :count].at[..., : 2**m - count].add(r[..., count:])


def mixture_weights(z: Array, a: Array | None, count: int, gamma: float) -> Array:
  """z f[..., k, m] and a f[..., k] (None if k = 1) -> w f[..., count], which sum to one."""
  r = selectors(z, count, gamma)
  return r[..., 0, :] if a is None else jnp.einsum('...k,...ke->...e', jax.nn.softmax(a, axis=-1), r)


def _static_entropy(task, count, gamma, stems):
  def value(params):
    own = params['tasks'][task]
    return _entropy(selectors((own['head'] if stems else own)['gate']['z'], count, gamma))

  return value


def _mean_entropy(task, logits, count, k, gamma):
  """Of gates that read inputs, in evaluation mode: a penalty has no key."""

  def value(params, outputs, *, inputs):
    own, x = params['tasks'][task]['gate'], inputs[task]
    state = jax.eval_shape(logits.init, jax.eval_shape(lambda: jax.random.key(0)), x)[1]
    if jax.tree.leaves(state):
      raise InputError(f'dselect_k: gates[{task!r}] has state {describe(state)}, expected none with an entropy.')
    y, _ = logits.apply(own, state, x, train=False, key=None)
    return _entropy(selectors(_codes(y, count, k), count, gamma)) / y.shape[0]

  return value


def _entropy(r: Array) -> Array:
  return -jnp.sum(r * jnp.log(r + EPSILON))


def _codes(y: Array, count: int, k: int) -> Array:
  """The part of a gate's outputs that codes the selectors: f[B, k, m]."""
  m = _bits(count)
  return y[:, : k * m].reshape(-1, k, m)


def _bits(count: int) -> int:
  return (count - 1).bit_length()


def _start(gamma: float):
  """Close to the middle of the step, where its derivative is largest, and not in it, where the entropy's is 0."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -gamma / 100, gamma / 100)


def _static_gate(count: int, k: int, gamma: float) -> Module:
  if count == 1:
    return _gates.no_gate()

  def init(key, x):
    params = {'z': _start(gamma)(arrays.name_key(key, 'z'), (k, _bits(count)))}
    if k > 1:  # the softmax of one number is 1
      params['a'] = _start(gamma)(arrays.name_key(key, 'a'), (k,))
    return params, {}

  def apply(params, state, x, *, train, key):
    return mixture_weights(params['z'], params.get('a'), count, gamma)[None], state

  return Module(init, apply)


def _logits(gate, count: int, k: int, gamma: float, name: str) -> Module:
  width = k * _bits(count) + (k if k > 1 else 0)
  return _gates.logits_of(gate, width, name, nn.Dense(width, kernel_init=_start(gamma), bias_init=_start(gamma)))


def _gate(logits: Module, count: int, k: int, gamma: float) -> Module:
  if count == 1:
    return _gates.no_gate()

  def apply(params, state, x, *, train, key):
    y, state = logits.apply(params, state, x, train=train, key=key)
    a = y[:, k * _bits(count) :] if k > 1 else None
    return mixture_weights(_codes(y, count, k), a, count, gamma), state

  return Module(logits.init, apply)
