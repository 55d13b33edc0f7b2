"""A run that is killed again and again (`kill -9`) and resumed ends with the bits of one that was left alone.

  python benchmarks/survival.py --kills 20

Each time one command, `mtljax train EXPERIMENT ... --resume DIR`, starts or goes on. It is killed at a random moment:
a quarter of the times counted from the start of the process (while it imports, reads or compiles), else a random number
of steps after the step that it went on from. `lost` are the steps that the next start does again: at most
`--checkpoint_every`, and those trained while a newer checkpoint was being written (`writing`), which orbax does in the
background. Exit code 1 unless parameters, metrics and files are those of the undisturbed run.
"""

import argparse
import os
import pathlib
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import flax
import jax
import orbax.checkpoint as ocp

from mtljax import checkpoint, rundir

MAIN = 'import sys; from mtljax.cli import main; sys.exit(main())'


def command(options, place):
  return [
    *('train', options.experiment, '--resume', str(place)),
    *('--steps', str(options.steps), '--checkpoint_every', str(options.checkpoint_every)),
    *('--log_every', str(options.log_every), '--eval_every', str(options.eval_every), '--balancer', options.balancer),
    *options.arguments,
  ]


class Child:
  """The run as a process of its own, in a session of its own, its output in files that cannot block it."""

  def __init__(self, options, place, log, main=MAIN):
    self.place, self.log = place, log
    with log.open('w') as file:
      environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
      argv = [sys.executable, '-c', main, *command(options, place)]
      self.process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=environment)

  def resumed_at(self):
    """The step that it went on from, or None before it says so."""
    found = re.search(r': steps (\d+) to \d+ in', self.log.read_text())
    return int(found[1]) if found else None

  def step(self):
    """The last step in metrics.jsonl."""
    try:
      with (self.place / 'metrics.jsonl').open('rb') as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        found = re.findall(rb'\n\{"step": (\d+), .*(?=\n)', b'\n' + file.read())
    except OSError:
      return 0
    return int(found[-1]) if found else 0

  def wait_for_steps(self, ahead, seconds=600):
    """Until it is so many steps ahead of where it went on, or has ended."""
    end, start = time.monotonic() + seconds, None
    while self.process.poll() is None and time.monotonic() < end:
      start = self.resumed_at() if start is None else start
      if start is not None and self.step() >= start + ahead:
        break
      time.sleep(0.002)

  def kill(self):
    self.process.send_signal(signal.SIGKILL)
    self.process.wait()


def entries(place):
  """What is in the run directory, one level deep, and in checkpoints/."""
  files = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
  return files, sorted(path.name for path in (place / 'checkpoints').glob('*'))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument('--experiment', default='multi_digits')
  parser.add_argument('--balancer', default='cagrad')
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--checkpoint_every', type=int, default=20)
  parser.add_argument('--eval_every', type=int, default=50)
  parser.add_argument('--place', type=pathlib.Path, default=None, help='for the run directories; a temporary folder')
  options, options.arguments = parser.parse_known_args()
  options.log_every = 1
  if options.experiment == 'multi_digits' and not options.arguments:
    options.arguments = ['--batch_size', '256']  # steps long enough that a kill can fall between two saves
  place = options.place or pathlib.Path(tempfile.mkdtemp())
  place.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(place / 'cache'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  chance = random.Random(options.seed)
  interval = options.checkpoint_every
  print(' '.join(['mtljax', *command(options, 'DIR')]))
  print(f'{time.strftime("%F")}, Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__},')
  print(f'orbax-checkpoint {ocp.__version__}, {os.cpu_count()} CPU cores, {platform.system()}, seed {options.seed}\n')

  undisturbed, killed = place / 'undisturbed', place / 'killed'
  clock = time.monotonic()
  whole = Child(options, undisturbed, place / 'undisturbed.log')
  if whole.process.wait():
    sys.exit(whole.log.read_text())
  print(f'undisturbed: {time.monotonic() - clock:.0f} s\n')
  print('kill  when        killed at  resumed at  lost  writing  checkpoints   files')

  wrong, rows, number = [], [], 0
  while True:
    child = Child(options, killed, place / f'run{number}.log')
    if number < options.kills:
      if chance.random() < 0.25:
        when, delay = 'start', chance.uniform(0.5, 8)
        time.sleep(delay)
      else:
        when, ahead, delay = 'training', chance.randint(1, 3 * interval), chance.uniform(0, 0.1)
        child.wait_for_steps(ahead)
        time.sleep(delay)
      if child.process.poll() is not None:
        sys.exit(f'the run ended before kill {number + 1}; more --steps, or this: {child.log.read_text()[-2000:]}')
      child.kill()
    elif child.process.wait():
      sys.exit(child.log.read_text())
    if rows:  # what this start went on from belongs to the kill before
      row = rows[-1]
      resumed = child.resumed_at()
      if resumed is None:  # killed before it said so: the next one will
        row['resumed'] = row['lost'] = '–'
      else:
        row['resumed'], row['lost'] = resumed, max(row['step'] - resumed, 0)
        if row['lost'] > interval * (2 if row['writing'] else 1):
          wrong.append(f'kill {row["kill"]}: {row["lost"]} steps lost')
      print('{kill:4}  {when:8} {step:12}  {resumed:>10}  {lost:>4}  {writing:7}  {kept:12}  {files}'.format(**row))
    if number == options.kills:
      break
    number += 1
    files, folders = entries(killed)
    rows.append(
      dict(
        kill=number,
        when=when,
        step=max(child.step(), 0),
        writing=' '.join(name.split('.')[0] for name in folders if 'tmp' in name),
        kept=' '.join(name for name in folders if name.isdecimal()),
        files=' '.join([*files, *(f'checkpoints/{name}' for name in folders if not name.isdecimal())]),
      )
    )

  files, folders = entries(killed)
  print(f'\nat the end: {" ".join(files)}; checkpoints/: {" ".join(folders)}')
  digests = [rundir.read_json(path / 'result.json')['params_sha256'] for path in (undisturbed, killed)]
  print(f'params_sha256 undisturbed {digests[0]}\nparams_sha256 killed      {digests[1]}')
  same = {
    'parameters': digests[0] == digests[1],
    'metrics.jsonl': len({(path / 'metrics.jsonl').read_bytes() for path in (undisturbed, killed)}) == 1,
    'files': entries(undisturbed) == (files, folders),
    'best checkpoint': len({checkpoint.best_step(path / 'checkpoints') for path in (undisturbed, killed)}) == 1,
  }
  wrong += [f'{what} differ' for what, equal in same.items() if not equal]
  lost = [row['lost'] for row in rows if row['lost'] != '–']
  print(f'{options.kills} kills, {sum(lost)} steps done again, at most {max(lost, default=0)} at a time')
  print('same parameters, metrics, files and best checkpoint' if not wrong else f'WRONG: {"; ".join(wrong)}')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main()
