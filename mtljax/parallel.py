"""One step on many devices: every mode takes and returns the same things, with the same numbers to float rounding."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtljax import arrays, hosts, inputs
from mtljax.base import Batch, InputError, PyTree
from mtljax.data import batching

MODES = ('jit', 'pmap', 'shard_map', 'sharded')
AXIS = 'data'


def compile_step(
  step: Callable, mode: str = 'jit', mesh: Mesh | None = None, donate: bool = True, split_from: int = arrays.SPLIT_FROM
) -> Callable:
  """Compiles a train step: `(state, batch, *, extras={}) -> (state, StepInfo)` in every mode.

  Args:
    step: from `make_train_step`.
    mode: 'jit', one device; 'shard_map' and 'pmap', every device takes a slice of the batch and the Jacobian is summed
      over devices; 'sharded', the compiler places the collectives (jit over NamedSharding), and with a second mesh axis
      'model' parameters and optimiser state are split over it.
    mesh: of devices, one axis for the data; None takes all devices, of all processes (see `grid`).
    donate: the state's buffers are reused, the state that was passed in is gone.
    split_from: elements that an array has at least, to be split; smaller ones stay whole. With 'sharded' arrays of the
      state over 'model'; with 'shard_map' and 'pmap' rows of the Jacobian, of which each device sums and keeps a part
      where the balancer asks for a Gramian.

  Returns:
    The compiled step: one state without a device axis, one global batch.

  With several processes each calls it with the same state and the same global batch: whole in every process, or dealt
  out already (`global_batches`).

  Raises:
    InputError: an unknown mode, a mesh that does not fit it, 'pmap' with several processes; when called, a batch that
      the devices do not divide.
  """
  if mode not in MODES:
    raise InputError(f'mode: found {mode!r}, expected one of {MODES}.')
  if mode == 'jit':
    if mesh is not None:
      raise InputError("mesh: found one with mode='jit', which runs on one device; use 'sharded' or 'shard_map'.")
  else:
    # axes of type Auto, whatever the given mesh has: the compiler places the collectives
    mesh = Mesh(mesh.devices, mesh.axis_names) if mesh is not None else grid()
    if mode == 'pmap' and hosts.several():
      raise InputError(
        "mode: found 'pmap' with several processes, expected 'shard_map', which runs the same program: pmap takes and "
        "gives what lies on one process's devices, and no global batch or state."
      )
    if mode != 'sharded' and len(mesh.axis_names) != 1:
      raise InputError(f'mesh: found axes {mesh.axis_names}, expected one axis for mode={mode!r}.')
  return _Compiled(step, mode, mesh, (0,) if donate else (), split_from)


def grid(model: int = 1) -> Mesh:
  """All devices of all processes on axes 'data' and, where parameters are split, 'model'.

  Args:
    model: over how many devices parameters are split; they lie side by side, in one process where that is possible.

  Raises:
    InputError: a number that does not divide that of the devices.
  """
  devices = sorted(jax.devices(), key=lambda device: device.process_index)  # rows of a process lie side by side
  if isinstance(model, bool) or not isinstance(model, int) or model < 1 or len(devices) % model:
    raise InputError(f'model_devices: found {model!r}, expected a number that divides {len(devices)}, of all devices.')
  if model == 1:
    return Mesh(np.array(devices), (AXIS,))
  return Mesh(np.array(devices).reshape(-1, model), (AXIS, 'model'))


class _Compiled:
  """Checks the batch, places state and batch, and calls the compiled function.

  The state's key goes in beside the state, as the array below it: a typed key in the arguments takes the slow path of
  every call, and a step returns the key that it got.
  """

  def __init__(self, step, mode, mesh, donated, split_from):
    self.step, self.mode, self.mesh, self.donated, self.split_from = step, mode, mesh, donated, split_from
    self.key, self.raw, self.compiled = None, None, None

  def __call__(self, state, batch, *, extras=None):
    inputs.check_state(state)
    if getattr(state.step, 'is_deleted', bool)():
      raise InputError(
        'state: found one that an earlier call took (donate=True), expected the state that the last call returned.'
      )
    if self.mesh is not None:
      check_divisible(batch, self.mesh.shape[data_axis(self.mesh)])
      if not _lies_on(state.replace(key=None), self.mesh):  # the first call; later ones get what the step returned
        state = place(state, state_sharding(state, self.mesh, self.split_from))
      if self.mode != 'pmap':
        batch = shard_batch(batch, self.mesh)
    if state.key is not self.key:
      impl = jax.random.key_impl(state.key)
      if self.key is None or impl != jax.random.key_impl(self.key):
        self.compiled = self._compile(impl)
      self.key, self.raw = state.key, jax.random.key_data(state.key)
    key = state.key
    state, info = self.compiled(state.replace(key=None), self.raw, batch, extras or {})
    return state.replace(key=key), info

  def eval_shape(self, state, batch):
    """Traces a call on abstract values, to find what is wrong before anything is placed."""
    check_divisible(batch, self.mesh.shape[data_axis(self.mesh)] if self.mesh is not None else 1)
    raw = jax.eval_shape(jax.random.key_data, state.key)
    compiled = self._compile(jax.random.key_impl(jax.random.key(0)))
    return jax.eval_shape(lambda s, k, b: compiled(s, k, b, {}), state.replace(key=None), raw, batch)

  def _compile(self, impl):
    mesh, axis = self.mesh, None if self.mesh is None else data_axis(self.mesh)

    def run(state, key, batch, extras, axis_name=None):
      state = state.replace(key=jax.random.wrap_key_data(key, impl=impl))
      state, info = self.step(state, batch, extras=extras, axis_name=axis_name)
      return state.replace(key=None), info

    def local(*args):
      with arrays.use_split_from(self.split_from):
        return run(*args, axis_name=axis)

    def sharded(*args):  # the new state lies where the old one lay, so that the next call recompiles nothing
      with arrays.place_by_compiler():
        state, info = run(*args)
      info = jax.lax.with_sharding_constraint(info, NamedSharding(mesh, PartitionSpec()))
      return jax.lax.with_sharding_constraint(state, state_sharding(state, mesh, self.split_from)), info

    if self.mode == 'pmap':
      size, devices = mesh.devices.size, list(mesh.devices.flat)
      options = dict(in_axes=(None, None, 0, None), out_axes=None, donate_argnums=self.donated, devices=devices)
      mapped = jax.pmap(local, axis_name=axis, **options)
      deal = lambda batch: jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), batch)
      return lambda state, key, batch, extras: mapped(state, key, deal(batch), extras)
    if self.mode == 'shard_map':
      # check_vma=False: sums over devices are written out in the step; with it, vjp would sum the Jacobian once more
      rep, rows = PartitionSpec(), PartitionSpec(axis)
      local = jax.shard_map(local, mesh=mesh, in_specs=(rep, rep, rows, rep), out_specs=rep, check_vma=False)
    return jax.jit({'jit': run, 'shard_map': local, 'sharded': sharded}[self.mode], donate_argnums=self.donated)


def data_axis(mesh: Mesh) -> str:
  """The axis over which a batch is dealt: 'data', or the first one."""
  return AXIS if AXIS in mesh.axis_names else mesh.axis_names[0]


def _lies_on(state, mesh) -> bool:
  return all(getattr(getattr(leaf, 'sharding', None), 'mesh', None) == mesh for leaf in jax.tree.leaves(state))


def check_divisible(batch: Batch, size: int) -> None:
  """Raises unless every leading dimension can be dealt out to `size` devices."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    rows = np.shape(leaf)[:1]
    if not rows or rows[0] % size:
      raise InputError(
        f'batch {arrays.path_label(path)!r}: found shape {np.shape(leaf)}, expected a leading dimension divisible by '
        f'{size} devices.'
      )


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
  """Deals a global batch out over the data axis of the mesh."""
  check_divisible(batch, mesh.shape[data_axis(mesh)])
  rows = NamedSharding(mesh, PartitionSpec(data_axis(mesh)))
  if not hosts.several():
    return jax.device_put(batch, rows)
  return jax.tree.map(lambda leaf: leaf if getattr(leaf, 'sharding', None) == rows else _put(leaf, rows), batch)


def global_batches(train, mesh: Mesh) -> Callable[[int, int], Batch]:
  """`(seed, step) -> batch` of several processes: each makes its own rows only, of the batch that one would have.

  The transform then runs on the whole batch, which lies dealt out, so that its draws are those of one process.

  Args:
    train: `data.Batches` or `data.Stream`.
    mesh: of all devices, one process's after another's.

  Raises:
    InputError: batches that cannot be had in parts, or that the devices do not divide; a model that processes
      share in part.
  """
  if not hasattr(train, 'shard'):
    found = type(train).__name__
    raise InputError(f'Experiment train: found {found} with several processes, expected data.Batches or data.Stream.')
  size = mesh.shape[data_axis(mesh)]
  if train.batch_size % size:
    raise InputError(
      f'batch_size: found {train.batch_size}, expected one that can be divided by {size}, the number of devices of '
      f'all {jax.process_count()} processes.'
    )
  rows = NamedSharding(mesh, PartitionSpec(data_axis(mesh)))
  # processes that share a model have the same rows
  held = sorted({index.start or 0 for (index,) in rows.addressable_devices_indices_map((size,)).values()})
  place, others = divmod(held[0], len(held))
  if others or size % len(held) or held[-1] - held[0] != len(held) - 1:
    raise InputError(
      f'model_devices: found {mesh.devices.size // size}, expected a number that divides the '
      f'{jax.local_device_count()} devices of a process, or a multiple of them.'
    )
  own = dataclasses.replace(train, shard=(place, size // len(held)), transform=None)
  transform = jax.jit(functools.partial(batching.transformed, train.transform), out_shardings=rows)

  def batch(seed, step):
    parts = jax.tree.map(np.asarray, own(seed, step))
    whole = jax.make_array_from_process_local_data(rows, parts)
    return whole if train.transform is None else transform(whole, batching.stamp(seed, step))

  return batch


def place(tree: PyTree, sharding: PyTree) -> PyTree:
  """Copies arrays, whole in every process, to where they belong; typed keys too."""
  if not hosts.several():
    return jax.device_put(tree, sharding, may_alias=False)
  return jax.tree.map(_put, tree, sharding)


def local(tree: PyTree) -> PyTree:
  """This process's copy of a state, on one device; of what is split, on the host. All processes have to call it."""
  if not hosts.several():
    return tree

  def copy(leaf):
    if leaf.is_fully_replicated:
      return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(copy, tree)


def _put(leaf, sharding):
  if jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.dtypes.prng_key):
    impl = jax.random.key_impl(leaf)
    wrap = jax.jit(lambda raw: jax.random.wrap_key_data(raw, impl=impl), out_shardings=sharding)
    return wrap(_put(jax.random.key_data(leaf), sharding))
  value = np.asarray(leaf)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def state_sharding(state: PyTree, mesh: Mesh, split_from: int = arrays.SPLIT_FROM) -> PyTree:
  """Replicated; with a mesh axis 'model' large leaves of two axes or more are split over it, along their largest."""
  size = mesh.shape['model'] if 'model' in mesh.axis_names and data_axis(mesh) != 'model' else 1

  def sharding(leaf):
    shape = np.shape(leaf)
    dims = [d for d, n in enumerate(shape) if n % size == 0]
    if size == 1 or len(shape) < 2 or math.prod(shape) < split_from or not dims:
      return NamedSharding(mesh, PartitionSpec())
    largest = max(dims, key=lambda d: shape[d])
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, 'model'))

  return jax.tree.map(sharding, state)
