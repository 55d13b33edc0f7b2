"""One step on many devices: every mode takes and returns the same things, with the same numbers to float rounding."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtljax import arrays
from mtljax.base import Batch, InputError, PyTree

MODES = ('jit', 'pmap', 'shard_map', 'sharded')
AXIS = 'data'


def compile_step(step: Callable, mode: str = 'jit', mesh: Mesh | None = None, donate: bool = True) -> Callable:
  """Compiles a train step: `(state, batch, *, extras={}) -> (state, StepInfo)` in every mode.

  Args:
    step: from `make_train_step`.
    mode: 'jit', one device; 'shard_map' and 'pmap', every device takes a slice of the batch and the Jacobian is summed
      over devices; 'sharded', the compiler places the collectives (jit over NamedSharding), and with a second mesh axis
      'model' parameters and optimiser state are split over it.
    mesh: of devices, one axis for the data; None takes all devices.
    donate: the state's buffers are reused, the state that was passed in is gone.

  Returns:
    The compiled step: one state without a device axis, one global batch.

  Raises:
    InputError: an unknown mode, a mesh that does not fit it; when called, a batch that the devices do not divide.
  """
  if mode not in MODES:
    raise InputError(f'mode: found {mode!r}, expected one of {MODES}.')
  donated = (0,) if donate else ()
  if mode == 'jit':
    if mesh is not None:
      raise InputError("mesh: found one with mode='jit', which runs on one device; use 'sharded' or 'shard_map'.")
    return _Compiled(jax.jit(lambda s, b, e: step(s, b, extras=e), donate_argnums=donated), None, None)
  mesh = mesh if mesh is not None else Mesh(np.array(jax.devices()), (AXIS,))
  if mode != 'sharded' and len(mesh.axis_names) != 1:
    raise InputError(f'mesh: found axes {mesh.axis_names}, expected one axis for mode={mode!r}.')
  axis, size = mesh.axis_names[0], mesh.devices.shape[0]
  spec = PartitionSpec

  if mode == 'sharded':
    compiled = jax.jit(lambda s, b, e: _keep_sharding(step(s, b, extras=e), mesh), donate_argnums=donated)
  else:

    def local(state, batch, extras):
      return step(state, batch, extras=extras, axis_name=axis)

    if mode == 'shard_map':
      # check_vma=False: sums over devices are written out in the step; with it, vjp would sum the Jacobian once more
      specs = dict(in_specs=(spec(), spec(axis), spec()), out_specs=spec(), check_vma=False)
      compiled = jax.jit(jax.shard_map(local, mesh=mesh, **specs), donate_argnums=donated)
    else:
      mapped = jax.pmap(
        local,
        axis_name=axis,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=donated,
        devices=list(mesh.devices.flat),
      )

      def compiled(state, batch, extras):
        return mapped(state, jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), batch), extras)

  return _Compiled(compiled, mesh, size, place_batch=mode != 'pmap')


class _Compiled:
  """Checks the batch and places state and batch, then calls the compiled function."""

  def __init__(self, compiled, mesh, size, place_batch=True):
    self.compiled, self.mesh, self.size, self.place_batch = compiled, mesh, size, place_batch

  def __call__(self, state, batch, *, extras=None):
    extras = extras or {}
    if self.mesh is None:
      return self.compiled(state, batch, extras)
    check_divisible(batch, self.size)
    if getattr(state.step.sharding, 'mesh', None) != self.mesh:  # the first call: later ones get what the step returned
      state = jax.device_put(state, state_sharding(state, self.mesh), may_alias=False)
    if self.place_batch:
      batch = shard_batch(batch, self.mesh)
    return self.compiled(state, batch, extras)


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
  """Deals a global batch out over the first axis of the mesh."""
  check_divisible(batch, mesh.devices.shape[0])
  return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
  """Replicated; with a mesh axis 'model', leaves of two axes or more are split over it along their largest axis."""
  size = mesh.shape['model'] if 'model' in mesh.axis_names[1:] else 1

  def sharding(leaf):
    shape = np.shape(leaf)
    dims = [d for d, n in enumerate(shape) if n % size == 0]
    if size == 1 or len(shape) < 2 or not dims:
      return NamedSharding(mesh, PartitionSpec())
    largest = max(dims, key=lambda d: shape[d])
    return NamedSharding(mesh, PartitionSpec(*(None,) * largest, 'model'))

  return jax.tree.map(sharding, state)


def _keep_sharding(result, mesh):
  """The new state lies where the old one lay, so that the next call recompiles nothing."""
  state, info = result
  return jax.lax.with_sharding_constraint(state, state_sharding(state, mesh)), info
