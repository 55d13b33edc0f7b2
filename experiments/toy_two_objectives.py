"""Two functions of two parameters, five starts: which balancing methods reach the Pareto set, and where?

  python experiments/toy_two_objectives.py --out docs/images
  mtljax train experiments/toy_two_objectives.py --balancer nash_mtl --start 9 9

The first command runs every method of `mtljax.balancing` that is defined for two tasks, from all starts at once, in
double precision; it draws the trajectories (docs/images/toy_two_objectives.png) and printed, in 8 min on two cores that
others used too (3.3 min of processor time), how many starts end within 0.1 of the Pareto set and theta_1 at the end of
each, in brackets where it is not there:

  method                       level  Pareto  -8.5,7.5    0,0      9,9  -7.5,-0.5    9,-1  time [s]
  ------------------------  --------  ------  --------  -----  -------  ---------  ------  --------
  equal                       losses     4/5     -5.73  -5.73   (5.00)      -5.73   -5.73         2
  constant((10.0, 1.0))       losses     3/5   (-5.01)   0.00   (5.03)       0.00    0.00         1
  rlw                         losses     4/5     -5.74  -5.72   (4.99)      -5.69   -5.71         2
  uncertainty                 losses     3/5   (-5.06)  -6.24   (5.05)      -6.24    6.24         1
  dwa(steps_per_epoch=100)    losses     4/5     -5.73  -5.73   (5.02)      -5.73   -5.73         2
  geometric                   losses     3/5   (-5.03)  -6.24   (5.02)      -6.24    6.24         1
  scale_invariant             losses     3/5   (-5.00)   6.24   (5.03)      -6.24    6.24         1
  imtl_l                      losses     3/5   (-5.05)  -6.24   (5.01)      -6.24    6.24         1
  famo                        losses     3/5   (-5.04)  -6.23   (5.00)      -6.24    6.24         2
  famo(weight_decay=0.0)      losses     5/5     -0.31   0.08     0.36      -0.95    1.75         2
  stch                        losses     4/5     -5.47  -5.47   (4.99)      -5.47   -5.47         1
  stch_nadir                  losses     3/5   (-5.04)   0.00   (5.02)      -1.34    2.68         1
  cosmos                      losses     4/5     -5.48  -5.48   (5.00)      -5.48   -5.48         1
  pbi                         losses     3/5     -4.80  -4.80   (5.01)      -4.80  (6.98)         1
  go4align                    losses     4/5   (-5.01)   7.00     7.00       7.00    7.00         2
  ldc_mtl                     losses     4/5     -6.78  -6.72   (4.99)      -6.63   -6.77         2
  mgda                       gramian     5/5     -1.98   6.09     6.98      -4.26    7.00         3
  pcgrad                     gramian     4/5     -4.35  -3.35   (6.88)      -3.82    5.03         3
  gradvac                    gramian     4/5     -5.73  -5.73   (6.03)      -5.73   -5.73         3
  cagrad                     gramian     4/5     -5.73  -5.73   (6.75)      -5.73   -5.73         5
  imtl_g                     gramian     5/5     -2.19   0.00     2.43      -3.39    5.30         2
  imtl                       gramian     5/5     -2.25   0.00     2.34      -3.43    5.15         2
  nash_mtl                   gramian     5/5     -2.91   0.00     2.91      -3.28    4.87        16
  fairgrad                   gramian     5/5     -2.91   0.00     2.93      -3.29    4.87        30
  pivrg                      gramian     5/5     -3.00   3.57     4.27      -3.51    5.72        54
  aligned_mtl                gramian     5/5     -5.73  -5.73    -4.53      -5.73   -4.73         7
  upgrad                     gramian     4/5     -5.73  -5.73   (5.00)      -5.73   -5.73         8
  dualproj                   gramian     4/5     -5.73  -5.73   (5.02)      -5.73   -5.73         7
  config                     gramian     5/5     -2.12   0.00     3.86      -3.70    5.02         6
  pcd                        gramian     5/5     -7.00  -7.00    -7.00      -7.00   -7.00         9
  gradnorm                   gramian     5/5      0.10  -0.03    -0.09      -0.58    1.41         5
  conicgrad                  gramian     5/5     -5.73  -5.73    -5.49      -5.73   -5.73        72
  graddrop                  jacobian     4/5     -5.75  -5.74   (4.99)      -5.74   -5.70         7
  moco                      jacobian     5/5     -4.72  -4.76    -4.81      -4.77   -4.72         5
  excess_mtl                jacobian     3/5   (-5.05)  -3.70   (5.01)       2.78   -3.64         5
  db_mtl                    jacobian     3/5   (-1.83)   0.00   (2.54)      -6.24    6.24         4
  config_momentum           jacobian     5/5     -2.35   0.00     1.70      -3.70    5.01         6
  bloop                     jacobian     3/5   (-5.01)   6.98  (-4.99)       6.98    6.98         3
  modo                        oracle     3/5   (-5.92)  -5.73   (5.57)      -5.73   -5.73         5
  sdmgrad                     oracle     4/5     -2.39  -0.92   (5.00)      -2.33   -0.92         6
  auto_lambda                 oracle     5/5     -5.73  -5.72    -7.06      -5.74   -5.73         6
  moml                        oracle     5/5     -7.00  -7.00    -1.46      -6.95   -6.91        12
  forum                       oracle     5/5     -2.37   4.07     3.47      -2.79    4.46        39
  log_losses(cagrad)         gramian     3/5   (-6.74)  -6.24   (6.38)      -6.24    6.24        10
  log_losses(mgda)           gramian     5/5     -2.28   0.00     2.28      -4.00    5.49         7
  normalized(mgda)           gramian     5/5     -2.43   0.00     2.47      -3.45    4.98         8
  ema(cagrad, 0.9)           gramian     4/5     -5.73  -5.73   (6.62)      -5.73   -5.73        12
  every(nash_mtl, 10)        gramian     5/5     -3.46   0.00     2.37      -3.41    4.93        34
  warmup(mgda, 5000)         gramian     5/5     -2.52  -0.63     5.09      -0.22    6.97         7
  krum: not run; needs three tasks for the distances to differ, of two it always takes the first
  trimmed_mean: not run; needs three tasks to trim any gradient, of two it leaves the mean, the same as equal

The setting is that of Nash-MTL and FAMO: first function times 0.1, Adam 1e-3, 50000 steps. What they show is here:
- The sum stops in a valley at theta_1 = 5, where one gradient is far the longer. So do UPGrad and the methods that only
  weigh losses; FAMO arrives with its authors' setting, no weight decay, which else pulls its weights towards equal.
- MGDA, Nash-MTL, IMTL-G, Aligned-MTL arrive from everywhere. CAGrad and PCGrad are still creeping along theta_2 = 0
  from (9, 9); with `--steps 100000`, as in the CAGrad paper, they arrive too.
- Nash-MTL ends where it ends whatever the scale (`--scale 1`: -2.92 0.00 2.92 -3.27 4.86), the sum does not.
- Not all look for the middle: for `pcd` the second function has to go down as long as it can, for `bloop` the first is
  the main one, and `go4align` favours the smaller loss, here always the first.
Methods that read losses see the distance from a bound that is -21 times the scale, as with the authors of FAMO;
gradients are the same, so that nothing changes for the others. Level oracle finds equal rows in all parts of a batch.

The problem: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, 2021,
https://arxiv.org/abs/2110.14048; five starts and the scale: Navon et al., Multi-Task Learning as a Bargaining Game,
2022, https://arxiv.org/abs/2202.01017; the bound: Liu et al., FAMO, 2023, https://arxiv.org/abs/2306.03792.
"""

import argparse
import dataclasses
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
NEAR = 0.1  # an end that is no farther from the Pareto set has arrived
LOWER = -21.0  # below both functions; what the authors of FAMO subtract
ROWS = 12  # of the batch, all the same; methods that split a batch find a whole number of parts in it
THIN = 100  # steps between points of a trajectory

# What is run for a method that needs arguments, or has settings worth a panel of their own; the others run as they are.
CALLS = {
  'constant': ('constant((10.0, 1.0))',),
  'dwa': ('dwa(steps_per_epoch=100)',),
  'famo': ('famo', 'famo(weight_decay=0.0)'),  # the authors' choice for this problem
  'log_losses': ('log_losses(cagrad)', 'log_losses(mgda)'),
  'normalized': ('normalized(mgda)',),
  'ema': ('ema(cagrad, 0.9)',),
  'every': ('every(nash_mtl, 10)',),
  'warmup': ('warmup(mgda, 5000)',),
}
NOT_FOR_TWO = {
  'krum': 'not run; needs three tasks for the distances to differ, of two it always takes the first',
  'trimmed_mean': 'not run; needs three tasks to trim any gradient, of two it leaves the mean, the same as equal',
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    scale: of the first function; the second has scale 1.
    start: theta at step 0.
    learning_rate: of Adam.
    steps: how many are made.
  """

  scale: float = 0.1
  start: tuple[float, float] = STARTS[0]
  learning_rate: float = 1e-3
  steps: int = 50_000


def objective(theta, mirrored: bool = False):
  """The first function f[...] of theta f[..., 2]; the second is its mirror image, with -theta_1 for theta_1.

  f = max(tanh(theta_2 / 2), 0) (log max(|(theta_1 + 7) / 2 - tanh theta_2|, 5e-6) + 6)
      + max(tanh(-theta_2 / 2), 0) (((theta_1 - 7)^2 + (theta_2 + 8)^2 / 10) / 10 - 20)
  """
  x, y = (-theta[..., 0] if mirrored else theta[..., 0]), theta[..., 1]
  valley = jnp.log(jnp.maximum(jnp.abs(0.5 * (x + 7) - jnp.tanh(y)), 5e-6)) + 6
  bowl = ((x - 7) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
  return jnp.maximum(jnp.tanh(0.5 * y), 0) * valley + jnp.maximum(jnp.tanh(-0.5 * y), 0) * bowl


def pareto_set(points: int = 1401) -> np.ndarray:
  """The Pareto set, f[points, 2]: theta_1 in [-7, 7], theta_2 from -8.36 in the middle to -8.43 at the ends.

  In the lower half plane both functions are tanh(-theta_2 / 2) times a bowl. The gradient of their mean with weights
  (7 + theta_1) / 14 and (7 - theta_1) / 14 has no first part, and the second is 0 where the repeated line stands still.
  """
  x = np.linspace(-7, 7, points)
  y = np.full_like(x, -8)
  for _ in range(100):
    bowl = ((49 - x**2) + 0.1 * (y + 8) ** 2) / 10 - 20
    y = -8 - 50 * bowl / np.sinh(y)
  return np.stack([x, y], axis=-1)


def pareto_distance(theta) -> np.ndarray:
  """Distance f[...] of theta f[..., 2] from the Pareto set."""
  return np.linalg.norm(np.asarray(theta)[..., None, :] - pareto_set(), axis=-1).min(axis=-1)


def build(config: Config) -> mtl.Experiment:
  """The trunk holds theta and reads nothing, the heads are the functions, a label is a lower bound of its function.

  What is learned from is the distance to that bound: gradients are those of the functions, and methods that read losses
  see positive ones, in the same ratio whatever the scale.
  """
  scales = {'first': config.scale, 'second': 1.0}
  labels = {name: np.full(ROWS, scale * LOWER) for name, scale in scales.items()}
  examples = {'inputs': np.zeros((ROWS, 1)), 'labels': labels}
  metrics = {'above bound': mtl.metrics.mae()}
  tasks = tuple(mtl.Task(name, lambda y, bound: y - bound, metrics=metrics) for name in scales)

  trunk = (
    lambda key, inputs: {'theta': jnp.asarray(config.start, float)},
    lambda params, inputs: jnp.broadcast_to(params['theta'], (len(inputs), 2)),
  )

  def head(name):
    return lambda key, theta: {}, lambda params, theta: scales[name] * objective(theta, mirrored=name == 'second')

  def optimizer(learning_rate, names):
    adam = optax.adam(learning_rate)
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='toy_two_objectives',
    model=mtl.sharing.hard(trunk, {name: head(name) for name in scales}),
    tasks=tasks,
    train=mtl.data.Batches(examples, ROWS),
    val=mtl.data.eval_batches(examples, ROWS),
    test=mtl.data.eval_batches(examples, ROWS),
    optimizer=optimizer,
  )


def trajectories(balancer: mtl.Balancer, config: Config, starts=STARTS) -> np.ndarray:
  """Theta from all starts, f[points, starts, 2]: every `THIN` steps and after the last one."""
  experiment = build(config)
  optimizer = experiment.optimizer(config.learning_rate, tuple(task.name for task in experiment.tasks))
  step = mtl.make_train_step(experiment.model, experiment.tasks, optimizer, balancer)
  chunks, rest = divmod(config.steps, THIN)

  def lane(start, key, batch):
    state = mtl.init_state(experiment.model, experiment.tasks, optimizer, balancer, batch, key)
    state = state.replace(params={**state.params, 'shared': {'theta': start}})

    def several(state, count):
      state = jax.lax.fori_loop(0, count, lambda _, state: step(state, batch)[0], state)
      return state, state.params['shared']['theta']

    state, path = jax.lax.scan(lambda state, _: several(state, THIN), state, length=chunks)
    last = several(state, rest)[1][None] if rest else path[:0]
    return jnp.concatenate([start[None], path, last])

  batch = experiment.train(0, 0)
  lanes = jax.vmap(lane, in_axes=(0, 0, None), out_axes=1)
  return np.asarray(jax.jit(lanes)(jnp.asarray(starts, float), jax.random.split(jax.random.key(0), len(starts)), batch))


def table(rows) -> str:
  """Rows `(call, level, trajectories or the reason why there are none, seconds)`; in brackets what is not Pareto."""
  header = ['method', 'level', 'Pareto', *(f'{x:g},{y:g}' for x, y in STARTS), 'time [s]']
  lines, missing = [], []
  for call, level, found, seconds in rows:
    if isinstance(found, str):
      missing.append(f'{call}: {found}')
      continue
    ends = found[-1]
    near = pareto_distance(ends) <= NEAR
    cells = [f'{end[0] + 0:.2f}' if ok else f'({end[0]:.2f})' for end, ok in zip(ends.round(2), near)]
    lines.append([call, level, f'{near.sum()}/{len(near)}', *cells, f'{seconds:.0f}'])
  return '\n'.join([mtl.analysis.aligned(header, lines), *missing])


def figure(paths, scale: float):
  """A panel for each method: contours of the mean objective, trajectories from dark to bright, the Pareto set.

  Args:
    paths: {call: f[points, starts, 2]}.
    scale: of the first function.

  Returns:
    A matplotlib figure, 11 inches wide.
  """
  from matplotlib.cm import ScalarMappable
  from matplotlib.collections import LineCollection
  from matplotlib.colors import LinearSegmentedColormap
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  columns = min(7, len(paths))
  lines = -(-len(paths) // columns)
  canvas = Figure(figsize=(11, 1 + 1.62 * lines), layout='constrained')
  canvas.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
  grid = canvas.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
  side = np.linspace(-11, 11, 221)
  mesh = np.stack(np.meshgrid(side, side), axis=-1)
  mean = (scale * np.asarray(objective(mesh)) + np.asarray(objective(mesh, mirrored=True))) / 2
  colors = LinearSegmentedColormap.from_list('time', ('#6b0000', '#e01000', '#ff8c00', '#ffe100'))

  for axis, (call, path) in zip(grid.ravel(), paths.items()):
    axis.contour(side, side, mean, levels=10, cmap='viridis', linewidths=0.7, alpha=0.6)
    axis.plot(*pareto_set().T, color='#999999', lw=4, solid_capstyle='butt', zorder=1.5)
    for theta in np.moveaxis(path, 1, 0):
      pieces = np.stack([theta[:-1], theta[1:]], axis=1)
      axis.add_collection(
        LineCollection(pieces, cmap=colors, array=np.linspace(0, 1, len(pieces)), lw=1.8, capstyle='round', zorder=3)
      )
    axis.plot(*path[0].T, 'o', color='black', ms=3.5, zorder=4)
    axis.plot(*path[-1].T, '*', color='black', ms=6.5, mec='white', mew=0.5, zorder=5)
    axis.text(0, 9.3, f'{(pareto_distance(path[-1]) <= NEAR).sum()}/{path.shape[1]}', size=8, ha='center', va='center')
    axis.set_title(call, fontsize=7.5, pad=2.5)
    axis.set(xlim=(-11, 11), ylim=(-11, 11), xticks=(-10, 0, 10), yticks=(-10, 0, 10), aspect='equal')
    axis.tick_params(labelsize=7, length=2, pad=1.5)
  for axis in grid.ravel()[len(paths) :]:
    axis.set_axis_off()
  for place, axis in enumerate(grid.ravel()[: len(paths)]):
    if place % columns == 0:
      axis.set_ylabel(r'$\theta_2$', fontsize=9, labelpad=0)
    if place + columns >= len(paths):
      axis.set_xlabel(r'$\theta_1$', fontsize=9, labelpad=0)
      axis.tick_params(labelbottom=True)
  marks = [
    Line2D([], [], marker='o', ls='', color='black', ms=4, label='start'),
    Line2D([], [], marker='*', ls='', color='black', ms=8, label='end'),
    Line2D([], [], color='#999999', lw=4, label='Pareto set'),
  ]
  canvas.legend(handles=marks, loc='upper left', ncols=3, fontsize=9, frameon=False)
  scale_of_time = ScalarMappable(cmap=colors)
  bar = canvas.colorbar(scale_of_time, ax=grid, location='top', shrink=0.4, anchor=(1, 0.5), aspect=45, pad=0.005)
  bar.set_ticks([0, 1], labels=['first step', 'last step'], fontsize=8)
  return canvas


def split_calls(text: str) -> list[str]:
  """Splits at the commas outside of brackets."""
  return [call.strip() for call in re.split(r',(?![^()]*(?:\([^()]*\)[^()]*)*\))', text) if call.strip()]


def run(call: str, config: Config):
  """A row of `table`."""
  if call in NOT_FOR_TWO:
    return call, '', NOT_FOR_TWO[call], 0.0
  begin, balancer = time.perf_counter(), mtl.balancing.parse(call)
  try:
    found = trajectories(balancer, config)
  except mtl.InputError as error:
    found = ' '.join(str(error).split())
  return call, balancer.level, found, time.perf_counter() - begin


def main(argv=None) -> None:
  """Runs the methods, prints the table, draws the figure."""
  config = Config()
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--methods', default='', help='names or calls, separated by commas; all methods when empty')
  parser.add_argument('--steps', type=int, default=config.steps)
  parser.add_argument('--scale', type=float, default=config.scale, help='of the first function')
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('.'), help='folder of the figure')
  options = parser.parse_args(argv)
  config = dataclasses.replace(config, steps=options.steps, scale=options.scale)
  names = split_calls(options.methods) or mtl.balancing.METHODS
  calls = [call for name in names for call in CALLS.get(name, (name,))]
  try:
    for call in calls:
      mtl.balancing.parse(call)
  except mtl.InputError as error:
    parser.error(str(error))
  with jax.enable_x64(True):
    rows = [run(call, config) for call in calls]
  print(table(rows))
  paths = {call: found for call, _, found, _ in rows if not isinstance(found, str)}
  if paths:
    from PIL import Image  # comes with matplotlib; a palette makes the file a third as large

    options.out.mkdir(parents=True, exist_ok=True)
    path = mtl.analysis.save(figure(paths, config.scale), options.out / 'toy_two_objectives.png')
    image = Image.open(path).convert('RGB').quantize(256, method=Image.Quantize.MAXCOVERAGE)
    image.save(path, optimize=True)


if __name__ == '__main__':
  main()
