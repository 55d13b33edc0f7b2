"""What the level of a method costs: the Gramian at features and at parameters against `equal`.

  python benchmarks/levels.py
  python benchmarks/levels.py --workloads b8 --columns "features: at='features'" "in two: chunk_size=2"

Columns are options of `make_train_step`, all with `mgda`, whose solver is less than 1 % of a step: `one by one`
forms rows in a loop (the default on a CPU), `at once` with one pullback, and no rows of kernels where that takes fewer
products (the default elsewhere). MLP 128-4x512, batch
256, Adam for every part. Steps are taken in turn in one run; medians of the ratio within a round,
± half the interquartile range; in brackets the ratio of the fastest rounds and that of processor time.
"""

import argparse

from workloads import WORKLOADS, Stepper, about, in_turn

import mtljax as mtl

COLUMNS = ("features: at='features'", 'one by one: chunk_size=1', 'at once: chunk_size=1000')


def options_of(column: str) -> tuple[str, dict]:
  """'name: key=value, ...' -> name and the options."""
  name, _, rest = column.partition(':')
  return name.strip(), eval(f'dict({rest})')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workloads', nargs='+', default=['b2', 'b8', 'b40'], choices=WORKLOADS)
  parser.add_argument('--columns', nargs='+', default=COLUMNS, help="'name: options of make_train_step'")
  parser.add_argument('--rounds', type=int, default=25)
  args = parser.parse_args()
  columns = dict(map(options_of, args.columns))
  print(about())
  print(f'{"step / equal":<14}{"equal ms":>10}' + ''.join(f'{name:>28}' for name in columns))
  for name in args.workloads:
    workload = WORKLOADS[name]
    steps = {'equal': Stepper(workload, mtl.balancing.equal())}
    steps |= {column: Stepper(workload, mtl.balancing.mgda(), **options) for column, options in columns.items()}
    seconds, ratio = in_turn(steps, args.rounds)
    cells = [f'{ratio(column, "equal")!s:>28}' for column in columns]
    print(f'{name:<14}{1e3 * seconds["equal"]:>10.2f}' + ''.join(cells), flush=True)


if __name__ == '__main__':
  main()
