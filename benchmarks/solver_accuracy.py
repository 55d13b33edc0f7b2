"""How exact the solvers behind the balancing methods are, against scipy and numpy with refinement.

  python benchmarks/solver_accuracy.py        a few minutes; docs/make_balancing.py shows solver_accuracy.txt

The Jacobians, f[T, 2T + 1], and the oracles are those of tests/solver_oracles.py. Each number is the largest error over
the Jacobians of a group: usual ones (plain, with a direction in common, nearly cancelling, times 1e-8, times 1e8), rows
of scales 1e-3 to 1e3, and more tasks than dimensions. The Gramian is computed in the dtype named, so its rounding is
part of the error. Errors are of the direction, relative to |J|, as the contract has it (1e-4 in float32, 1e-6 in
float64); for rows of unlike scale they are relative to the length of the direction itself, which is harder.

For CAGrad it is the duality gap relative to |J| |g_0|. For nash_mtl, fairgrad (alpha 0.5) and pivrg, whose direction
has a length of its own, all errors are relative to that; with more tasks than dimensions they have no solution.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mtljax import balancing, linalg

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests'))
import solver_oracles as oracles

PATH = pathlib.Path(__file__).with_suffix('.txt')
TASKS = (2, 4, 8, 16, 32, 64)
DTYPES = ('float32', 'float64')
GROUPS = {
  'usual': [i for i in range(len(oracles.KINDS)) if i not in (oracles.DEPENDENT, oracles.SCALED)],
  'rows 1e±3': [oracles.SCALED],
  'dependent': [oracles.DEPENDENT],
}
C = 0.4
CHEAP = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}  # compiling takes the time
SHARE = lambda T: np.linspace(0.5, 1.5, T)


def direction_errors(weights, J, want):
  """Relative to |J|, and to the length of the direction itself."""
  error = np.linalg.norm(np.float64(oracles.exact(weights) @ oracles.exact(J) - want))
  return error / np.linalg.norm(J), error / np.linalg.norm(np.float64(want))


def fair(alpha, share=None):
  """Error of G w = (share / w)^(1 / alpha), relative to the length of the direction."""

  def errors(w, J, dtype):
    if np.linalg.matrix_rank(J / np.linalg.norm(J, axis=1, keepdims=True)) < len(J):
      return None
    want = oracles.power_fair(J, alpha, 1.0 if share is None else share(len(J))) @ oracles.exact(J)
    return (direction_errors(w, J, want)[1],) * 2

  def solve(G, present):
    extra = () if share is None else (jnp.asarray(share(len(G)), G.dtype),)
    return linalg.power_fair(G, jnp.asarray(alpha, G.dtype), present, *extra)

  return solve, errors


def of(method, oracle):
  """A balancer of level gramian and the direction that it should give."""
  rest = dict(key=jax.random.key(0), step=0)
  solve = lambda G, present: method.update(G, method.init(G), losses=jnp.ones(len(G)), present=present, **rest)[0]
  return solve, lambda w, J, dtype: direction_errors(w, J, oracle(J, dtype))


def cone(J, lowers):
  return oracles.cone_weights(J, lowers).sum(0) @ oracles.exact(J)


PROBLEMS = {
  'min-norm (mgda)': of(balancing.mgda(), lambda J, _: oracles.min_norm(J)),
  'CAGrad, gap': (
    lambda G, present: linalg.conflict_averse(G, jnp.asarray(C, G.dtype), present),
    lambda w, J, dtype: (max(oracles.conflict_averse_gap(J, w, C)),) * 2,
  ),
  'dual cone (upgrad)': of(balancing.upgrad(), lambda J, _: cone(J, np.eye(len(J)) / len(J))),
  'dual cone (dualproj)': of(balancing.dualproj(), lambda J, _: cone(J, np.full((1, len(J)), 1 / len(J)))),
  'Newton (nash_mtl)': fair(1.0),
  'Newton (fairgrad)': fair(0.5),
  'Newton (pivrg)': fair(2.0, SHARE),
  'pinv (imtl_g)': of(balancing.imtl_g(), lambda J, _: oracles.equal_projections(J)),
  'pinv (config)': of(balancing.config(), lambda J, _: oracles.equal_angles(J)),
  'eigen (aligned_mtl)': of(balancing.aligned_mtl(), lambda J, dtype: oracles.aligned(J, jnp.finfo(dtype).eps)),
}


def errors_of(solve, error, T, dtype):
  """Both errors for every kind of Jacobian, None where there is no solution."""
  with jax.enable_x64(dtype == 'float64'):
    run = jax.jit(lambda J: solve(linalg.gramian(J), jnp.ones(T, bool)), compiler_options=CHEAP)
    weights = [np.asarray(run(jnp.asarray(J, dtype)), np.float64) for J in oracles.jacobians(T)]
  return [error(w, J, dtype) for w, J in zip(weights, oracles.jacobians(T))]


def _cell(pairs, which) -> str:
  """The largest; two tasks are never too many for two dimensions, and some problems have no solution."""
  values = [pair[which] for pair in pairs if pair is not None]
  return f'{max(values):.0e}' if values else '–'


def main():
  lines = [f'{"problem":<21}{"rows":<11}{"dtype":<8}' + ''.join(f'{"T=" + str(T):>8}' for T in TASKS)]
  print(lines[0])
  for name, (solve, error) in PROBLEMS.items():
    found = {(T, dtype): errors_of(solve, error, T, dtype) for dtype in DTYPES for T in TASKS}
    for group, kinds in GROUPS.items():
      for dtype in DTYPES:
        which = 1 if group == 'rows 1e±3' else 0
        cells = [_cell([found[T, dtype][k] for k in kinds if T > 2 or group != 'dependent'], which) for T in TASKS]
        if any(cell != '–' for cell in cells):
          lines.append(f'{name:<21}{group:<11}{dtype:<8}' + ''.join(f'{cell:>8}' for cell in cells))
          print(lines[-1], flush=True)
  PATH.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
