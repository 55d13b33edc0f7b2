"""Small problems for tests of the engine: a linen net with two tasks, its batches, and balancers of every level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl

B, D = 8, 5
NAMES = ('digit', 'size')

# (balancer, at): every level wherever it is allowed
BALANCERS = {
  'equal': (lambda: mtl.balancing.equal(), 'params'),
  'famo': (lambda: mtl.balancing.famo(), 'params'),
  'equal-features': (lambda: mtl.balancing.equal(), 'features'),
  'mgda': (lambda: mtl.balancing.mgda(), 'params'),
  'mgda-features': (lambda: mtl.balancing.mgda(), 'features'),
  'pcgrad': (lambda: mtl.balancing.pcgrad(), 'params'),
  'nash_mtl-features': (lambda: mtl.balancing.nash_mtl(), 'features'),
  'graddrop': (lambda: mtl.balancing.graddrop(), 'params'),
}


def tasks(weight=1.0):
  return (
    mtl.Task('digit', loss=mtl.losses.softmax_cross_entropy, weight=weight),
    mtl.Task('size', loss=mtl.losses.squared_error),
  )


class Trunk(nn.Module):
  """Two layers, with BatchNorm or dropout on request."""

  norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.Dense(6, use_bias=not self.norm)(x)  # before BatchNorm a bias has no gradient but rounding
    if self.norm:
      x = mtl.trunks.BatchNorm()(x, train=train)
    x = nn.tanh(x)
    if self.dropout:
      x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.tanh(nn.Dense(4)(x))


def model(norm=False, dropout=0.0):
  return mtl.sharing.hard(Trunk(norm, dropout), {'digit': nn.Dense(3), 'size': nn.Dense(2)})


def batch(seed=0, *, masks=None, size=B):
  """Single input. masks: None, 'examples' (uneven over devices), 'items' (per item for 'size'), 'absent' ('size')."""
  r = np.random.default_rng(seed)
  labels = {'digit': r.integers(0, 3, size), 'size': r.normal(size=(size, 2)).astype(np.float32)}
  result = {'inputs': r.normal(size=(size, D)).astype(np.float32), 'labels': labels}
  some = np.arange(size) % 8 < 3
  if masks == 'examples':
    result['mask'] = {'digit': some, 'size': ~some}
  elif masks == 'items':
    result['mask'] = {'size': np.stack([some, np.arange(size) % 3 == 0], axis=1)}
  elif masks == 'absent':
    result['mask'] = {'size': np.zeros(size, bool)}
  elif masks == 'none':
    result['mask'] = {name: np.zeros(size, bool) for name in NAMES}
  if masks:  # what is masked may be anything
    result['labels']['size'] = np.where(_expand(result['mask']['size']), labels['size'], np.nan).astype(np.float32)
  return jax.tree.map(jnp.asarray, result)


def multi(seed=0, *, masks=None):
  """Multi-input: every task its own rows."""
  one, two = batch(seed, masks=masks), batch(seed + 1, masks=masks)
  parts = {}
  for name, b in zip(NAMES, (one, two), strict=True):
    parts[name] = {'inputs': b['inputs'], 'labels': b['labels'][name]}
    if name in b.get('mask', {}):
      parts[name]['mask'] = b['mask'][name]
  return parts


def masked_batches(kind):
  """Batches of one structure, every label there, uneven over devices, one task absent: one compiled step meets all.

  Args:
    kind: 'single' with masks per example, 'items' single input with masks per item, 'multi' with masks per item.
  """
  data = multi if kind == 'multi' else batch
  shapes = {'digit': (B,), 'size': (B,) if kind == 'single' else (B, 2)}
  uneven = np.arange(B) % 8 < 3
  masks = [
    {'digit': np.ones(B, bool), 'size': np.ones(shapes['size'], bool)},
    {'digit': uneven, 'size': ~uneven if kind == 'single' else np.stack([uneven, np.arange(B) % 3 == 0], axis=1)},
    {'digit': ~uneven, 'size': np.zeros(shapes['size'], bool)},
  ]
  result = []
  for seed, mask in enumerate(masks):
    b = data(seed)
    if kind == 'multi':
      result.append({n: {**b[n], 'mask': jnp.asarray(mask[n])} for n in NAMES})
    else:
      result.append({**b, 'mask': jax.tree.map(jnp.asarray, mask)})
  return result


def _expand(mask):
  return mask if mask.ndim == 2 else mask[:, None]


def optimizer(learning_rate=0.1):
  return mtl.task_optimizer(
    shared=optax.adam(learning_rate), tasks={'digit': optax.adam(learning_rate), 'size': optax.adam(learning_rate)}
  )


def setup(balancer, net=None, data=None, opt=None, task_list=None, key=0):
  """(model, tasks, optimizer, balancer, state) ready for a step."""
  net = net or model()
  task_list = task_list or tasks()
  opt = opt or optimizer()
  data = data if data is not None else batch()
  state = mtl.init_state(net, task_list, opt, balancer, data, jax.random.key(key))
  return net, task_list, opt, balancer, state


def leaves_close(a, b, **tolerance):
  """Asserts equal structure and values; keys by their data."""
  flat_a, flat_b = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
  assert [p for p, _ in flat_a] == [p for p, _ in flat_b]
  for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path), **tolerance)
