"""From one device to several with the same batch each: what a device computes, and what it sends.

  python benchmarks/weak_scaling.py
  python benchmarks/weak_scaling.py --workloads lenet --methods mgda --modes sharded --show
  python benchmarks/weak_scaling.py --workloads lenet --methods mgda --modes sharded --constrain

Virtual devices of one CPU: no times, but the compiled program of one device of n, which is what a cluster would run.
`work` is the compiler's count of flops for it, over that of one device alone with the same batch: above 1 is work that
grows with the devices. `balancing` is what the Gramian, the solver and w J take of the step's flops and of the bytes
that it touches, and `sent` what a device sends in collectives made as rings, in MB and as a share of those bytes: of an
all-reduce of n devices 2 (n - 1) / n of its array, of a reduce-scatter and of an all-gather half as much. `mgda` pulls
back all rows at once, as on accelerators. A loop's body counts once, so of what `one by one` sends in its loop, T times
as much is sent. Collectives are listed by kind, with how many there are and the largest array.
`--show` prints them with the place in the source that they come from; `--impl lax` takes the convolutions of
accelerators; `--constrain` pins the batch axis of inputs and features.
"""

import argparse
import collections
import dataclasses
import os
import re

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from workloads import WORKLOADS, Workload, about

import mtljax as mtl
from mtljax import arrays, linalg, parallel

linalg.PIECE = 2**40  # of a loop over pieces of rows the compiler's count would have one
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
BYTES = {'f64': 8, 's64': 8, 'u64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's8': 1, 'u8': 1, 'pred': 1}
SHAPE = re.compile(r'\b(' + '|'.join(BYTES) + r')\[([\d,]*)\]')
METHODS = {
  'equal': ('equal', {}),
  'mgda': ('mgda', {'chunk_size': 1000}),
  'features': ('mgda', {'at': 'features'}),
  'one by one': ('mgda', {'chunk_size': 1}),
}


@dataclasses.dataclass(frozen=True)
class Collective:
  kind: str
  size: int  # bytes of the whole array: of the result, of a reduce-scatter of the operand
  result: str
  source: str

  def sent(self, devices: int) -> float:
    """Bytes of one device, in a ring."""
    return self.size * (devices - 1) / devices * (2 if self.kind == 'all-reduce' else 1)


def mesh_of(**axes: int) -> Mesh:
  """Of the first virtual devices."""
  return Mesh(np.array(jax.devices()[: np.prod([*axes.values()])]).reshape(*axes.values()), tuple(axes))


def compiled_step(workload: Workload, method: str, mode: str, mesh: Mesh, constrain: bool = False):
  """The program of one device."""
  name, options = METHODS[method]
  model, tasks, optimizer = workload.problem()
  balancer, batch = mtl.balancing.parse(name), workload.data()
  if constrain:
    model = constrained(model, mesh)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0))
  step = mtl.compile_step(mtl.make_train_step(model, tasks, optimizer, balancer, **options), mode, mesh)
  # what the compiled step does at its first call, up to the compilation
  state = jax.device_put(state, parallel.state_sharding(state, mesh))
  batch = parallel.shard_batch(batch, mesh)
  raw = jax.device_put(jax.random.key_data(state.key), NamedSharding(mesh, PartitionSpec()))
  program = step._compile(jax.random.key_impl(state.key))
  return program.lower(state.replace(key=None), raw, batch, {}).compile()


def constrained(model, mesh):
  """The model with the batch axis of the trunk's inputs and features pinned to the devices."""
  rows = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
  pin = lambda tree: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), tree)

  def trunk(params, state, inputs, **rest):
    features, state = model.trunk(params, state, pin(inputs), **rest)
    return pin(features), state

  return model._replace(trunk=trunk)


def with_impl(workload: Workload, impl: str | None) -> Workload:
  """The workload with another way of computing convolutions."""
  trunk = lambda dtype=None: workload.trunk(dtype=dtype).clone(impl=impl)
  return workload if impl is None else dataclasses.replace(workload, trunk=trunk)


def balancing(workload: Workload, method: str, devices: int) -> dict[str, float]:
  """Cost of what comes after the Jacobian and before the optimiser, on one device: the Gramian, the solver, w J.

  At features, where rows need not be there, it is what a step takes more than that of `equal`.

  Args:
    devices: over how many the rows are dealt out.
  """
  name, options = METHODS[method]
  balancer = mtl.balancing.parse(name)
  if balancer.level == 'losses':
    return {'flops': 0.0, 'bytes accessed': 0.0}
  if options.get('at') == 'features':
    with_method, without = (
      compiled_step(workload, name, 'shard_map', mesh_of(data=1)).cost_analysis() for name in (method, 'equal')
    )
    return {kind: with_method[kind] - without[kind] for kind in ('flops', 'bytes accessed')}
  model, _, _ = workload.problem()
  T, given = workload.tasks, {task: workload.data()['inputs'] for task in workload.names}
  rows = jax.eval_shape(lambda key: model.init(key, given), jax.random.key(0))[0]['shared']
  own = lambda leaf: (-(-leaf.size // devices),) if leaf.size >= arrays.SPLIT_FROM else leaf.shape
  jacobian = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((T, *own(leaf)), leaf.dtype), rows)

  def run(jacobian):
    G = linalg.gramian(jacobian)
    rest = dict(losses=jnp.ones(T), present=jnp.ones(T, bool), key=jax.random.key(0), step=jnp.zeros((), jnp.int32))
    return linalg.combine(balancer.update(G, balancer.init(G), **rest)[0], jacobian)

  return jax.jit(run).lower(jacobian).compile().cost_analysis()


def collectives(hlo: str, devices: int) -> list[Collective]:
  """Of the compiled program of one of several devices."""
  found = []
  for line in hlo.splitlines():
    head = re.match(r'\s*(?:ROOT )?%?[\w.-]+ = (.+?) (' + '|'.join(KINDS) + r')(-start)?\(', line)
    if head:
      size = sum(
        BYTES[dtype] * int(np.prod([int(n) for n in dims.split(',') if n])) for dtype, dims in SHAPE.findall(head[1])
      )
      size *= devices if head[2] == 'reduce-scatter' else 1
      where = re.search(r'op_name="([^"]*)"', line)
      found.append(Collective(head[2], size, head[1], where[1] if where else ''))
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workloads', nargs='+', default=['b8', 'lenet'], choices=WORKLOADS)
  parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
  parser.add_argument('--modes', nargs='+', default=['shard_map', 'sharded'], choices=['shard_map', 'sharded'])
  parser.add_argument('--devices', type=int, default=4)
  parser.add_argument('--show', action='store_true', help='the largest collectives, with their source')
  parser.add_argument('--impl', choices=['lax', 'im2col'], help='of convolutions (default: as on the CPU, im2col)')
  parser.add_argument('--constrain', action='store_true', help='pin the batch axis of inputs and features')
  args = parser.parse_args()
  print(about())
  heading = f'{"balancing":>11}{"of bytes":>10}{"sent MB":>9}{"of bytes":>10}  collectives'
  print(f'{"":<8}{"method":<12}{"mode":<11}{"work":>7}' + heading)
  for name in args.workloads:
    workload = with_impl(WORKLOADS[name], args.impl)
    for mode in args.modes:
      for method in args.methods:
        cost = {}
        for devices in (1, args.devices):
          larger = dataclasses.replace(workload, batch=workload.batch * devices)
          program = compiled_step(larger, method, mode, mesh_of(data=devices), args.constrain)
          cost[devices] = program.cost_analysis()
        found = collectives(program.as_text(), args.devices)
        sent = sum(item.sent(args.devices) for item in found)
        flops = cost[args.devices]['flops']
        share = balancing(workload, method, args.devices if mode == 'shard_map' else 1)
        touched = cost[args.devices]['bytes accessed']
        kinds = collections.Counter(item.kind for item in found)
        largest = {kind: max(item.size for item in found if item.kind == kind) for kind in kinds}
        listed = ', '.join(f'{n} {kind} (up to {largest[kind] / 2**20:.2f} MB)' for kind, n in kinds.items())
        print(
          f'{name:<8}{method:<12}{mode:<11}{flops / cost[1]["flops"]:>7.3f}{share["flops"] / flops:>11.2%}'
          f'{share["bytes accessed"] / touched:>10.2%}{sent / 2**20:>9.2f}{sent / touched:>10.2%}  {listed}',
          flush=True,
        )
        if args.show:
          for item in sorted(found, key=lambda item: -item.size)[:8]:
            print(f'    {item.kind:<12}{item.size / 2**20:>8.2f} MB  {item.result[:90]}  {item.source}')


if __name__ == '__main__':
  main()
