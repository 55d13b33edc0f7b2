"""Multi-MNIST, two digits of MNIST on one canvas, with any sharing architecture over a LeNet.

Data: MNIST's four files (TFDS `mnist` fetches the same, or https://storage.googleapis.com/cvdf-datasets/mnist/) in the
folder `--data_dir` or in `mnist` within it.
"""

import dataclasses

import optax

import mtljax as mtl


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment: the LeNet of Sener & Koltun (2018), https://arxiv.org/abs/1810.04650.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=3)'.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: pairs of digits per step.
    train_pairs: how many pairs there are to learn from.
    data_dir: folder with MNIST.
  """

  architecture: str = 'hard'
  learning_rate: float = 3e-3
  steps: int = 300
  batch_size: int = 32
  train_pairs: int = 20_000
  data_dir: str = '~/.cache/mtljax'


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  splits = mtl.data.multi_mnist.load(config.data_dir, {**mtl.data.multi_mnist.PAIRS, 'train': config.train_pairs})
  loss, metrics = mtl.losses.softmax_cross_entropy, {'accuracy': mtl.metrics.accuracy()}
  tasks = tuple(mtl.Task(name, loss, metrics=metrics) for name in ('left', 'right'))
  trunk = mtl.trunks.LeNet(features=(10, 20), hidden=50)
  heads = {task.name: mtl.heads.classify(10, hidden=(50,)) for task in tasks}

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='multi_mnist',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(splits['train'], config.batch_size),
    val=mtl.data.eval_batches(splits['val'], 250),
    test=mtl.data.eval_batches(splits['test'], 250),
    optimizer=optimizer,
  )
