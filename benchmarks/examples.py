"""Examples as objectives: the step of UPGrad's family on per-example losses against rows that are made.

  python benchmarks/examples.py

An MLP of 4 x 512 on 128 inputs, two tasks. `factors` is `objectives='examples'`; `rows` builds the per-example
gradients with `vmap(grad)` and multiplies them out, as one would by hand; both end with the same mgda and Adam. Times
are relative to the plain step, alternately in one run; memory is what the compiler reserves for temporaries.
"""

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl

NAMES = ('digit', 'size')


def problem(size):
  r = np.random.default_rng(0)
  batch = {
    'inputs': jnp.asarray(r.normal(size=(size, 128)), jnp.float32),
    'labels': {
      'digit': jnp.asarray(r.integers(0, 10, size)),
      'size': jnp.asarray(r.normal(size=(size, 4)), jnp.float32),
    },
  }
  model = mtl.sharing.hard(mtl.trunks.MLP((512,) * 4), {'digit': nn.Dense(10), 'size': nn.Dense(4)})
  tasks = (
    mtl.Task('digit', loss=mtl.losses.softmax_cross_entropy),
    mtl.Task('size', loss=mtl.losses.squared_error),
  )
  optimizer = mtl.task_optimizer(shared=optax.adam(1e-3), tasks={name: optax.adam(1e-3) for name in NAMES})
  return model, tasks, optimizer, batch


def library(size, objectives, balancer):
  model, tasks, optimizer, batch = problem(size)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0), objectives=objectives)
  step = mtl.make_train_step(model, tasks, optimizer, balancer, objectives=objectives)
  return jax.jit(step), state, batch


def by_hand(size, balancer):
  """The same step with rows: per-example gradients of the trunk as one Jacobian."""
  model, tasks, optimizer, batch = problem(size)
  state = mtl.init_state(model, tasks, optimizer, balancer, batch, jax.random.key(0), objectives='examples')

  def loss(params, x, labels):
    z, _ = model.trunk(params['shared'], {}, x[None], tasks=NAMES, train=True, key=None)
    total = 0.0
    for task in tasks:
      y, _ = model.head(params['tasks'][task.name], {}, z, task=task.name, train=True, key=None)
      total += task.loss(y, labels[task.name][None]).mean() / size
    return total

  def step(state, batch):
    rows = jax.vmap(jax.grad(loss), (None, 0, 0))(state.params, batch['inputs'], batch['labels'])
    found = mtl.balancing.aggregate(balancer, rows['shared'], state=state.balancer_state, step=state.step)
    heads = jax.tree.map(lambda g: g.sum(0), rows['tasks'])
    updates, opt_state = optimizer.update({'shared': found.direction, 'tasks': heads}, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, balancer_state=found.state
    ), found.weights

  return jax.jit(step), state, batch


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--sizes', type=int, nargs='+', default=[16, 64, 128])
  parser.add_argument('--rounds', type=int, default=7)
  options = parser.parse_args()
  print(f'jax {jax.__version__}, {jax.default_backend()}')
  print(f'{"batch":>5} {"plain ms":>9} {"factors":>8} {"rows":>8} {"factors MB":>11} {"rows MB":>8}')
  for size in options.sizes:
    runs = {
      'plain': library(size, 'tasks', mtl.balancing.equal()),
      'factors': library(size, 'examples', mtl.balancing.mgda()),
      'rows': by_hand(size, mtl.balancing.mgda()),
    }
    compiled = {name: step.lower(state, batch).compile() for name, (step, state, batch) in runs.items()}
    moments = [jax.tree.leaves(compiled[name](*runs[name][1:])[0].opt_state) for name in ('factors', 'rows')]
    gap = max(float(jnp.abs(a - b).max() / jnp.abs(b).max().clip(1e-30)) for a, b in zip(*moments, strict=True))
    assert gap < 1e-4, gap  # Adam's moments after a step: the two gradients are one
    times = {name: [] for name in runs}
    for _ in range(options.rounds):
      for name, call in compiled.items():
        clock = time.perf_counter()
        jax.block_until_ready(call(*runs[name][1:]))
        times[name].append(1e3 * (time.perf_counter() - clock))
    ratio = {n: statistics.median(a / b for a, b in zip(times[n], times['plain'], strict=True)) for n in times}
    memory = {name: call.memory_analysis().temp_size_in_bytes / 2**20 for name, call in compiled.items()}
    print(
      f'{size:5} {statistics.median(times["plain"]):9.2f} {ratio["factors"]:8.2f} {ratio["rows"]:8.2f} '
      f'{memory["factors"]:11.1f} {memory["rows"]:8.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
