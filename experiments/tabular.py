r"""Adult: income above 50k and never married from a census, experts and gates on tabular data.

  mtljax train experiments/tabular.py --architecture 'mmoe(num_experts=3)' --imbalance focal --data_dir DIR
  mtljax compare experiments/tabular.py --architectures 'hard,mmoe(num_experts=3),ple' --balancers equal,uncertainty \
    --seeds 3 --steps 800 --learning_rates 1e-3,3e-3 --data_dir DIR

The second command took 1 min 14 s on two cores and printed (without the columns of ranks, parameters and steps)

  method                                 income auc  never_married auc        Δm [%]  time/hard, equal         rate
  --------------------------------  ---------------  -----------------  ------------  ----------------  -----------
  single-task                       0.8737 ± 0.0024    0.8768 ± 0.0024         +0.00              1.99  0.003/0.001
  mmoe(num_experts=3), uncertainty  0.8751 ± 0.0017    0.8778 ± 0.0010  +0.14 ± 0.31              2.73        0.003
  mmoe(num_experts=3), equal        0.8751 ± 0.0017    0.8777 ± 0.0009  +0.13 ± 0.30              2.64        0.003
  hard, equal                       0.8748 ± 0.0022    0.8769 ± 0.0009  +0.07 ± 0.15              1.00        0.003
  ple, uncertainty                  0.8730 ± 0.0009    0.8772 ± 0.0012  -0.02 ± 0.19              3.67        0.001
  ple, equal                        0.8727 ± 0.0008    0.8770 ± 0.0012  -0.04 ± 0.20              3.61        0.001
  hard, uncertainty                 0.8728 ± 0.0023    0.8759 ± 0.0014  -0.10 ± 0.17              1.02        0.001

One-hot logistic regressions have 0.856 and 0.870. Every net is better than those, and no row differs from single-task
nets by more than its interval of Δm: here sharing saves a net, or half the parameters, and gains or loses nothing.

Inputs are the attributes but marital status and what tells it; numbers are standardised, categories one-hot.

Data: Adult of the UCI repository, https://doi.org/10.24432/C5XW20, as adult.csv or adult.csv.gz in `--data_dir`, or in
`adult` within it: a line of names, the columns of `LEFT_OUT`, any other attributes, and is_test, 1 in the fifth of the
rows that is for testing.
"""

import dataclasses
import functools
from typing import Literal

import optax

import mtljax as mtl
from mtljax.data import lines, tables

# Marital status is a label, relationship tells it, and fnlwgt is the weight of a row in the census and no attribute.
LEFT_OUT = ('income-over-50k', 'marital-status', 'relationship', 'fnlwgt')
LABELS = {
  'income': tables.yes_no('income-over-50k', 1),
  'never_married': tables.yes_no('marital-status', 'Never-married'),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment: the tasks of Ma et al. (2018), https://doi.org/10.1145/3219819.3220007.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=3)'.
    imbalance: what is done about rare positives: 'none', 'weights' (both classes of a task weigh the same) or 'focal'.
    hidden: widths of the trunk, or of every expert.
    dropout: rate, after every layer of the trunk.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: rows per step.
    data_dir: folder with adult.csv.gz, or the folder above it, called adult.
  """

  architecture: str = 'hard'
  imbalance: Literal['none', 'weights', 'focal'] = 'none'
  hidden: tuple[int, ...] = (64, 32)
  dropout: float = 0.1
  learning_rate: float = 3e-3
  steps: int = 1000
  batch_size: int = 256
  data_dir: str = '~/.cache/mtljax'


def load(data_dir: str) -> dict:
  """{'train', 'val', 'test'} of examples; a tenth of the rows that are not for testing is for validation."""
  table = tables.read_csv(lines.locate(data_dir, 'adult.csv', 'adult'))
  parts = table.split_by('is_test', {'train': 0, 'test': 1})
  parts |= parts['train'].split({'train': 0.9, 'val': 0.1})
  inputs = [name for name in parts['train'].columns if name not in LEFT_OUT]
  return tables.encode(parts, LABELS, inputs, unseen='zeros').splits  # countries that one person comes from


def losses(imbalance: str, train) -> dict:
  """{task: loss}."""
  if imbalance == 'weights':
    weights = tables.positive_weights(train)
    return {t: functools.partial(mtl.losses.sigmoid_cross_entropy, pos_weight=weights[t]) for t in LABELS}
  known = {'none': mtl.losses.sigmoid_cross_entropy, 'focal': mtl.losses.sigmoid_focal}
  if imbalance not in known:
    raise mtl.InputError(f"imbalance: found {imbalance!r}, expected 'none', 'weights' or 'focal'.")
  return dict.fromkeys(LABELS, known[imbalance])


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  splits = load(config.data_dir)
  names = ('auc', 'precision', 'recall', 'f1')
  metrics = {name: getattr(mtl.metrics, name)() for name in names}
  tasks = tuple(
    mtl.Task(name, loss, metrics=metrics) for name, loss in losses(config.imbalance, splits['train']).items()
  )
  trunk = mtl.trunks.MLP(config.hidden, dropout=config.dropout)
  heads = {task.name: mtl.heads.regress() for task in tasks}

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='tabular',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(splits['train'], config.batch_size),
    val=mtl.data.eval_batches(splits['val'], 2048),
    test=mtl.data.eval_batches(splits['test'], 2048),
    optimizer=optimizer,
  )
