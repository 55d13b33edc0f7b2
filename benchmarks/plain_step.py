"""The compiled `equal` step against the same step written by hand in plain JAX.

  python benchmarks/plain_step.py

Both train the same net on the same batch with Adam for every part. The two are called alternately in one run; what
counts is the ratio, the median over pairs of rounds. README.md beside this file has the table as printed.
"""

import argparse
import dataclasses
import platform
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl


@dataclasses.dataclass(frozen=True)
class Workload:
  """An MLP trunk with dense heads, T classification tasks."""

  inputs: int
  hidden: tuple[int, ...]
  batch: int
  tasks: int


WORKLOADS = {
  's8': Workload(32, (64, 64), 64, 8),
  'b2': Workload(128, (512,) * 4, 256, 2),
  'b8': Workload(128, (512,) * 4, 256, 8),
}


def by_hand(trunk, heads, learning_rate):
  """What a user would write for a sum of losses, without any of the library."""
  optimizers = {part: optax.adam(learning_rate) for part in ('trunk', *heads)}

  def objective(params, x, labels):
    z = trunk.apply({'params': params['trunk']}, x)
    losses = [
      optax.softmax_cross_entropy_with_integer_labels(heads[t].apply({'params': params[t]}, z), y).mean()
      for t, y in labels.items()
    ]
    return sum(losses), jnp.stack(losses)

  def step(params, opt_state, x, labels):
    grads, losses = jax.grad(objective, has_aux=True)(params, x, labels)
    new, new_opt = {}, {}
    for part, optimizer in optimizers.items():
      updates, new_opt[part] = optimizer.update(grads[part], opt_state[part], params[part])
      new[part] = optax.apply_updates(params[part], updates)
    return new, new_opt, losses

  def init(key, x):
    params = {'trunk': trunk.init(key, x)['params']}
    z = trunk.apply({'params': params['trunk']}, x)
    params |= {t: head.init(jax.random.fold_in(key, i), z)['params'] for i, (t, head) in enumerate(heads.items())}
    return params, {part: optimizer.init(params[part]) for part, optimizer in optimizers.items()}

  return init, jax.jit(step, donate_argnums=(0, 1))


def compare(workload: Workload, rounds: int, calls: int) -> tuple[float, float, float]:
  """Milliseconds a step of ours and by hand, and the median ratio."""
  r = np.random.default_rng(0)
  names = [f't{i}' for i in range(workload.tasks)]
  x = jnp.asarray(r.normal(size=(workload.batch, workload.inputs)), jnp.float32)
  labels = {n: jnp.asarray(r.integers(0, 10, workload.batch)) for n in names}
  trunk, heads = mtl.trunks.MLP(workload.hidden), {n: nn.Dense(10) for n in names}

  tasks = tuple(mtl.Task(n, loss=mtl.losses.softmax_cross_entropy) for n in names)
  model = mtl.sharing.hard(trunk, heads)
  optimizer = mtl.task_optimizer(shared=optax.adam(1e-3), tasks={n: optax.adam(1e-3) for n in names})
  batch = {'inputs': x, 'labels': labels}
  state = mtl.init_state(model, tasks, optimizer, mtl.balancing.equal(), batch, jax.random.key(0))
  ours = mtl.compile_step(mtl.make_train_step(model, tasks, optimizer, mtl.balancing.equal()))

  init, plain = by_hand(trunk, heads, 1e-3)
  params, opt_state = init(jax.random.key(0), x)

  def run_ours():
    nonlocal state
    start = time.perf_counter()
    for _ in range(calls):
      state, info = ours(state, batch)
    jax.block_until_ready((state.params, info.losses))
    return (time.perf_counter() - start) / calls

  def run_plain():
    nonlocal params, opt_state
    start = time.perf_counter()
    for _ in range(calls):
      params, opt_state, losses = plain(params, opt_state, x, labels)
    jax.block_until_ready((params, losses))
    return (time.perf_counter() - start) / calls

  run_ours(), run_plain()
  pairs = np.array([(run_ours(), run_plain()) for _ in range(rounds)])
  a, b = np.median(pairs, axis=0) * 1e3
  return a, b, float(np.median(pairs[:, 0] / pairs[:, 1]))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=40, help='pairs of rounds (default 40)')
  parser.add_argument('--calls', type=int, default=20, help='steps a round (default 20)')
  args = parser.parse_args()
  device = jax.devices()[0]
  print(f'jax {jax.__version__}, Python {platform.python_version()}, {device.platform} {device.device_kind}')
  print(f'{"workload":<10}{"mtljax ms":>12}{"by hand ms":>12}{"ratio":>8}')
  for name, workload in WORKLOADS.items():
    ours, plain, ratio = compare(workload, args.rounds, args.calls)
    print(f'{name:<10}{ours:>12.3f}{plain:>12.3f}{ratio:>8.3f}')


if __name__ == '__main__':
  main()
