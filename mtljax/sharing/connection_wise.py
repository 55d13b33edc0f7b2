"""Connection-wise sharing: one set of weights, of which every task uses those that its masks leave."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import arrays
from mtljax.base import Array, InputError, Model, PyTree
from mtljax.sharing._merged import check_shape, matching, merged, nested
from mtljax.sharing.modules import as_module, by_task
from mtljax.sharing.stages import check_fraction

# Scores and threshold of Piggyback: every connection is there at the start, and near the edge.
START, THRESHOLD = 1e-2, 5e-3
SIGMOID_START = 3.0  # sigmoid(3) = .95


def connection_wise(
  trunk: Any,
  heads: Mapping[str, Any],
  *,
  masks: Mapping[str, PyTree] | None = None,
  density: float | None = None,
  learned: bool | Literal['threshold', 'sigmoid'] = False,
  where: str = 'kernel$',
  frozen: bool | PyTree = False,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """Task t runs the net with the weights m_t * theta: masks m_t per connection, dense or convolutional.

  Fixed masks (`masks`, or `density`) are in `model_state['tasks'][t]['masks']`. Learned ones are scores s_t in
  `params['tasks'][t]['masks']`: 'threshold' is m = [s > 0.005] from s = 0.01, with the gradient of m handed to s as it
  is (straight-through), 'sigmoid' is m = sigmoid(s) from s = 3. A connection that is masked out for every task gets no
  gradient: it is dead weight, which only weight decay moves.

  Args:
    trunk: inputs -> features.
    heads: {task: module}.
    masks: {task: masks}, bools: a pytree with the paths of the trunk's parameters, or {path: bool array}; a parameter
      without one is shared whole. See `magnitude_masks`.
    density: the share of connections that a task keeps of every parameter, drawn from the key for each task; 0.5 where
      none of the three is given.
    learned: 'threshold' (True is the same) or 'sigmoid'. Of `masks`, `density` and `learned` at most one is given.
    where: regular expression searched for in the path of a trunk's parameter ('Dense_0/kernel'): those that get masks
      by `density` or `learned`.
    frozen: as in `lora`; learned masks over a frozen trained net are Piggyback.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model`. Every task runs the whole net, and a trunk's BatchNorm has statistics of its own for every task, in
    `model_state['tasks'][t]['trunk']`. The trunk hands on parameters and no features: use `at='params'`.

  Raises:
    InputError: a part that is no module, several of `masks`, `density` and `learned`, a density outside of 0
      to 1, masks of other tasks or that are no bools; while initialising, a pattern that matches no parameter, masks
      of other names or shapes.

  >>> import flax.linen as nn
  >>> model = connection_wise(nn.Dense(8), {'digit': nn.Dense(10), 'parity': nn.Dense(2)}, density=0.5)
  >>> x = jnp.ones((4, 3))
  >>> _, state = model.init(jax.random.key(0), {'digit': x, 'parity': x})
  >>> int(state['tasks']['digit']['masks']['kernel'].sum())
  12

  References: Sun, Shao, Li, Liu, Yan, Qiu & Huang, Learning Sparse Sharing Architectures for Multiple Tasks (AAAI
  2020), https://arxiv.org/abs/1911.05034; Mallya, Davis & Lazebnik, Piggyback: Adapting a Single Network to Multiple
  Tasks by Learning to Mask Weights (ECCV 2018), https://arxiv.org/abs/1801.06519. Departs from the latter: the net may
  learn with its masks; 'sigmoid' is not in it. All tasks are in one batch, the first paper draws one at a time.
  """
  chosen = [name for name, given in (('masks', masks is not None), ('density', density is not None)) if given]
  chosen += ['learned'] * bool(learned)
  if len(chosen) > 1:
    raise InputError(f'connection_wise: found {chosen}, expected one of masks, density and learned.')
  if learned not in (False, True, 'threshold', 'sigmoid'):
    raise InputError(f"connection_wise learned: found {learned!r}, expected 'threshold' or 'sigmoid'.")
  density = 0.5 if density is None else density
  check_fraction('connection_wise density', density)
  heads, found = by_task(heads, 'heads'), arrays.pattern('connection_wise where', where)
  given = None if masks is None else _bools(masks, heads)

  def make(key, params, task):
    if given is not None:
      fixed = _checked(given[task], f'connection_wise masks[{task!r}]', arrays.labelled(params))
      return {}, nested({label: jnp.asarray(mask) for label, mask in fixed.items()})
    kernels = matching('connection_wise where', params, found)
    if learned:
      start = SIGMOID_START if learned == 'sigmoid' else START
      return nested({label: jnp.full_like(theta, start) for label, theta in kernels.items()}), {}
    draws = {label: _draw(arrays.name_key(key, label), theta.shape, density) for label, theta in kernels.items()}
    return {}, nested(draws)

  def merge(theta, scores, fixed):
    values = arrays.labelled(scores if learned else fixed)

    def masked(path, leaf):
      label = arrays.path_label(path)
      if label not in values:
        return leaf
      if not learned:
        return jnp.where(values[label], leaf, 0)
      return leaf * (jax.nn.sigmoid(values[label]) if learned == 'sigmoid' else straight_through(values[label]))

    return jax.tree_util.tree_map_with_path(masked, theta)

  return merged(as_module(trunk, 'trunk'), heads, 'masks', make, merge, frozen=frozen, stems=stems)


def straight_through(scores: Array) -> Array:
  """1 where the score is above the threshold, else 0; its derivative is taken to be 1.

  >>> scores = jnp.array([0.01, -0.3, 0.004])
  >>> straight_through(scores).tolist(), jax.grad(lambda s: straight_through(s) @ jnp.arange(3.0))(scores).tolist()
  ([1.0, 0.0, 0.0], [0.0, 1.0, 2.0])
  """
  return (scores > THRESHOLD).astype(scores.dtype) + (scores - jax.lax.stop_gradient(scores))


def magnitude_masks(
  params: PyTree, density: float, *, where: str = 'kernel$', masks: PyTree | None = None
) -> dict[str, np.ndarray]:
  """Masks that keep the largest of a trained net's weights, compared over all of its layers.

  The sparse sharing paper prunes step by step, for each task alone: train the net from the common initial values, with
  the masks so far, on the task; prune; start again. With K rounds to a share d the k-th call has density = d^(k / K).

  Args:
    params: of the trained net (`params['shared']` of `connection_wise` or `hard` with one task).
    density: the share of all matched connections that stays.
    where: regular expression searched for in the path of a parameter: those that are pruned.
    masks: of the round before; what is out stays out.

  Returns:
    {path: bool array}, one entry for `connection_wise(masks={task: ...})`.

  Raises:
    InputError: a density outside of 0 to 1, a pattern that matches no parameter, masks of other names or shapes.

  >>> magnitude_masks({'kernel': np.array([[1.0, -4.0], [3.0, 0.5]])}, 0.5)
  {'kernel': array([[False,  True],
         [ True, False]])}

  Reference: Sun et al. (AAAI 2020), https://arxiv.org/abs/1911.05034, after Frankle & Carbin, The Lottery Ticket
  Hypothesis (ICLR 2019), https://arxiv.org/abs/1803.03635. Departs from it: exactly the share is kept where weights
  are equal.
  """
  check_fraction('magnitude_masks density', density)
  kernels = matching('magnitude_masks where', params, arrays.pattern('magnitude_masks where', where))
  prior = 'magnitude_masks masks'
  before = {} if masks is None else _checked(_labelled_bools(prior, masks), prior, kernels)
  sizes = [np.where(before.get(label, True), np.abs(np.asarray(x)), -1).ravel() for label, x in kernels.items()]
  joined = np.concatenate(sizes)
  keep = np.zeros(joined.size, bool)
  keep[np.argsort(-joined, kind='stable')[: round(density * joined.size)]] = True
  parts = np.split(keep & (joined >= 0), np.cumsum([part.size for part in sizes])[:-1])
  return {label: part.reshape(x.shape) for (label, x), part in zip(kernels.items(), parts)}


def _bools(masks: Mapping[str, PyTree], heads: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  if not isinstance(masks, Mapping):
    raise InputError(f'connection_wise masks: found {type(masks).__name__}, expected {{task: masks}}.')
  arrays.check_names('connection_wise masks', masks, heads)
  return {task: _labelled_bools(f'connection_wise masks[{task!r}]', tree) for task, tree in masks.items()}


def _labelled_bools(argument: str, tree: PyTree) -> dict[str, np.ndarray]:
  leaves = {label: np.asarray(leaf) for label, leaf in arrays.labelled(tree).items()}
  for label, leaf in leaves.items():
    if leaf.dtype != bool:
      raise InputError(f'{argument}: {label!r} is {leaf.dtype}, expected bool.')
  return leaves


def _checked(masks: Mapping[str, np.ndarray], argument: str, params: Mapping[str, Array]) -> Mapping:
  """The masks, which must be of parameters and have their shapes."""
  arrays.check_names(argument, masks, params, all_of=False)
  for label, mask in masks.items():
    check_shape(argument, label, mask, params[label])
  return masks


def _draw(key: Array, shape: tuple[int, ...], density: float) -> Array:
  """bool[*shape] of which the share `density` is true, anywhere."""
  size = int(np.prod(shape))
  return jax.random.permutation(key, jnp.arange(size) < round(density * size)).reshape(shape)
