"""Parameters and optimiser split over devices (mode 'sharded', mesh axis 'model'): what each holds, reserves and sends.

  python benchmarks/split_parameters.py
  python benchmarks/split_parameters.py --workloads b40 --methods mgda

The same global batch on four virtual devices, by the program of one of them; nothing is run. `state` is what it holds
between steps, in MB, `reserved` what the compiler sets aside besides during a step, `sent` what enters collectives in
one step, `work` the flops over those of one device alone (1/4 is a fair share).
"""

import argparse
import collections

import weak_scaling  # four devices, before jax is imported
from workloads import WORKLOADS, about

MESHES = ((1, 1), (4, 1), (2, 2), (1, 4))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workloads', nargs='+', default=['b8'], choices=WORKLOADS)
  parser.add_argument('--methods', nargs='+', default=list(weak_scaling.METHODS), choices=weak_scaling.METHODS)
  args = parser.parse_args()
  print(about())
  print(f'{"":<8}{"method":<12}{"data x model":<14}{"state":>8}{"reserved":>10}{"sent":>8} MB{"work":>7}  collectives')
  for name in args.workloads:
    for method in args.methods:
      alone = None
      for data, model in MESHES:
        mesh = weak_scaling.mesh_of(data=data, model=model)
        program = weak_scaling.compiled_step(WORKLOADS[name], method, 'sharded', mesh)
        memory, flops = program.memory_analysis(), program.cost_analysis()['flops']
        alone = alone or flops
        found = weak_scaling.collectives(program.as_text(), data * model)
        kinds = collections.Counter(item.kind for item in found)
        sent = sum(item.size for item in found)
        print(
          f'{name:<8}{method:<12}{data} x {model:<10}{memory.alias_size_in_bytes / 2**20:>8.2f}'
          f'{memory.temp_size_in_bytes / 2**20:>10.1f}{sent / 2**20:>8.2f}   {flops / alone:>7.3f}  '
          + ', '.join(f'{n} {kind}' for kind, n in kinds.items()),
          flush=True,
        )


if __name__ == '__main__':
  main()
