"""One of several processes: trains by the command line, then a second time, and tries what is to be refused.

  python member.py EXPERIMENT OUT --coordinator HOST:PORT --num_processes N --process_id I

It writes what it saw to OUT.I as JSON.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np
from hosts_cases import OF_SECOND, PCGRAD, arguments

import mtljax as mtl
from mtljax import cli, experiment, hosts, runs, training
from mtljax.base import InputError
from mtljax.experiment import Options

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
written = []


def note_writes(event, args):
  """Of the files of runs, by Python's own calls."""
  changes = event in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate')
  if (changes or (event == 'open' and args[2] & WRITES)) and 'runs' in pathlib.Path(str(args[0])).parts:
    written.append(f'{event} {args[0]}')


def refused(call):
  try:
    call()
  except InputError as error:
    return str(error)
  return None


def elsewhere(given):
  """A directory of each process's own."""
  hosts.SETTLE = 1
  own = pathlib.Path(f'host{jax.process_index()}')
  own.mkdir()
  os.chdir(own)
  training.train(given, PCGRAD, 'runs/elsewhere')


def fail():
  raise InputError('only the first one knows')


def main(path, out, *options):
  sys.addaudithook(note_writes)
  code = cli.main(['train', path, *arguments(PCGRAD), '--resume', 'runs/pcgrad', *options])
  module = experiment.load(path)
  training.train(experiment.build(module, module.Config()), OF_SECOND, 'runs/equal')

  build = lambda **config: experiment.build(module, module.Config(**config))
  seen = {
    'code': code,
    'place': [jax.process_index(), jax.process_count(), jax.device_count()],
    'written': written,
    'from_first': hosts.from_first({'long': [jax.process_index()] * 300, 'own': jax.process_index()}),
    'jit': refused(lambda: runs.Run(build(), Options())),
    'pmap': refused(lambda: mtl.compile_step(None, mode='pmap')),
    'batch_size': refused(lambda: runs.Run(build(batch_size=5), Options(mode='shard_map'))),
    'not batches': refused(lambda: mtl.parallel.global_batches(lambda seed, step: {}, jax.make_mesh((1,), 'd'))),
    'on_save_error': refused(
      lambda: training.train(build(), dataclasses.replace(PCGRAD, on_save_error='continue'), 'runs/never')
    ),
    'in use': refused(lambda: training.train(build(), PCGRAD, 'runs/pcgrad')),
    'others': refused(lambda: hosts.check_same({'steps': 3, 'config': {'width': 8 + jax.process_index()}})),
    'same': refused(lambda: hosts.check_same({'steps': 3, 'rate': np.pi})),
    'on_first': refused(lambda: hosts.on_first(fail)),
    'elsewhere': refused(lambda: elsewhere(build())),
  }
  pathlib.Path(f'{out}.{jax.process_index()}').write_text(json.dumps(seen))


if __name__ == '__main__':
  main(*sys.argv[1:])
