"""What the compiler reserves for a step, against the number of tasks.

  python benchmarks/memory.py
  python benchmarks/memory.py --columns "in two: chunk_size=2" --tasks 2 8

MLP 128-4x512, batch 256, Adam for every part; nothing is run. MB of temporaries in the compiled step: what is alive at
once besides the state, the batch and the results. Columns are options of `make_train_step`, with `mgda` where nothing
else is said: `one by one` forms rows in a loop (the default on a CPU), `at once` with one pullback, and no rows of
kernels where that takes fewer products; `bf16` computes trunk and heads in bfloat16. `T rows` is what the rows of the
Jacobian take.
"""

import argparse
import dataclasses

import jax
from levels import options_of
from workloads import WORKLOADS, about, mlp

import mtljax as mtl

COLUMNS = (
  "equal: method='equal'",
  'one by one: chunk_size=1',
  'at once: chunk_size=1000',
  "features: at='features'",
  'accumulate=4: accumulate=4',
  'remat: remat=True',
  "bf16: dtype='bfloat16'",
)


def reserved(workload, *, method: str = 'mgda', dtype=None, **options) -> tuple[float, float]:
  """MB of temporaries, and of one row of the Jacobian."""
  model, tasks, optimizer = workload.problem(dtype)
  batch, balancer = workload.data(), mtl.balancing.parse(method)
  state = jax.eval_shape(lambda: mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0)))
  step = mtl.make_train_step(model, tasks, optimizer, balancer, **options)
  compiled = jax.jit(lambda s, b: step(s, b), donate_argnums=0).lower(state, batch).compile()
  row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params['shared']))
  return compiled.memory_analysis().temp_size_in_bytes / 2**20, row / 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--tasks', type=int, nargs='+', default=[2, 4, 8, 16, 32, 64])
  parser.add_argument('--workload', default=None, choices=WORKLOADS, help='default: MLP 128-4x512, batch 256')
  parser.add_argument('--columns', nargs='+', default=COLUMNS, help="'name: options of make_train_step'")
  args = parser.parse_args()
  columns = dict(map(options_of, args.columns))
  print(about())
  print(f'{"T":>4}{"T rows":>10}' + ''.join(f'{name:>13}' for name in columns) + '   MB')
  for T in args.tasks:
    workload = mlp(T) if args.workload is None else dataclasses.replace(WORKLOADS[args.workload], tasks=T)
    found = [reserved(workload, **options) for options in columns.values()]
    print(f'{T:>4}{T * found[0][1]:>10.1f}' + ''.join(f'{temp:>13.1f}' for temp, _ in found), flush=True)


if __name__ == '__main__':
  main()
