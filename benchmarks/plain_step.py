"""The compiled `equal` step against the same step written by hand in plain JAX.

  python benchmarks/plain_step.py

Both train the same net on the same batch with Adam for every part. The two are called in turn in one run; what counts
is the ratio, the median over rounds (± half the interquartile range); `fastest` is that of the fastest rounds,
`cpu` that of processor time.
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from workloads import WORKLOADS, Stepper, Workload, about, in_turn

import mtljax as mtl


class ByHand:
  """What a user would write for a sum of losses, without any of the library."""

  def __init__(self, workload: Workload, learning_rate: float = 1e-3):
    trunk, heads = workload.trunk(), workload.heads()
    optimizers = {part: optax.adam(learning_rate) for part in ('trunk', *heads)}
    self.batch = workload.data()

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

    key, x = jax.random.key(0), self.batch['inputs']
    params = {'trunk': trunk.init(key, x)['params']}
    z = trunk.apply({'params': params['trunk']}, x)
    params |= {t: head.init(jax.random.fold_in(key, i), z)['params'] for i, (t, head) in enumerate(heads.items())}
    self.state = params, {part: optimizer.init(params[part]) for part, optimizer in optimizers.items()}
    self.step = jax.jit(step, donate_argnums=(0, 1))

  def __call__(self):
    *self.state, losses = self.step(*self.state, self.batch['inputs'], self.batch['labels'])
    return self.state, losses


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workloads', nargs='+', default=['s8', 'b2', 'b8', 'lenet', 'resnet'], choices=WORKLOADS)
  parser.add_argument('--rounds', type=int, default=100, help='pairs of rounds (default 100)')
  args = parser.parse_args()
  print(about())
  print(f'{"workload":<10}{"mtljax ms":>12}{"by hand ms":>12}{"ratio":>10}{"±":>8}{"fastest":>10}{"cpu":>8}')
  for name in args.workloads:
    steps = {'ours': Stepper(WORKLOADS[name], mtl.balancing.equal()), 'by hand': ByHand(WORKLOADS[name])}
    seconds, ratio = in_turn(steps, args.rounds, limit=30)
    found = ratio('ours', 'by hand')
    cells = f'{found.median:>10.3f}{found.spread:>8.3f}{found.best:>10.3f}{found.cpu:>8.3f}'
    print(f'{name:<10}{1e3 * seconds["ours"]:>12.3f}{1e3 * seconds["by hand"]:>12.3f}{cells}', flush=True)


if __name__ == '__main__':
  main()
