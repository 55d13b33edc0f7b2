"""Training for half an hour, killed and resumed at random: do memory, arrays, threads or open files grow?

  python benchmarks/soak.py --minutes 30

Each life is one process of `mtljax train EXPERIMENT ... --resume DIR`, ended after a random time by `kill -9`, a
quarter of the times by SIGTERM, which has to save and exit 0. The first one is long (`--first`). Before every save (at
most once a second), when nothing is being written, it notes resident memory (`anon` is that without pages of files),
C's heap in use and free, blocks of Python, live jax arrays and their bytes, open files and threads.

In the end stand for each quantity the slopes in the two halves of the first life after `--warm_up` seconds (the error
is that of a line through the means of eight parts), and the slope of the medians of the lives after it. What is held
(all but `rss`, `anon` and `free`) grows if the second half or the lives do by more than three standard errors and 1 %
an hour: exit code 1. The others may grow while nothing that is held does: what the allocator keeps, which is said.
With `--minutes 0 --place DIR` the samples of an earlier soak are read again.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import sys
import tempfile
import time

import jax
import survival

UNITS = {
  'rss': 'MB',
  'heap': 'MB',
  'free': 'MB',
  'blocks': 'k',
  'arrays': '',
  'bytes': 'MB',
  'files': '',
  'threads': '',
}


class Mallinfo(ctypes.Structure):
  """Of glibc's `mallinfo2`."""

  NAMES = 'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost'
  _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def malloc():
  """Megabytes of C's heap that are in use, and that are free but kept; zeros without glibc."""
  read = getattr(ctypes.CDLL(None), 'mallinfo2', None)
  if read is None:
    return 0.0, 0.0
  read.restype = Mallinfo
  found = read()
  return (found.uordblks + found.hblkhd) / 1e6, found.fordblks / 1e6


def anonymous():
  """Megabytes of resident memory without pages of files, which come and go as other processes need room."""
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'RssAnon:\s+(\d+) kB', text)[1]) * 1024 / 1e6


def child(path):
  """The command line, with a sample before every save; called in the process of a life."""
  from mtljax import cli, training

  save, last = training._Recorder.save, [0.0]

  def sampling(self, step, state):
    self.checkpoints.wait()  # as `save` does
    if time.time() - last[0] >= 1:
      last[0] = time.time()
      with open(path, 'a') as file:
        arrays = jax.live_arrays()
        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
        heap, free = malloc()
        sample = {
          'time': last[0],
          'step': step,
          'rss': pages * os.sysconf('SC_PAGESIZE') / 1e6,
          'anon': anonymous(),
          'heap': heap,
          'free': free,
          'blocks': sys.getallocatedblocks() / 1e3,
          'arrays': len(arrays),
          'bytes': sum(array.nbytes for array in arrays) / 1e6,
          'files': len(os.listdir('/proc/self/fd')) - 2,  # without that of listing and that of the sample
          'threads': len(os.listdir('/proc/self/task')),
        }
        file.write(json.dumps(sample) + '\n')
    save(self, step, state)

  training._Recorder.save = sampling
  return cli.main()


def line(xs, ys):
  """Slope, and the sum of squares of x about its mean."""
  mx, my = statistics.fmean(xs), statistics.fmean(ys)
  sxx = sum((x - mx) ** 2 for x in xs)
  return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sxx, sxx


def trend(samples, name):
  """The slope of the means of eight parts, an hour, and its standard error."""
  size = len(samples) // 8
  parts = [samples[i * size : (i + 1) * size] for i in range(8)] if size else []
  points = [(statistics.fmean(s['time'] for s in p) / 3600, statistics.fmean(s[name] for s in p)) for p in parts]
  return fitted(points)


def fitted(points):
  if len(points) < 3:
    return math.nan, math.nan
  xs, ys = zip(*points)
  slope, sxx = line(xs, ys)
  mx, my = statistics.fmean(xs), statistics.fmean(ys)
  rest = sum((y - my - slope * (x - mx)) ** 2 for x, y in points)
  return slope, math.sqrt(rest / (len(points) - 2) / sxx)


def across(lives, name):
  """The slope of the lives' medians, an hour, and its standard error."""
  return fitted(
    [(statistics.fmean(s['time'] for s in life) / 3600, statistics.median(s[name] for s in life)) for life in lives]
  )


def samples_of(path):
  """Those of a life, without a line that a kill cut off."""
  texts = path.read_text().splitlines(True) if path.exists() else []
  return [json.loads(text) for text in texts if text.endswith('\n')]


def report(lives):
  """Prints the slopes; returns what is wrong."""
  wrong, kept = [], []
  first = lives[0]
  middle = (first[0]['time'] + first[-1]['time']) / 2
  halves = [s for s in first if s['time'] < middle], [s for s in first if s['time'] >= middle]
  print(f'\n{sum(map(len, lives))} samples of {len(lives)} lives; growth an hour, ± standard error')
  print('                   first half           second half       from life to life')
  for name, unit in UNITS.items():
    found = *(trend(half, name) for half in halves), across(lives[1:], name)
    print(f'{name:8}  ' + '  '.join(f'{f"{slope:+.2f} ± {error:.2f} {unit}":>20}' for slope, error in found))
    level = statistics.median(s[name] for s in halves[1])
    for where, (slope, error) in zip(('in the second half', 'from life to life'), found[1:]):
      if slope > max(3 * error, 0.01 * level, 1e-9):
        (kept if name in ('rss', 'anon', 'free') else wrong).append(f'{name} grows {where}')
  if kept:
    print(f'what the allocator keeps, free: {"; ".join(kept)}')
  return wrong


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--minutes', type=float, default=30)
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument(
    '--first', type=float, default=720, help='seconds of the first life, which tells the end of growth'
  )
  parser.add_argument(
    '--life', type=float, nargs=2, default=(60, 300), help='shortest and longest of the others, in seconds'
  )
  parser.add_argument('--warm_up', type=float, default=60, help='seconds after the first sample of a life')
  parser.add_argument('--experiment', default='multi_digits')
  parser.add_argument('--balancer', default='cagrad')
  parser.add_argument('--steps', type=int, default=100_000_000)
  parser.add_argument('--checkpoint_every', type=int, default=200)
  parser.add_argument('--eval_every', type=int, default=1000)
  parser.add_argument('--place', type=pathlib.Path, default=None, help='for the run directory; a temporary folder')
  options, options.arguments = parser.parse_known_args()
  place = options.place or pathlib.Path(tempfile.mkdtemp())
  place.mkdir(parents=True, exist_ok=True)
  options.log_every = 100
  if options.experiment == 'multi_digits' and not options.arguments:
    options.arguments = ['--width', '8', '--hidden', '32']  # small: most of the work is what surrounds a step
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(place / 'cache'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  chance, run_dir = random.Random(options.seed), place / 'run'
  here = pathlib.Path(__file__).parent
  print(' '.join(['mtljax', *survival.command(options, 'DIR')]))
  cores = len(os.sched_getaffinity(0))
  print(f'{time.strftime("%F")}, Python {platform.python_version()}, jax {jax.__version__}, {cores} core(s),')
  print(f'{platform.system()}, load {os.getloadavg()[0]:.1f}, seed {options.seed}\n')
  print('life  end   seconds      from        to  samples        rss MB    arrays   files  threads  run directory')

  end, wrong, number = time.monotonic() + 60 * options.minutes, [], 0
  while time.monotonic() < end:
    number += 1
    samples = place / f'samples{number}.jsonl'
    main = f'import sys; sys.path.insert(0, {str(here)!r}); import soak; sys.exit(soak.child({str(samples)!r}))'
    clock = time.monotonic()
    run = survival.Child(options, run_dir, place / f'run{number}.log', main)
    seconds, how = chance.uniform(*options.life), 'TERM' if chance.random() < 0.25 else 'KILL'
    seconds = options.first if number == 1 else seconds
    if clock + seconds > end:
      seconds, how = max(end - clock, options.life[0]), 'TERM'
    try:
      run.process.wait(seconds)
      sys.exit(f'the run ended before it was killed: {run.log.read_text()[-2000:]}')
    except survival.subprocess.TimeoutExpired:
      pass
    asked = time.monotonic()
    run.process.send_signal(signal.SIGTERM if how == 'TERM' else signal.SIGKILL)
    code = run.process.wait()
    if how == 'TERM':
      how = f'TERM, code {code} in {time.monotonic() - asked:.1f} s'
      wrong += [f'life {number}: SIGTERM gave exit code {code}'] * (code != 0)
    life = samples_of(samples)
    files = [path for path in run_dir.rglob('*') if path.is_file()]
    size = sum(path.stat().st_size for path in files if 'checkpoints' in path.parts) / 1e6
    if life:
      spans = {name: f'{life[0][name]:.0f}–{life[-1][name]:.0f}' for name in UNITS}
      print(
        f'{number:4}  {how.split(",")[0]}  {asked - clock:7.0f}  {run.resumed_at():8}  {run.step():8}  {len(life):7}  '
        f'{spans["rss"]:>12}  {spans["arrays"]:>8}  {spans["files"]:>6}  {spans["threads"]:>7}  '
        f'{len(files)} files, checkpoints {size:.2f} MB{how[4:]}',
        flush=True,
      )
    else:
      print(f'{number:4}  {how}  {asked - clock:7.0f}  no save', flush=True)

  lives = [samples_of(path) for path in sorted(place.glob('samples*.jsonl'), key=lambda path: int(path.stem[7:]))]
  lives = [[s for s in life if s['time'] > life[0]['time'] + options.warm_up] for life in lives if life]
  wrong += report([life for life in lives if life])
  print('nothing that is held grows' if not wrong else f'WRONG: {"; ".join(wrong)}')
  sys.exit(bool(wrong))


if __name__ == '__main__':
  main()
