"""Layer-wise sharing: any subset of a net's layers is shared, the others are every task's own."""

from collections.abc import Mapping
from typing import Any

from mtljax import arrays
from mtljax.base import InputError, Model, PyTree
from mtljax.sharing._merged import matching, merged
from mtljax.sharing.modules import as_module


def layer_wise(
  trunk: Any, heads: Mapping[str, Any], *, shared: str = 'kernel$', stems: Mapping[str, Any] | None = None
) -> Model:
  """y_t = h_t(f(x_t; theta_S, theta_t)): theta_S the parameters whose path matches, theta_t all others of the net f.

  '.*' is hard sharing, 'Conv_' shares convolutions under dense layers of the tasks' own, 'Dense_1' the second dense
  layer between own ones, 'kernel$' all but biases and norms. Every task runs the whole net, shared layers too.

  Args:
    trunk: inputs -> features; dense, convolutional or any other layers, its parameters in nested dictionaries.
    heads: {task: module}.
    shared: regular expression searched for in the path of a trunk's parameter ('Conv_0/kernel').
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with the shared layers in `params['shared']` and `params['tasks'][t] = {'layers': own ones, 'head': ...}`.
    Own layers are drawn anew for every task. A BatchNorm has statistics of its own for every task, in
    `model_state['tasks'][t]['trunk']`, also where its scale and bias are shared. The trunk hands on parameters and no
    features: use `at='params'`.

  Raises:
    InputError: a part that is no module, a pattern that is none; while initialising, a pattern that matches no
      parameter (that would be `soft` with beta = 0), parameters that are not in nested dictionaries.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from mtljax import trunks
  >>> heads = {'digit': nn.Dense(10), 'parity': nn.Dense(2)}
  >>> model = layer_wise(trunks.LeNet((4, 8), hidden=16), heads, shared='Conv_')
  >>> x = jnp.ones((2, 8, 8))
  >>> params, _ = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> sorted(params['shared']), sorted(params['tasks']['digit']['layers'])
  (['Conv_0', 'Conv_1'], ['Dense_0'])

  References: Caruana, Multitask Learning (Machine Learning 28, 1997), https://doi.org/10.1023/A:1007379606734 (shared
  hidden layers); Yosinski, Clune, Bengio & Lipson, How Transferable Are Features in Deep Neural Networks? (NeurIPS
  2014), https://arxiv.org/abs/1411.1792 (layer by layer). Departs from them: any layers may be shared, not only the
  first ones.
  """
  found = arrays.pattern('layer_wise shared', shared)

  def share(params):
    matching('layer_wise shared', params, found)
    return _split(params, found)[0]

  def make(key, params, task):
    return _split(params, found)[1], {}

  def merge(theta, phi, state):
    return _joined(theta, phi)

  return merged(as_module(trunk, 'trunk'), heads, 'layers', make, merge, share=share, stems=stems)


def _split(tree: PyTree, found, path: str = '') -> tuple[dict, dict]:
  """The leaves whose path matches and the others; a node without leaves (a layer without parameters) is shared."""
  if not isinstance(tree, Mapping):
    kind = type(tree).__name__
    raise InputError(f'layer_wise trunk: its parameters are in a {kind} at {path!r}, expected nested dictionaries.')
  matched, others = {}, {}
  for name, node in tree.items():
    label = f'{path}/{name}' if path else str(name)
    if hasattr(node, 'shape'):
      (matched if found.search(label) else others)[name] = node
      continue
    a, b = _split(node, found, label)
    if a or not b:
      matched[name] = a
    if b:
      others[name] = b
  return matched, others


def _joined(a: PyTree, b: PyTree) -> PyTree:
  """Both trees' leaves in one.

  >>> _joined({'x': {'w': 1}}, {'x': {'b': 2}, 'y': {'w': 3}})
  {'x': {'w': 1, 'b': 2}, 'y': {'w': 3}}
  """
  both = {name: _joined(a[name], b[name]) for name in a if name in b}
  return {**a, **b, **both}
