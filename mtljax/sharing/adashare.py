"""AdaShare: one net of blocks, and for every task a learned policy of which blocks it runs and which it skips."""

import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model, Penalty, PyTree
from mtljax.sharing import _clock, scopes
from mtljax.sharing.hard import hard as hard_sharing
from mtljax.sharing.modules import Module, by_task, describe, explained
from mtljax.sharing.stages import array_of, as_stages, check_flag, no_features


def adashare(
  stages: Any,
  heads: Mapping[str, Any],
  *,
  skippable: Sequence[str | int] | None = None,
  start: float = 0.5,
  temperature: float | Callable | None = None,
  warmup: int = 0,
  curriculum: int = 0,
  hard: bool = False,
  sparsity: float | Callable = 0.05,
  sharing: float | Callable = 0.05,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """x_l = v_tl f_l(x_{l-1}) + (1 - v_tl) x_{l-1}: task t runs block l with probability alpha_tl = sigmoid(u_tl).

      v_tl = sigmoid((u_tl + g) / tau(n)), g logistic noise               n training passes of the task so far
      v_tl = 1                                                            while n < warmup + curriculum (L - l)
      v_tl = 1 where alpha_tl >= 1/2, else 0                              in evaluation
      R    = sparsity 1/L sum_tl -log(1 - alpha_tl) + sharing sum_{s<t} sum_l (L + 1 - l)/L |alpha_sl - alpha_tl|

  v is the first half of a two-way Gumbel-softmax, whose two logits differ by u. Any task may run any block, so the net
  is shared, with the parameters of `hard` (`shared/<stage>/...`). A policy is reached by its task's loss alone:
  `tasks/<task>/policy/<stage>` f[]. Where paths have not parted yet, up to the first block that may be skipped, stages
  run once, in the trunk; it hands on the parameters of the others, which every task runs for itself. The state of those
  (BatchNorm's averages) is the task's too, as activations differ with the path.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`; `ResNet.blocks` is the trunk of the
      paper.
    heads: {task: module}.
    skippable: the L blocks, stages whose outputs have the shape of their inputs; None is all that have.
    start: alpha at the start.
    temperature: tau, a number or an optax schedule; None is max(5 / sqrt(n + 1), 0.5).
    warmup: steps in which all tasks run all blocks.
    curriculum: steps after which the block before joins those that may be skipped, from the last block on; 0 is all at
      once.
    hard: a block is run or skipped in training too, straight-through; False mixes the two.
    sparsity: weight of the penalty on running blocks, a number or an optax schedule; it follows warm-up and curriculum.
    sharing: weight of the penalty on policies that differ, of early blocks most.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model`, whose policies `policies` reads. Its features are no vectors of examples: use `at='params'`. A block that
    is skipped is still computed and weighed with 0; what a task could save is in its policy. Noise is drawn from the
    key of the pass: on several devices anew on each.

  Raises:
    InputError: a trunk without stages, an option out of range; while initialising, a block that changes the shape, and
      stages that all do.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> model = adashare(trunks.MLP((8, 8, 8)), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, start=0.7)
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> {block: round(p, 3) for block, p in policies(params)['parity'].items()}
  {'layer_1': 0.7, 'layer_2': 0.7}

  Reference: Sun, Panda, Feris & Saenko, AdaShare: Learning What To Share For Efficient Deep Multi-Task Learning
  (NeurIPS 2020), https://arxiv.org/abs/1911.12423, and the authors' code, https://github.com/sunxm2357/AdaShare.
  Departs from them: weights and policies are trained on the same batches, not in turns on two parts of the data; the
  sparsity term is that of the code, where the paper's, sum log alpha, has no lower bound; the sharing term is on alpha
  and weighs early blocks most, as in the paper, where the code's is on logits and weighs late ones most; the last block
  counts 1/L in it, not 0; BatchNorm's averages are a task's own; evaluation takes the likelier action, not a sample;
  the temperature's schedule is our choice; the net is not trained anew under the policy that was found.
  """
  heads = by_task(heads, 'heads')
  try:
    found = as_stages(stages, skippable)  # the cuts of this architecture are its blocks
  except InputError as error:
    raise InputError(str(error).replace('cuts:', 'adashare skippable:', 1)) from None
  if isinstance(start, bool) or not isinstance(start, numbers.Real) or not 0 < start < 1:
    raise InputError(f'adashare start: found {start!r}, expected a probability between 0 and 1.')
  check_flag('adashare hard', hard)
  tau = _clock.temperature('temperature', temperature, 5.0)
  _clock.check_steps('warmup', warmup)
  _clock.check_steps('curriculum', curriculum)
  arrays.check_weight('adashare sparsity', sparsity)
  arrays.check_weight('adashare sharing', sharing)

  def is_block(stage, x, y):
    if skippable is None:
      return _same_shape(x, y)
    if stage in found.cuts and not _same_shape(x, y):
      raise InputError(
        f'adashare skippable: found {stage!r}, which makes {describe(y)} of {describe(x)}, expected stages that keep '
        'the shape.'
      )
    return stage in found.cuts

  def run_or_skip(u, n, later, *, train, key):
    """v f[]; `later` is how many blocks come after."""
    if train:
      soft = jax.nn.sigmoid((u + jax.random.logistic(key, (), u.dtype)) / tau(n))
    else:
      soft = jax.nn.sigmoid(u)
    v = soft
    if hard or not train:
      v = (soft >= 0.5).astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))
    return jnp.where(n < warmup + curriculum * later, 1.0, v)

  own = {task: _path(task, head, found.modules, is_block, start, run_or_skip) for task, head in heads.items()}
  model = hard_sharing(_net(found.modules, is_block), own, stems)
  return model._replace(penalties=_penalties(tuple(found.modules), sparsity, sharing, warmup, curriculum))


def policies(params: PyTree) -> dict[str, dict[str, float]]:
  """{task: {block: probability that the task runs it}} of the parameters of an `adashare` model.

  Raises:
    InputError: parameters of another architecture.
  """
  if not isinstance(params, Mapping) or not isinstance(params.get('tasks'), Mapping):
    raise InputError(f'policies params: found {describe(params)}, expected the parameters of `adashare`.')
  logits = {task: _policy(part) for task, part in sorted(params['tasks'].items())}
  return {task: {stage: float(jax.nn.sigmoid(u)) for stage, u in us.items()} for task, us in logits.items()}


def sparsity_term(u: Array) -> Array:
  """sum_l -log(1 - sigmoid(u_l)) of logits f[L].

  >>> jnp.exp(sparsity_term(jnp.log(jnp.array([1.0, 3.0])))).round(4).item()
  8.0
  """
  return jax.nn.softplus(u).sum()


def sharing_term(us: Sequence[Array]) -> Array:
  """sum_{s<t} sum_l (L + 1 - l)/L |alpha_sl - alpha_tl| of logits f[L] per task.

  >>> u = jnp.log(jnp.array([3.0, 1.0]))
  >>> [round(sharing_term(us).item(), 4) for us in ([u, jnp.zeros(2)], [jnp.zeros(2), u[::-1]])]
  [0.25, 0.125]
  """
  total = jnp.zeros((), arrays.real_dtype())
  for a, b in itertools.combinations([jax.nn.sigmoid(u) for u in us], 2):
    depth = 1 - np.arange(a.shape[0], dtype=np.float32) / a.shape[0]
    total += jnp.sum(depth * jnp.abs(a - b))
  return total


def _same_shape(x, y) -> bool:
  (x, _), (y, _) = array_of(x), array_of(y)
  one = all(hasattr(z, 'shape') and arrays.is_float(z) for z in (x, y))
  return one and x.shape == y.shape


def _net(modules: Mapping[str, Module], is_block: Callable) -> Module:
  """Inputs -> what the first stages make of them, and the parameters of the others.

  The stages that run here are those with an entry in the state: init decides, by shapes.
  """

  def init(key, x):
    params, state, parted = {}, {}, False
    for stage, module in modules.items():
      with explained(f'stages[{stage!r}]', x):
        params[stage], own = module.init(arrays.name_key(key, stage), x)
        y, _ = module.apply(params[stage], own, x, train=False, key=None)
      parted = is_block(stage, x, y) or parted
      if not parted:
        state[stage] = own
      x = y
    if not parted:
      raise InputError(f'adashare stages: none of {list(modules)} keeps the shape of its inputs, expected one or more.')
    return params, state

  def apply(params, state, x, *, train, key):
    new = {}
    for stage in (stage for stage in modules if stage in state):
      own_key = arrays.name_key(key, stage)
      with scopes.part(stage):
        x, new[stage] = modules[stage].apply(params[stage], state[stage], x, train=train, key=own_key)
    return no_features({'x': x, 'params': {stage: own for stage, own in params.items() if stage not in state}}), new

  return Module(init, apply)


def _path(task: str, head: Module, modules, is_block, start: float, run_or_skip: Callable) -> Module:
  """The rest of the net with a task's policy, and its head."""

  def init(key, features, *, inputs=None):
    x, policy, states = features['x'], {}, {}
    for stage, module in ((s, m) for s, m in modules.items() if s in features['params']):
      states[stage] = module.init(arrays.name_key(key, f'stages/{stage}'), x)[1]
      y, _ = module.apply(features['params'][stage], states[stage], x, train=False, key=None)
      if is_block(stage, x, y):
        policy[stage] = jnp.asarray(math.log(start / (1 - start)), jnp.float32)
      x = y
    params, state = head.init(arrays.name_key(key, 'head'), x, inputs=inputs)
    return {'policy': policy, 'head': params}, {'clock': _clock.start((task,)), 'stages': states, 'head': state}

  def apply(params, state, features, *, train, key, inputs=None):
    x, policy, states = features['x'], params['policy'], {}
    blocks = [stage for stage in modules if stage in policy]
    n = _clock.step(state['clock'], (task,))
    for stage, module in ((s, m) for s, m in modules.items() if s in features['params']):
      own_key = arrays.name_key(key, f'stages/{stage}')
      own = features['params'][stage]
      with scopes.part(f'stages/{stage}'):
        y, states[stage] = module.apply(own, state['stages'][stage], x, train=train, key=own_key)
      if stage in policy:
        later = len(blocks) - 1 - blocks.index(stage)
        own_key = arrays.name_key(key, f'policy/{stage}')
        with scopes.part(f'policy/{stage}'):
          v = run_or_skip(policy[stage], n, later, train=train, key=own_key).astype(array_of(y)[0].dtype)
        (z, put), (skipped, _) = array_of(y), array_of(x)
        y = put(v * z + (1 - v) * skipped.astype(z.dtype))
      x = y
    own_key = arrays.name_key(key, 'head')
    with scopes.part('head'):
      y, own = head.apply(params['head'], state['head'], x, train=train, key=own_key, inputs=inputs)
    return y, {'clock': _clock.tick(state['clock'], (task,), train), 'stages': states, 'head': own}

  return Module(init, apply)


def _policy(part: PyTree) -> dict[str, Array]:
  """{block: logit} from the parameters of a task."""
  part = part['head'] if 'stem' in part else part
  if 'policy' not in part:
    raise InputError(f"policies params: found {sorted(part)} in a task, expected 'policy' as in those of `adashare`.")
  return part['policy']


def _penalties(names: tuple[str, ...], sparsity, sharing, warmup: int, curriculum: int) -> tuple[Penalty, ...]:
  """Which stages are blocks is seen in the parameters; the sparsity of a block starts when its policy does."""

  def logits(params):
    """[u f[L]] of every task."""
    by_task = [_policy(part) for _, part in sorted(params['tasks'].items())]
    return [jnp.stack([us[stage] for stage in names if stage in us]) for us in by_task]

  def sparse(later):
    """The term of all blocks, or of the one after which `later` others come (of none, if there are fewer)."""

    def value(params):
      us = logits(params)
      chosen = us if later is None else [u[::-1][later : later + 1] for u in us]
      return sum(map(sparsity_term, chosen)) / us[0].shape[0]

    return value

  def from_step(first):
    beta = sparsity if callable(sparsity) else lambda n: sparsity
    return lambda n: jnp.where(n < first, 0.0, beta(n))

  penalties = []
  if callable(sparsity) or sparsity > 0:
    parts = range(len(names)) if curriculum else (None,)
    penalties += [Penalty(from_step(warmup + curriculum * (later or 0)), sparse(later)) for later in parts]
  if callable(sharing) or sharing > 0:
    penalties.append(Penalty(sharing, lambda params: sharing_term(logits(params))))
  return tuple(penalties)
