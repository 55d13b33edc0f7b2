"""Seeds as lanes of one compiled program against the same runs one after the other.

  python benchmarks/lanes.py

Two ratios, time one after the other / time as lanes: `steps`, with everything compiled beforehand, rounds taken
alternately in one run; and `whole`, where every run traces and compiles as a command of its own would, for a budget of
2000 steps. README.md beside this file has the table as printed.
"""

import argparse
import platform
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl

TRUNKS = {
  'MLP 100-64-64': lambda: mtl.trunks.MLP((64, 64)),
  'LeNet of multi_digits': lambda: mtl.trunks.LeNet(features=(48,), hidden=128, kernel_size=3),
}


def problem(trunk, batch_size=32):
  r = np.random.default_rng(0)
  names = ('left', 'right')
  labels = {n: jnp.asarray(r.integers(0, 10, batch_size)) for n in names}
  batch = {'inputs': jnp.asarray(r.uniform(size=(batch_size, 10, 10, 1)), jnp.float32), 'labels': labels}
  tasks = tuple(mtl.Task(n, loss=mtl.losses.softmax_cross_entropy) for n in names)
  model = mtl.sharing.hard(trunk(), {n: nn.Dense(10) for n in names})
  adam = optax.adam(1e-3)
  optimizer = mtl.task_optimizer(shared=adam, tasks={n: adam for n in names})
  balancer = mtl.balancing.equal()
  init = lambda key: mtl.init_state(model, tasks, optimizer, balancer, batch, key)
  return init, mtl.make_train_step(model, tasks, optimizer, balancer), batch


def measure(trunk, lanes, rounds, calls, budget=2000):
  init, step, batch = problem(trunk)
  keys = jax.random.split(jax.random.key(0), lanes)

  def compile_one():
    return jax.jit(lambda s, b: step(s, b), donate_argnums=0).lower(init(keys[0]), batch).compile()

  def compile_lanes():
    states = jax.jit(jax.vmap(init))(keys)
    return jax.jit(jax.vmap(lambda s, b: step(s, b), (0, None)), donate_argnums=0).lower(states, batch).compile()

  clock = time.perf_counter()
  one = compile_one()
  compiling_one = time.perf_counter() - clock
  clock = time.perf_counter()
  many = compile_lanes()
  compiling_many = time.perf_counter() - clock

  singles, stack = [init(key) for key in keys], jax.vmap(init)(keys)

  def run_singles():
    clock = time.perf_counter()
    for i in range(lanes):
      for _ in range(calls):
        singles[i], info = one(singles[i], batch)
      jax.block_until_ready(info.losses)
    return (time.perf_counter() - clock) / calls

  def run_lanes():
    nonlocal stack
    clock = time.perf_counter()
    for _ in range(calls):
      stack, info = many(stack, batch)
    jax.block_until_ready(info.losses)
    return (time.perf_counter() - clock) / calls

  run_singles(), run_lanes()
  pairs = np.array([(run_singles(), run_lanes()) for _ in range(rounds)])
  apart, together = np.median(pairs, axis=0)
  steps = float(np.median(pairs[:, 0] / pairs[:, 1]))
  whole = (lanes * compiling_one + budget * apart) / (compiling_many + budget * together)
  return apart * 1e3, together * 1e3, steps, whole


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--lanes', type=int, default=8, help='seeds (default 8)')
  parser.add_argument('--rounds', type=int, default=10, help='pairs of rounds (default 10)')
  parser.add_argument('--calls', type=int, default=30, help='steps a round (default 30)')
  args = parser.parse_args()
  device = jax.devices()[0]
  print(f'jax {jax.__version__}, Python {platform.python_version()}, {device.platform}')
  print(f'{args.lanes} seeds, milliseconds for a step of all of them')
  print(f'{"trunk":<24}{"one by one":>12}{"lanes":>10}{"steps":>8}{"whole":>8}')
  for name, trunk in TRUNKS.items():
    apart, together, steps, whole = measure(trunk, args.lanes, args.rounds, args.calls)
    print(f'{name:<24}{apart:>12.2f}{together:>10.2f}{steps:>8.2f}{whole:>8.2f}')


if __name__ == '__main__':
  main()
