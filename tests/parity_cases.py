"""The parity table: modes, methods of every (level, at), architectures, kinds of batch, dtypes, options of a step."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import mtljax as mtl
from mtljax import sharing, trunks
from mtljax.relations import TaskGraph, TaskTree

NAMES = ('digit', 'size')
ROWS = 96  # on 8 devices still 2 or 3 parts of an oracle, each of a batch that is accumulated in 2
MODES = ('pmap', 'shard_map', 'sharded', 'model')  # 'model': sharded, the parameters too


def sgd():
  return optax.sgd(0.1, momentum=0.9)


# (balancer, at): every level wherever it is allowed, and every kind of state
METHODS = {
  'equal': (mtl.balancing.equal, 'params'),
  'rlw': (mtl.balancing.rlw, 'params'),  # draws from the key
  'uncertainty': (lambda: mtl.balancing.uncertainty(sgd()), 'params'),  # parameters of its own
  'famo': (mtl.balancing.famo, 'params'),  # looks at the losses after the step
  'equal-features': (mtl.balancing.equal, 'features'),
  'famo-features': (mtl.balancing.famo, 'features'),
  'mgda': (mtl.balancing.mgda, 'params'),
  'pcgrad': (mtl.balancing.pcgrad, 'params'),  # draws an order
  'nash_mtl': (mtl.balancing.nash_mtl, 'params'),  # keeps its weights
  'gradnorm': (lambda: mtl.balancing.gradnorm(optimizer=sgd()), 'params'),
  'mgda-features': (mtl.balancing.mgda, 'features'),
  'nash_mtl-features': (mtl.balancing.nash_mtl, 'features'),
  'graddrop': (mtl.balancing.graddrop, 'params'),  # draws for every element
  'moco': (mtl.balancing.moco, 'params'),  # keeps a Jacobian
  'modo': (mtl.balancing.modo, 'params'),  # three parts of the batch
  'auto_lambda': (mtl.balancing.auto_lambda, 'params'),  # gradients at moved parameters
}
REFUSED = {'graddrop-refused': (mtl.balancing.graddrop, 'features'), 'modo-refused': (mtl.balancing.modo, 'features')}
# {(level, at): methods}; the first of each meets every architecture
PAIRS = {
  ('losses', 'params'): ('uncertainty', 'famo', 'rlw', 'equal'),
  ('losses', 'features'): ('famo-features', 'equal-features'),
  ('gramian', 'params'): ('pcgrad', 'nash_mtl', 'mgda', 'gradnorm'),
  ('gramian', 'features'): ('nash_mtl-features', 'mgda-features'),
  ('jacobian', 'params'): ('graddrop', 'moco'),
  ('oracle', 'params'): ('auto_lambda', 'modo'),
}


def heads(**options):
  return {'digit': nn.Dense(3, **options), 'size': nn.Dense(2, **options)}


def mlp(*widths, batch_norm=True, dtype=None):
  return trunks.MLP(widths, activation=nn.tanh, batch_norm=batch_norm, dtype=dtype)


def plain(*widths):
  return mlp(*widths, batch_norm=False)


def stems():
  return {'digit': mlp(5), 'size': nn.Dense(5)}


# Nets that draw nothing in training, so that devices have nothing to draw differently; most normalise the batch.
ARCHITECTURES = {
  'hard': lambda: sharing.hard(mlp(6, 4), heads()),
  'adashare': lambda: sharing.adashare(plain(6, 6), heads(), warmup=99),
  'cgc': lambda: sharing.cgc(shared=[mlp(6)], own=[mlp(6)], heads=heads()),
  'connection_wise': lambda: sharing.connection_wise(plain(6, 4), heads(), density=0.5),
  'cross_stitch': lambda: sharing.cross_stitch(plain(6, 4), heads()),
  'cross_task_attention': lambda: sharing.cross_task_attention(plain(6, 4), heads(), num_heads=2),
  'dselect_k': lambda: sharing.dselect_k([mlp(6), plain(6), plain(6)], heads()),
  'graph': lambda: sharing.graph(plain(6, 4), heads(), TaskGraph(NAMES, {NAMES: 2.0})),
  'knowledge': lambda: sharing.knowledge(plain(6), heads(), size=(3, 4), num_heads=2),
  'layer_wise': lambda: sharing.layer_wise(mlp(6, 4), heads(), shared='kernel|scale'),
  'learning_to_branch': lambda: sharing.learning_to_branch(plain(6, 6), heads(), warmup=99),
  'lora': lambda: sharing.lora(plain(6, 4), heads(), rank=2),
  'mmoe': lambda: sharing.mmoe([mlp(6), mlp(6)], heads()),
  'mtan': lambda: sharing.mtan(plain(6, 4), heads(), reduction=1),
  'nddr': lambda: sharing.nddr(plain(6, 4), heads()),
  'ple': lambda: sharing.ple([[mlp(6)], [plain(4)]], [[plain(6)], [plain(4)]], heads()),
  'residual_adapters': lambda: sharing.residual_adapters(plain(6, 4), heads()),
  'sluice': lambda: sharing.sluice(plain(6, 6), heads()),
  'soft': lambda: sharing.soft(mlp(6), heads()),
  'tree': lambda: sharing.tree(mlp(6, 6, 4), heads(), TaskTree(NAMES), cuts=(0,)),
  # more of them
  'hard-plain': lambda: sharing.hard(plain(6, 4), heads()),
  'hard-bfloat16': lambda: sharing.hard(mlp(6, 4, dtype=jnp.bfloat16), heads(dtype=jnp.bfloat16)),
  'hard-stems': lambda: sharing.hard(mlp(6), heads(), stems=stems()),
  'cross_stitch-stems': lambda: sharing.cross_stitch(mlp(6, 4), heads(), stems=stems()),
}
# nets that draw in training: the same on one device and where the compiler deals out the work
NOISY = {
  'hard-dropout': lambda: sharing.hard(trunks.MLP((6, 4), dropout=0.3), heads()),
  'adashare-noise': lambda: sharing.adashare(mlp(6, 6), heads(), start=0.6),
  'learning_to_branch-noise': lambda: sharing.learning_to_branch(mlp(6, 6), heads()),
}
# those that hand on features of examples, which all tasks read
FEATURES = ('hard', 'cgc', 'dselect_k', 'learning_to_branch', 'mmoe', 'mtan', 'tree', 'hard-bfloat16', 'hard-plain')

# kinds of batch; every kind but 'unmasked' meets all masks
SINGLE = ('rows', 'items', 'unmasked')
MULTI = ('multi', 'left_out')
MASKS = ('all', 'uneven', 'device', 'batch', 'none', 'all')

MEMORY = {  # options with which the step needs less memory
  'accumulate': {'accumulate': 2},
  'remat': {'remat': True},
  'at_once': {'chunk_size': 2},  # what accelerators do; a CPU takes rows one by one
  'together': {'accumulate': 2, 'remat': True, 'chunk_size': 2},
}
OPTIONS = MEMORY | {
  'plain': {},
  'drop': {'on_nonfinite': 'drop'},
  'penalties': {
    'penalties': (
      mtl.Penalty(0.3, lambda params, outputs: jnp.mean(outputs['size'] ** 2), on='outputs'),
      mtl.penalties.l2(0.1, 'tasks/size', task='size'),
    )
  },
  'examples': {'objectives': 'examples'},
}

# Of a leaf's largest entry, or of 1 where that is less. Sums over devices are sums in another order; bfloat16 rounds
# the gradient of each device.
TOLERANCES = {'float32': 1e-5, 'float64': 1e-12, 'bfloat16': 3e-2}


class Case(NamedTuple):
  """A row of the table, which every mode runs to the same numbers: keys of the dictionaries above."""

  architecture: str = 'hard'
  method: str = 'equal'
  kind: str = 'rows'
  dtype: str = 'float32'
  option: str = 'plain'

  @property
  def tolerance(self) -> float:
    return TOLERANCES['bfloat16' if self.architecture.endswith('-bfloat16') else self.dtype]

  @property
  def refused(self) -> str | None:
    """The start of what is said of it: rows of features of what has none, rows of parameters where none is shared."""
    if METHODS[self.method][1] == 'features' and (self.kind in MULTI or self.architecture not in FEATURES):
      return "at='features': "
    if self.architecture == 'soft' and METHODS[self.method][0]().level in ('jacobian', 'oracle'):
      return 'balancer: found one of level .*, expected .* as the model shares no parameters'
    return None


def kinds(architecture: str, method: str) -> tuple[str, ...]:
  """The kinds of batch that an architecture takes, of those that a method takes."""
  if architecture.endswith('-stems'):
    return MULTI
  return SINGLE if method.endswith('-features') else (*SINGLE, *MULTI)


# Every mode meets every (level, at), each time with another architecture, and all else in turn: (mode, case).
ROTATION = (
  ('pmap', Case('nddr', 'uncertainty', 'rows', 'float32')),
  ('shard_map', Case('mtan', 'equal', 'items', 'float64')),
  ('sharded', Case('ple', 'rlw', 'rows', 'float64')),
  ('model', Case('soft', 'famo', 'multi', 'float64')),
  ('pmap', Case('learning_to_branch', 'famo-features', 'rows', 'float64')),
  ('shard_map', Case('hard-bfloat16', 'equal-features', 'items', 'float32')),
  ('sharded', Case('dselect_k', 'equal-features', 'rows', 'float32')),
  ('model', Case('cgc', 'famo-features', 'items', 'float64', 'penalties')),
  ('pmap', Case('cross_stitch-stems', 'mgda', 'multi', 'float64')),
  ('shard_map', Case('hard-stems', 'pcgrad', 'left_out', 'float64')),
  ('sharded', Case('graph', 'nash_mtl', 'rows', 'float64')),
  ('model', Case('layer_wise', 'gradnorm', 'items', 'float64', 'remat')),
  ('pmap', Case('tree', 'mgda-features', 'unmasked', 'float64', 'drop')),
  ('shard_map', Case('mmoe', 'nash_mtl-features', 'rows', 'float64', 'accumulate')),
  ('sharded', Case('hard', 'mgda-features', 'items', 'float64', 'together')),
  ('model', Case('hard-plain', 'mgda-features', 'items', 'float64')),
  ('pmap', Case('cross_task_attention', 'moco', 'rows', 'float32', 'remat')),
  ('shard_map', Case('lora', 'graddrop', 'rows', 'float64', 'at_once')),
  ('sharded', Case('sluice', 'moco', 'unmasked', 'float64', 'at_once')),
  ('model', Case('adashare', 'graddrop', 'rows', 'float64', 'drop')),
  ('pmap', Case('connection_wise', 'modo', 'unmasked', 'float64')),
  ('shard_map', Case('cross_stitch', 'auto_lambda', 'rows', 'float64')),
  ('sharded', Case('knowledge', 'modo', 'items', 'float32')),
  ('model', Case('residual_adapters', 'auto_lambda', 'unmasked', 'float64', 'at_once')),
  # rows that are dealt out, one of a penalty, some of no finite numbers
  ('shard_map', Case('hard', 'mgda', 'items', 'float64', 'penalties')),
  ('pmap', Case('hard', 'nash_mtl', 'rows', 'float64', 'drop')),
)


def masks(name, shapes):
  """{task: bool}: which labels there are. On any number of devices the first has none of a task in 'device'."""
  rows = np.arange(ROWS)
  digit, size = {
    'all': (rows >= 0, rows >= 0),
    'uneven': (rows % 8 < 3, rows % 8 >= 3),
    'device': (rows % 3 < 2, rows >= ROWS // 2),
    'batch': (rows % 2 == 0, rows < 0),
    'none': (rows < 0, rows < 0),
  }[name]
  if shapes['size'] != (ROWS,):
    size = np.stack([size, size & (rows % 5 < 2)], axis=1)
  return {'digit': digit, 'size': size}


def batches(case: Case) -> list:
  """One batch per mask; what is masked is NaN where it can be."""
  dtype = np.float64 if case.dtype == 'float64' else np.float32
  result, shapes = [], {'digit': (ROWS,), 'size': (ROWS, 2) if case.kind in ('items', 'multi') else (ROWS,)}
  for seed, name in enumerate(MASKS if case.kind != 'unmasked' else MASKS[:2]):
    r = np.random.default_rng(seed)
    images, numbers = r.normal(size=(ROWS, 4, 5)), r.normal(size=(ROWS, 3))
    labels = {'digit': r.integers(0, 3, ROWS), 'size': r.normal(size=(ROWS, 2)).astype(dtype)}
    inputs = {'digit': images, 'size': numbers if case.architecture.endswith('-stems') else images[::-1]}
    inputs = {task: x.astype(dtype) for task, x in inputs.items()}
    if case.kind == 'unmasked':
      result.append({'inputs': inputs['digit'], 'labels': labels})
      continue
    mask = masks(name, shapes)
    there = mask['size'] if mask['size'].ndim == 2 else mask['size'][:, None]
    labels['size'] = np.where(there, labels['size'], np.nan)
    if case.option == 'drop' and name in ('uneven', 'device'):
      labels['size'][np.argmax(mask['size'].reshape(ROWS, -1).all(axis=1))] = np.nan  # one label of one device
    if case.kind in SINGLE:
      result.append({'inputs': inputs['digit'], 'labels': labels, 'mask': mask})
    else:
      tasks = ('digit',) if case.kind == 'left_out' and name in ('uneven', 'batch') else NAMES
      result.append({t: {'inputs': inputs[t], 'labels': labels[t], 'mask': mask[t]} for t in tasks})
  return result


def drawn(init, dtype, key, inputs):
  """Parameters none of which is 0 or 1: an adapter of zeros has nothing to pull back."""
  params, state = init(key, inputs)
  wide = lambda leaf: dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  draw = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: draw.normal(scale=0.5, size=leaf.shape).astype(wide(leaf)), params)
  return params, jax.tree.map(lambda leaf: leaf.astype(wide(leaf)), state)


def setup(case: Case):
  """(model, tasks, optimizer, balancer), at, options."""
  make, at = (METHODS | REFUSED)[case.method]
  model = (ARCHITECTURES | NOISY)[case.architecture]()
  model = model._replace(init=functools.partial(drawn, model.init, np.dtype(case.dtype)))
  tasks = (
    mtl.Task('digit', loss=mtl.losses.softmax_cross_entropy, weight=0.5),
    mtl.Task('size', loss=mtl.losses.squared_error),
  )
  optimizer = mtl.task_optimizer(shared=sgd(), tasks={name: sgd() for name in NAMES})
  return (model, tasks, optimizer, make()), at, OPTIONS[case.option]


@functools.lru_cache(maxsize=8)
def start(case: Case):
  """The state in which every mode begins, on the host, without its key."""
  parts, _, options = setup(case)
  objectives = options.get('objectives', 'tasks')
  init = lambda key: mtl.init_state(*parts, batches(case)[0], key, objectives=objectives).replace(key=None)
  return jax.device_get(jax.jit(init)(jax.random.key(0)))


def train(mode: str, case: Case):
  """[(state, info)] after every batch."""
  with jax.enable_x64(case.dtype == 'float64'):
    parts, at, options = setup(case)
    split = 2 if jax.device_count() % 2 == 0 else 1
    mesh = Mesh(np.array(jax.devices()).reshape(-1, split), ('data', 'model')) if mode == 'model' else None
    step = mtl.make_train_step(*parts, at=at, **options)
    step = mtl.compile_step(step, mode='sharded' if mesh else mode, mesh=mesh, split_from=8)  # kernels, not biases
    state = jax.tree.map(jnp.asarray, start(case)).replace(key=jax.random.key(0))
    found = []
    for batch in batches(case):
      state, info = step(state, batch)
      found.append(jax.device_get((state.replace(key=None), info)))
  return found


@functools.lru_cache(maxsize=8)
def reference(case: Case):
  """What one device gives."""
  return train('jit', case)


def check_same(found, expected, tolerance: float):
  """Every leaf of every step: losses, weights, Gramian, norms, parameters, states."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    scale = np.nanmax(np.abs(b), initial=1) if b.dtype.kind == 'f' else 1
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))
