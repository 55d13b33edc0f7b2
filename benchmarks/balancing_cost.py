"""What every balancing method costs: whole steps against `equal`, and the share of the solvers.

  python benchmarks/balancing_cost.py                  all of it: half an hour to an hour, most of it compilation
  python benchmarks/balancing_cost.py --methods cagrad,mgda    these only; the others stay as they were measured

Steps: MLP 128-4x512, batch 256, T dense heads of 10, Adam for every part. A method and `equal` are called in turn in
one run; what counts is the median over rounds of the ratio within a round.

Solvers: `update` alone, compiled, on the Gramian of that net after a few steps (plain) and on one whose rows nearly
cancel (conflict), in turn with the `equal` step; the share of the method's own step follows from the ratio of a step
that computes the same Gramian and solves nothing.

Writes balancing_cost.json beside this file, from which docs/make_balancing.py takes its columns.
"""

import argparse
import datetime
import inspect
import json
import os
import pathlib
import platform
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl
from mtljax import balancing

PATH = pathlib.Path(__file__).with_suffix('.json')
COST_TASKS = (2, 8, 40)
SOLVER_TASKS = (2, 8, 16, 32, 64)
AT_FEATURES = ('mgda', 'cagrad', 'nash_mtl', 'upgrad')
INNER = 'cagrad()'  # of the wrappers: what they add is small beside it
LIMIT = 15  # percent of a step that a solver may take


def is_wrapper(name: str) -> bool:
  return 'inner' in inspect.signature(balancing.METHODS[name]).parameters


def make(name: str, size: int):
  """The method with its defaults; what has none gets a sensible value."""
  return balancing.parse(f'{name}({INNER})' if is_wrapper(name) else name, steps_per_epoch=100, weights=(1.0,) * size)


class Timed:
  """Something to call; `seconds` is about what a call takes."""

  def warm_up(self):
    self.run(1)
    self.seconds = min(self.run(1) for _ in range(2))

  def run(self, calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
      out = self.once()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls

  def calls(self, seconds: float) -> int:
    return int(np.clip(round(seconds / self.seconds), 1, 1000))


class Runner(Timed):
  """A compiled step with its state."""

  def __init__(self, balancer, size: int, at: str = 'params'):
    r = np.random.default_rng(0)
    names = [f't{i}' for i in range(size)]
    x = jnp.asarray(r.normal(size=(256, 128)), jnp.float32)
    self.batch = {'inputs': x, 'labels': {n: jnp.asarray(r.integers(0, 10, 256)) for n in names}}
    tasks = tuple(mtl.Task(n, loss=mtl.losses.softmax_cross_entropy) for n in names)
    model = mtl.sharing.hard(mtl.trunks.MLP((512,) * 4), {n: nn.Dense(10) for n in names})
    optimizer = mtl.task_optimizer(shared=optax.adam(1e-3), tasks={n: optax.adam(1e-3) for n in names})
    self.state = mtl.init_state(model, tasks, optimizer, balancer, self.batch, jax.random.key(0))
    self.step = mtl.compile_step(mtl.make_train_step(model, tasks, optimizer, balancer, at=at))
    self.warm_up()

  def once(self):
    self.state, self.info = self.step(self.state, self.batch)
    return self.state, self.info


class Solver(Timed):
  """A compiled `update`, always of the same state."""

  def __init__(self, balancer, G, losses):
    update, state = jax.jit(balancer.update), balancer.init(G)
    rest = dict(losses=losses, present=jnp.ones(len(G), bool), key=jax.random.key(0), step=jnp.zeros((), jnp.int32))
    self.once = lambda: update(G, state, **rest)
    self.warm_up()


def compare(method: Timed, equal: Timed, seconds: float) -> float:
  """The median over rounds of method / equal, taken in turn."""
  rounds = int(np.clip(seconds / (0.1 + method.seconds), 3, 15))
  m, e = method.calls(0.05), equal.calls(max(0.05, method.seconds / 3))
  return float(np.median([method.run(m) / equal.run(e) for _ in range(rounds)]))


def measure_costs(names, result, seconds, save):
  """Whole steps."""
  rows = {(n, at): {} for n in names for at in ('params', *(('features',) if n in AT_FEATURES else ()))}
  for size in COST_TASKS:
    equal = Runner(balancing.equal(), size)
    result['equal_ms'][str(size)] = round(equal.seconds * 1e3, 2)
    for name, at in rows:
      _note(f'{name} at {at}, T={size}')
      balancer = make(name, size)
      ratio = 1.0 if name == 'equal' else compare(Runner(balancer, size, at), equal, seconds)
      entry = result['cost'].setdefault(name, {})
      entry['level'] = balancer.level
      entry.setdefault(at, {})[str(size)] = rows[name, at][size] = round(ratio, 2)
      save()
  print(f'\nstep time relative to equal\n{"method":<18}{"level":<10}{"at":<10}' + _header(COST_TASKS))
  for (name, at), row in rows.items():
    print(f'{name:<18}{result["cost"][name]["level"]:<10}{at:<10}' + ''.join(f'{row[T]:>8.2f}' for T in COST_TASKS))


def measure_solvers(names, result, seconds, save):
  """`update` alone."""
  unsolved = mtl.Balancer(lambda g: (), lambda g, s, /, *, losses, **_: (jnp.ones_like(losses), s), 'gramian')
  methods = [n for n in names if not is_wrapper(n) and make(n, 2).level == 'gramian']
  if not methods:
    return
  for size in SOLVER_TASKS:
    _note(f'solvers, T={size}')
    equal, step = Runner(balancing.equal(), size), Runner(unsolved, size)
    steps = compare(step, equal, 2 * seconds)  # in units of the equal step
    result['solver_steps'][str(size)] = {'equal_ms': round(equal.seconds * 1e3, 2), 'over_equal': round(steps, 2)}
    centre = np.eye(size) - 0.8 / size
    plain = np.asarray(step.info.gramian, np.float64)
    gramians = {'plain': plain, 'conflict': centre @ plain @ centre.T}
    for name in methods:
      for kind, G in gramians.items():
        solver = Solver(make(name, size), jnp.asarray(G, jnp.float32), step.info.losses)
        share = compare(solver, equal, seconds / 3)
        shares = {'of_step': round(100 * share / (steps + share), 2), 'of_equal': round(100 * share, 2)}
        entry = result['solver'].setdefault(name, {}).setdefault(str(size), {})
        entry[kind] = {'ms': round(solver.seconds * 1e3, 4), **shares}
    save()


def print_solvers(names, result):
  """The worse of the two Gramians, and what exceeds the limit."""
  rows = {n: row for n, row in result['solver'].items() if n in names}
  for share, of in (('of_step', "the method's own step"), ('of_equal', 'the equal step')):
    print(f'\nsolver, percent of {of}\n{"method":<18}' + _header(SOLVER_TASKS))
    for name, row in rows.items():
      worst = [max(kind[share] for kind in row[str(T)].values()) for T in SOLVER_TASKS]
      print(f'{name:<18}' + ''.join(f'{w:>8.2f}' for w in worst))
    over = [
      f'{name} at T={T} ({kind}: {entry[share]:.0f} %)'
      for name, row in rows.items()
      for T, kinds in row.items()
      for kind, entry in kinds.items()
      if entry[share] > LIMIT
    ]
    print(f'above {LIMIT} %: {", ".join(over) or "none"}')


def _note(text):
  print(f'{text:<60}', end='\r', file=sys.stderr, flush=True)


def _header(sizes) -> str:
  return ''.join(f'{"T=" + str(T):>8}' for T in sizes)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--methods', default=None, help='comma-separated names (default: all)')
  parser.add_argument('--parts', default='costs,solvers', help='costs, solvers or both (default)')
  parser.add_argument('--seconds', type=float, default=1.5, help='measuring time for a method and a T (default 1.5)')
  args = parser.parse_args()
  names = args.methods.split(',') if args.methods else list(balancing.METHODS)
  result = json.loads(PATH.read_text()) if PATH.exists() else {}
  for part in ('cost', 'equal_ms', 'solver', 'solver_steps'):
    result.setdefault(part, {})
  for part in ('cost', 'solver'):  # methods that are gone
    result[part] = {n: row for n, row in result[part].items() if n in balancing.METHODS}
  device = jax.devices()[0]
  about = {
    'jax': jax.__version__,
    'python': platform.python_version(),
    'device': f'{device.platform} {device.device_kind}',
    'cpus': len(os.sched_getaffinity(0)),
    'date': datetime.date.today().isoformat(),
    'workload': 'MLP 128-4x512, batch 256, T heads of 10, float32, Adam',
  }
  print(', '.join(f'{key} {value}' for key, value in about.items()), f'load {os.getloadavg()[0]:.1f}', sep=', ')
  save = lambda: PATH.write_text(json.dumps(about | result, indent=1) + '\n')
  start = time.perf_counter()
  if 'costs' in args.parts:
    measure_costs(names, result, args.seconds, save)
  if 'solvers' in args.parts:
    measure_solvers(names, result, args.seconds, save)
    print_solvers(names, result)
  print(f'\n{(time.perf_counter() - start) / 60:.1f} minutes, load {os.getloadavg()[0]:.1f}; wrote {PATH.name}')


if __name__ == '__main__':
  main()
