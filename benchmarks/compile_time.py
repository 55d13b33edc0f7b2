"""The first step, trace and compilation together, without and with JAX's persistent cache; each in a fresh process.

  python benchmarks/compile_time.py

LeNet on 36x36 images, batch 256, three tasks, Adam for every part. `first` is the call of the compiled step until its
result is there, from a state that is there already; `trace` of it is what the cache cannot save. `cpu s` is processor
time, which other jobs on the machine do not lengthen.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time

import jax
from workloads import WORKLOADS, about

import mtljax as mtl

METHODS = {
  'equal': (mtl.balancing.equal, {}),
  'mgda': (mtl.balancing.mgda, {}),
  'upgrad': (mtl.balancing.upgrad, {}),
  'nash_mtl': (mtl.balancing.nash_mtl, {}),
  'upgrad at features': (mtl.balancing.upgrad, {'at': 'features'}),
}


def first_step(name: str, workload: str, tasks: int) -> tuple[float, ...]:
  """Seconds and processor seconds of the first step, and seconds of tracing."""
  balancer, options = METHODS[name]
  problem = dataclasses.replace(WORKLOADS[workload], tasks=tasks)
  model, tasks, optimizer = problem.problem()
  batch = problem.data()
  state = jax.block_until_ready(mtl.init_state(model, tasks, optimizer, balancer(), batch, jax.random.key(0)))
  step = mtl.make_train_step(model, tasks, optimizer, balancer(), **options)
  clock = time.perf_counter()
  jax.jit(lambda s, b: step(s, b)).lower(state, batch)
  trace = time.perf_counter() - clock
  compiled = mtl.compile_step(step)
  clock, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(compiled(state, batch))
  return time.perf_counter() - clock, time.process_time() - cpu, trace


def fresh(name: str, cache: str | None, args) -> list[float]:
  """Of a process of its own."""
  env = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))}
  if cache:
    env |= {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  command = [sys.executable, __file__, '--one', name, '--workload', args.workload, '--tasks', str(args.tasks)]
  return [float(x) for x in subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workload', default='lenet', choices=WORKLOADS)
  parser.add_argument('--tasks', type=int, default=3)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
  parser.add_argument('--one', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print(*first_step(args.one, args.workload, args.tasks))
    return
  print(about())
  print(f'{args.workload}, T = {args.tasks}, seconds{"without cache":>18}{"with":>15}')
  print(f'{"":<20}{"first":>8}{"cpu s":>8}{"first":>8}{"cpu s":>8}{"trace":>8}')
  for name in args.methods:
    cold, warm = [], []
    for _ in range(args.repeats):
      cold.append(fresh(name, None, args))
      with tempfile.TemporaryDirectory() as cache:
        fresh(name, cache, args)
        warm.append(fresh(name, cache, args))
    median = lambda rows, column: statistics.median(row[column] for row in rows)
    cells = [median(cold, 0), median(cold, 1), median(warm, 0), median(warm, 1), median(warm, 2)]
    print(f'{name:<20}' + ''.join(f'{cell:>8.2f}' for cell in cells), flush=True)


if __name__ == '__main__':
  main()
