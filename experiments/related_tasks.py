"""Nine made-up tasks in three groups: are the groups and the task covariance found from a few examples?

  python experiments/related_tasks.py --out docs/images
  mtljax train experiments/related_tasks.py --method mtrl --beta 0.3

The first command draws docs/images/related_tasks.png and printed, in 89 s on two cores (82 s of processor time),
besides the true tree, which is the learned one:

                                                seed 0  seed 1  seed 2  seed 3  seed 4    mean ± std
  --------------------------------------------  ------  ------  ------  ------  ------  ------------
  correlation with the true covariance: mtrl      0.90    0.88    0.91    0.88    0.84   0.88 ± 0.03
  correlation with the true covariance: graph     0.94    0.89    0.91    0.90    0.87   0.90 ± 0.03
  correlation with the true covariance: l2        0.93    0.89    0.87    0.88    0.90   0.90 ± 0.02
  correlation with the true covariance: equal     0.86    0.79    0.83    0.81    0.91   0.84 ± 0.05
  correlation with the true covariance: single    0.07   -0.07    0.05   -0.23    0.31   0.03 ± 0.20
  adjusted Rand index: mtrl                       1.00    1.00    1.00    1.00    1.00   1.00 ± 0.00
  adjusted Rand index: graph                      1.00    1.00    1.00    1.00    1.00   1.00 ± 0.00
  adjusted Rand index: l2                         1.00    1.00    1.00    1.00    1.00   1.00 ± 0.00
  adjusted Rand index: equal                      1.00    1.00    1.00    1.00    1.00   1.00 ± 0.00
  adjusted Rand index: single                    -0.21   -0.12   -0.16    0.00    0.10  -0.08 ± 0.13
  adjusted Rand index: branching                  1.00    1.00    0.27    1.00    0.64   0.78 ± 0.33
  test R2: mtrl                                   0.56    0.61    0.49    0.63    0.50   0.56 ± 0.06
  test R2: graph                                  0.48    0.54    0.41    0.57    0.41   0.48 ± 0.07
  test R2: l2                                     0.49    0.55    0.43    0.58    0.43   0.50 ± 0.07
  test R2: equal                                  0.38    0.45    0.30    0.49    0.26   0.38 ± 0.10
  test R2: single                                 0.46    0.54    0.41    0.58    0.40   0.48 ± 0.08
  test R2: branching                              0.58    0.64    0.45    0.67    0.52   0.57 ± 0.09

  Tree of the covariance learned by mtrl, seed 0
  root
  ├── root.0
  │   ├── a
  │   ├── b
  │   └── c
  ├── root.1
  │   ├── d
  │   ├── e
  │   └── f
  └── root.2
      ├── g
      ├── h
      └── i

  Learned graph, seed 0: 9 tasks (a, b, c, d, e, f, g, h, i), 9 edges
  a -- b  0.1292
  a -- c  0.1312
  b -- c  0.1427
  d -- e  0.1404
  d -- f  0.1426
  e -- f  0.1477
  g -- h  0.136
  g -- i  0.1412
  h -- i  0.1406

60 examples of each task, groups as opposite as three can be (conflict 1), labels with noise of half the signal's size:
- MTRL has the best test R2. Without a penalty, tasks that share a trunk do worse than nets of their own, and learned
  relations more than make up for it. The learned graph does not beat `l2`, a penalty on the size of the heads alone.
- Relations show in any heads that share a trunk: as well with `l2` as with MTRL, with less contrast where nothing ties
  them. Heads of nets trained apart cannot be compared. Trees are cut at the true number of groups, taken as known.
- `branching` has an easier problem (300 examples, less noise, one feature for each branch) and the best of 16 starts by
  validation loss, and still misses the groups of seed 2. Its R2 is not comparable with the others'.
beta is .3 for all three penalties; it, the temperature and the settings of `branching` were found by trying some values
on these seeds.
"""

import argparse
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl
from mtljax import learned_relations
from mtljax.analysis import relations_plot
from mtljax.data import related_tasks
from mtljax.relations import TaskGraph, TaskTree

TREE = TaskTree((('a', 'b', 'c'), ('d', 'e', 'f'), ('g', 'h', 'i')))
METHODS = ('mtrl', 'graph', 'l2', 'equal', 'single', 'branching')
# Choosing a branch takes more examples, branches that cannot hold several groups (one feature each, see `build`) and
# many starts: most end with a task or a group in the wrong branch.
BRANCHING = dict(noise=0.3, train_size=300, learning_rate=2e-2, steps=2000)
STARTS = {'branching': 16}
QUANTITIES = {
  'correlation': 'correlation with the true covariance',
  'rand index': 'adjusted Rand index',
  'r2': 'test R2',
}
THRESHOLD = 1 / len(TREE.leaves)  # weights of a learned graph that are drawn and printed: above an equal share
TRUNK = r'^shared/.*kernel|/trunk/.*kernel'
WHERE = {'single': r'/head/.*kernel'}  # what is compared between tasks: kernels of the heads, without their biases


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    method: what ties the heads: 'mtrl' learns the task covariance, 'graph' a graph, 'l2' has a penalty on their size
      alone, 'equal' none; 'single' trains a net of its own for each task, 'branching' learns a trunk that branches.
    conflict: of the groups, from 0 (they agree) to 1 (as opposite as three can be).
    relatedness: share of a task's variance that it has in common with its group.
    noise: standard deviation of what is added to the labels; the signal's is 1.
    data_seed: of the tasks and their examples.
    train_size: examples of each task.
    beta: weight of the penalty.
    decay: weight of a penalty on the size of the trunk, but for 'branching'; without it large features let heads be
      small, whose differences then cost nothing.
    temperature: of the learned graph.
    learning_rate: of Adam.
    steps: how many batches are learned from.
    batch_size: examples per step.
    hidden: units of the trunk.
  """

  method: str = 'mtrl'
  conflict: float = 1.0
  relatedness: float = 0.8
  noise: float = 0.5
  data_seed: int = 0
  train_size: int = 60
  beta: float = 0.3
  decay: float = 0.01
  temperature: float = 0.3
  learning_rate: float = 3e-3
  steps: int = 1500
  batch_size: int = 30
  hidden: int = 64


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model, penalty and optimiser of one method."""
  if config.method not in METHODS:
    raise mtl.InputError(f'method: found {config.method!r}, expected one of {METHODS}.')
  mtl.experiment.check_ranges(config, data_seed=0, beta=0, decay=0)
  made = data(config)
  metrics = {'r2': mtl.metrics.r2()}
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error, metrics=metrics) for name in made.names)
  heads = {task.name: mtl.heads.regress() for task in tasks}
  trunk = mtl.trunks.MLP((config.hidden,))
  if config.method == 'branching':
    trunk = mtl.trunks.MLP((config.hidden, 1), activation=jnp.tanh)
    groups = len(TREE.groups(1))
    model = mtl.sharing.learning_to_branch(trunk, heads, width=(1, groups))
  elif config.method == 'single':
    model = mtl.sharing.soft(trunk, heads, beta=0.0)  # a trunk for each, nothing between them
  else:
    model = mtl.sharing.hard(trunk, heads)
  heads_only = r'^tasks/.*kernel'
  penalty = {
    'mtrl': learned_relations.mtrl(config.beta, heads_only),
    'graph': learned_relations.adaptive_graph(config.beta, config.temperature, heads_only),
    'l2': mtl.penalties.l2(config.beta, heads_only),
  }.get(config.method)

  penalties = [] if config.method == 'branching' else [mtl.penalties.l2(config.decay, TRUNK)]
  penalties += [penalty] if penalty else []

  def optimizer(learning_rate, names):
    adam = optax.adam(learning_rate)
    own = {'choice/': optax.adam(0.15 * learning_rate), '': adam} if config.method == 'branching' else adam
    return mtl.task_optimizer(shared=adam, tasks={name: own for name in names})

  return mtl.Experiment(
    name='related_tasks',
    model=model,
    tasks=tasks,
    train=mtl.data.Batches(made.splits['train'], config.batch_size),
    val=mtl.data.eval_batches(made.splits['val'], 500),
    test=mtl.data.eval_batches(made.splits['test'], 1000),
    optimizer=optimizer,
    penalties=tuple(penalties),
  )


def data(config: Config) -> related_tasks.RelatedTasks:
  """Tasks whose relations are those of `TREE`."""
  return related_tasks.make(
    TREE,
    conflict=config.conflict,
    relatedness=config.relatedness,
    sizes={'train': config.train_size, 'val': 200, 'test': 1000},
    noise=config.noise,
    seed=config.data_seed,
  )


def fit(config: Config, seeds) -> list:
  """States after training, for each seed of the data that of the start with the smallest validation loss.

  All are trained at once.
  """
  runs = [build(dataclasses.replace(config, data_seed=seed)) for seed in seeds]
  model, tasks, balancer = runs[0].model, runs[0].tasks, mtl.balancing.equal()
  optimizer = runs[0].optimizer(config.learning_rate, tuple(task.name for task in tasks))
  step = mtl.make_train_step(model, tasks, optimizer, balancer, penalties=runs[0].penalties)
  eval_step = mtl.evaluate.make_eval_step(model, tasks)
  take = mtl.data.Batches.take

  def lane(seed, start, examples, indices, val):
    key = jax.random.fold_in(jax.random.key(seed), start)
    state = mtl.init_state(model, tasks, optimizer, balancer, take(examples, indices[0]), key)
    advance = lambda state, rows: (step(state, take(examples, rows))[0], None)
    state = jax.lax.scan(advance, state, indices)[0]
    sums = eval_step(state.params, state.model_state, val)
    return state, sum(metrics['loss'][0] / metrics['loss'][1] for metrics in sums.values())

  stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
  examples, val = stack(*(run.train.examples for run in runs)), stack(*(run.val[0] for run in runs))
  indices = np.stack([[run.train.indices(seed, i) for i in range(config.steps)] for seed, run in zip(seeds, runs)])
  starts = jax.vmap(lane, in_axes=(None, 0, None, None, None))
  lanes = jax.jit(jax.vmap(starts, in_axes=(0, None, 0, 0, 0)))
  states, losses = lanes(
    jnp.array(seeds), jnp.arange(STARTS.get(config.method, 1)), examples, jnp.asarray(indices), val
  )
  best = np.argmin(losses, axis=1)
  return [jax.tree.map(lambda leaf, at=(place, start): leaf[at], states) for place, start in enumerate(best)]


def relations_of(config: Config, params) -> np.ndarray | None:
  """What the heads say about the tasks, f[T, T] in the order of the tree's leaves.

  The task correlation of MTRL, the adjacency of the learned graph, else the cosines between the heads; None where heads
  read different features.
  """
  names = TREE.leaves
  if config.method == 'branching':
    return None
  if config.method == 'mtrl':
    return np.asarray(learned_relations.task_correlation(params, names=names))
  if config.method == 'graph':
    return np.asarray(learned_relations.task_adjacency(params, config.temperature, names=names))
  heads = np.asarray(learned_relations.task_matrix(params, WHERE.get(config.method, 'kernel'), names))
  heads = heads / np.linalg.norm(heads, axis=1, keepdims=True)
  return heads @ heads.T


def tree_of(found: np.ndarray) -> TaskTree:
  """The learned tree: average linkage, cut at the true number of groups."""
  return TaskTree.from_similarity(found, TREE.leaves, groups=len(TREE.groups(1))).limited(2)


def groups_of(config: Config, params) -> list[int]:
  """The group of each task: the branch that its head reads, else that of `tree_of`."""
  if config.method == 'branching':
    return [mtl.sharing.branches(params)[-1][name] for name in TREE.leaves]
  groups = tree_of(relations_of(config, params)).groups(1)
  return [next(g for g, group in enumerate(groups) if name in group) for name in TREE.leaves]


def agreement(config: Config, params, made: related_tasks.RelatedTasks) -> dict[str, float]:
  """Pearson correlation with the true covariance off the diagonal, adjusted Rand index of the groups."""
  from sklearn.metrics import adjusted_rand_score

  found, off = relations_of(config, params), ~np.eye(len(made.names), dtype=bool)
  correlation = np.nan if found is None else np.corrcoef(found[off], made.covariance[off])[0, 1]
  return {'correlation': correlation, 'rand index': adjusted_rand_score(made.groups, groups_of(config, params))}


def study(config: Config, methods=METHODS, seeds=range(5)):
  """Every method on every seed.

  Returns:
    {quantity: {method: [value of each seed]}} and {method: [relations f[T, T] of each seed]}.
  """
  values = {quantity: {method: [] for method in methods} for quantity in QUANTITIES}
  learned = {}
  for method in methods:
    chosen = dataclasses.replace(config, method=method, **BRANCHING if method == 'branching' else {})
    made = [data(dataclasses.replace(chosen, data_seed=seed)) for seed in seeds]
    experiment, states = build(chosen), fit(chosen, seeds)
    learned[method] = [relations_of(chosen, state.params) for state in states]
    eval_step = jax.jit(mtl.evaluate.make_eval_step(experiment.model, experiment.tasks))
    for truth, state in zip(made, states):
      test = mtl.data.eval_batches(truth.splits['test'], 1000)
      scores = mtl.evaluate.evaluate(
        experiment.model, experiment.tasks, state.params, state.model_state, test, eval_step
      )
      scores = {'r2': np.mean([task['r2'] for task in scores.values()]), **agreement(chosen, state.params, truth)}
      for quantity in QUANTITIES:
        values[quantity][method].append(float(scores[quantity]))
  return values, learned


def table(values, seeds) -> str:
  """A block of rows for every quantity: its value for each seed, mean and standard deviation over seeds."""
  rows = []
  for quantity, by_method in values.items():
    for method, found in by_method.items():
      if np.isnan(found).any():
        continue
      spread = np.std(found, ddof=1) if len(found) > 1 else 0.0
      rows.append(
        [f'{QUANTITIES[quantity]}: {method}', *(f'{x:.2f}' for x in found), f'{np.mean(found):.2f} ± {spread:.2f}']
      )
  return mtl.analysis.aligned(['', *(f'seed {seed}' for seed in seeds), 'mean ± std'], rows)


def figure(made: related_tasks.RelatedTasks, learned):
  """True and learned relations, the learned tree and the learned graph; 9 inches wide."""
  from matplotlib.figure import Figure

  names = TREE.leaves
  canvas = Figure(figsize=(9, 6.2), layout='constrained')
  canvas.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
  above, below = canvas.subfigures(2, 1, height_ratios=(1, 1))
  matrices = {
    'true covariance': made.covariance,
    'learned, MTRL': learned['mtrl'],
    'heads without a penalty': learned['equal'],
  }
  relations_plot.draw_matrices(above.subplots(1, 3), matrices, names)
  left, right = below.subplots(1, 2, width_ratios=(1.3, 1))
  relations_plot.draw_tree(left, tree_of(learned['mtrl']), 'tree of the learned covariance')
  graph = TaskGraph.from_adjacency(learned['graph'], names, THRESHOLD)
  relations_plot.draw_graph(right, graph, f'learned graph, weights above {THRESHOLD:.2f}')
  return canvas


def main(argv=None) -> None:
  """Runs the study, prints the table and the trees, draws the figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seeds', type=int, default=5, help='how many')
  parser.add_argument('--conflict', type=float, default=Config.conflict)
  parser.add_argument('--train_size', type=int, default=Config.train_size)
  parser.add_argument('--out', type=pathlib.Path, default=None, help='folder of the figure; none is drawn without it')
  options = parser.parse_args(argv)
  config = Config(conflict=options.conflict, train_size=options.train_size)
  seeds = range(options.seeds)
  values, learned = study(config, seeds=seeds)
  print(table(values, seeds))
  print(f'\nTrue tree\n{TREE}')
  print(f'\nTree of the covariance learned by mtrl, seed 0\n{tree_of(learned["mtrl"][0])}')
  print(f'\nLearned graph, seed 0: {TaskGraph.from_adjacency(learned["graph"][0], TREE.leaves, THRESHOLD)}')
  if options.out is not None:
    options.out.mkdir(parents=True, exist_ok=True)
    first = {method: found[0] for method, found in learned.items()}
    mtl.analysis.save(figure(data(config), first), options.out / 'related_tasks.png')


if __name__ == '__main__':
  main()
