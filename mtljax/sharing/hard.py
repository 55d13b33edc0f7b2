"""Hard parameter sharing: one trunk that every task uses, one head per task."""

from collections.abc import Mapping
from typing import Any

import jax

from mtljax import arrays
from mtljax.base import InputError, Model
from mtljax.sharing import scopes
from mtljax.sharing.modules import Module, as_module, by_task, explained


def hard(trunk: Any, heads: Mapping[str, Any], stems: Mapping[str, Any] | None = None) -> Model:
  """One shared trunk z = f(x), one head y_t = h_t(z) per task; with stems, z_t = f(s_t(x_t)).

  Every part is a flax linen module, an nnx module (or a function `rngs -> nnx.Module`), or a pair of pure functions
  `(init, apply)`, mixed at will.

  Args:
    trunk: inputs f[B, ...] -> features, any pytree; a trunk that names a keyword `tasks` gets the names of the tasks
      that read them.
    heads: {task: module}, features -> outputs; a head that names a keyword `inputs` gets the task's own inputs too.
    stems: {task: module}, a task's inputs -> the trunk's inputs, for inputs of different modality (multi-input batches
      only); the parameters of a task are then `{'stem': ..., 'head': ...}`.

  Returns:
    A `Model` with `params = {'shared': trunk, 'tasks': {task: head}}`.

  Raises:
    InputError: a part that is no module, no heads, stems for other tasks than the heads; while initialising, inputs of
      a task without a head and a part that cannot take its input.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = hard(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)})
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> jax.tree.map(jnp.shape, params['tasks']['parity'])
  {'bias': (2,), 'kernel': (8, 2)}

  Reference: Caruana, Multitask Learning: A Knowledge-Based Source of Inductive Bias (ICML 1993),
  https://doi.org/10.1016/B978-1-55860-307-3.50012-5; Multitask Learning (Machine Learning 28, 1997),
  https://doi.org/10.1023/A:1007379606734.
  """
  shared = as_module(trunk, 'trunk')
  heads = by_task(heads, 'heads')
  if stems is not None:
    stems = by_task(stems, 'stems')
    arrays.check_names('stems', stems, heads)

  def init(key, inputs):
    missing = sorted(set(inputs) - set(heads))
    if missing or not inputs:
      raise InputError(f'heads: found {sorted(heads)}, inputs are for {sorted(inputs)}: no head for {missing}.')
    params, state, shared_params = {}, {}, None
    features = {}  # by the identity of the inputs: one array, given once per task, goes through the trunk once
    for task, x in inputs.items():
      own_key = arrays.name_key(key, task)
      if stems is not None:
        z, stem_params, stem_state = _start(stems[task], f'stems[{task!r}]', arrays.name_key(own_key, 'stem'), x)
      else:
        z = x
      if shared_params is None:
        with explained(f'trunk (inputs of {task!r})', z):
          shared_params, shared_state = shared.init(arrays.name_key(key, 'shared'), z, tasks=tuple(inputs))
      same = tuple(id(leaf) for leaf in jax.tree.leaves(z))
      if same not in features:
        with explained(f'trunk (inputs of {task!r})', z):
          # The arrays are kept beside their ids, which are unique only as long as the arrays live.
          z_tasks = tuple(inputs) if stems is None else (task,)
          applied = shared.apply(shared_params, shared_state, z, train=False, key=None, tasks=z_tasks)
          features[same] = applied[0], z
      with explained(f'heads[{task!r}]', features[same][0]):
        head_params, head_state = heads[task].init(own_key, features[same][0], inputs=x)
      if stems is None:
        params[task], state[task] = head_params, head_state
      else:
        params[task] = {'stem': stem_params, 'head': head_params}
        state[task] = {'stem': stem_state, 'head': head_state}
    return {'shared': shared_params, 'tasks': params}, {'shared': shared_state, 'tasks': state}

  def apply_trunk(params, state, inputs, *, tasks, train, key):
    with scopes.part('trunk'):
      return shared.apply(params, state, inputs, train=train, key=key, tasks=tasks)

  def apply_head(params, state, features, *, inputs=None, task, train, key):
    own = (params, state) if stems is None else (params['head'], state['head'])
    with scopes.part(f'heads/{task}'):
      outputs, new = heads[task].apply(*own, features, train=train, key=key, inputs=inputs)
    return outputs, new if stems is None else {**state, 'head': new}

  def apply_stem(params, state, inputs, *, task, train, key):
    with scopes.part(f'stems/{task}'):
      outputs, new = stems[task].apply(params['stem'], state['stem'], inputs, train=train, key=key)
    return outputs, {**state, 'stem': new}

  return Model(init, apply_trunk, apply_head, None if stems is None else apply_stem)


def _start(module: Module, name: str, key, x):
  """Initialises a part; returns its outputs, parameters and state."""
  with explained(name, x):
    params, state = module.init(key, x)
    return module.apply(params, state, x, train=False, key=None)[0], params, state
