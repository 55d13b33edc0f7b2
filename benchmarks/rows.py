"""Gramian and direction of rows that are there: the ways of `linalg` on a CPU against those that it does not take.

  python benchmarks/rows.py

T rows of a kernel f[512, 512], as they come out of a pullback. `gramian`: as `linalg.gramian` computes it, in pieces of
`linalg.PIECE`; `long axis`, one product over one axis; `two axes`, one product over the axes that the kernel has.
`direction`: as `linalg.combine` computes it, in one pass up to four rows; `product`, w J. Called in turn in one run;
milliseconds of the library's way and ratios to it, medians over rounds ± half the interquartile range, in brackets of
the fastest rounds and of processor time.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from workloads import about, in_turn

from mtljax import linalg


def product(rows):
  axes = tuple(range(1, rows.ndim))
  return jax.lax.dot_general(rows, rows, ((axes, axes), ((), ())), precision=linalg.HIGHEST)


GRAMIANS = {
  'gramian': lambda rows, w: linalg.gramian([rows]),
  'long axis': lambda rows, w: product(rows.reshape(len(rows), -1)),
  'two axes': lambda rows, w: product(rows),
}
DIRECTIONS = {
  'direction': lambda rows, w: linalg.combine(w, [rows])[0],
  'product': lambda rows, w: jnp.tensordot(w, rows, axes=1, precision=linalg.HIGHEST),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--tasks', type=int, nargs='+', default=[2, 8, 40])
  parser.add_argument('--width', type=int, default=512)
  parser.add_argument('--rounds', type=int, default=25)
  args = parser.parse_args()
  print(about())
  for ways in (GRAMIANS, DIRECTIONS):
    ours, *others = ways
    print(f'\n{"T":>4}{ours + " ms":>14}' + ''.join(f'{name:>26}' for name in others))
    for T in args.tasks:
      draw = np.random.default_rng(T)
      rows = jnp.asarray(draw.normal(size=(T, args.width, args.width)), jnp.float32)
      w = jnp.asarray(draw.uniform(size=T), jnp.float32)
      calls = {name: jax.jit(way) for name, way in ways.items()}
      found = {name: call(rows, w) for name, call in calls.items()}
      for name in others:
        np.testing.assert_allclose(found[name], found[ours], rtol=1e-3, atol=1e-3)
      calls = {name: functools.partial(call, rows, w) for name, call in calls.items()}
      seconds, ratio = in_turn(calls, args.rounds)
      cells = ''.join(f'{ratio(name, ours)!s:>26}' for name in others)
      print(f'{T:>4}{1e3 * seconds[ours]:>14.3f}{cells}', flush=True)


if __name__ == '__main__':
  main()
