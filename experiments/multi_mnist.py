r"""Multi-MNIST, two digits of MNIST on one canvas, with any sharing architecture over a LeNet.

  mtljax train experiments/multi_mnist.py --data_dir DIR
  mtljax compare experiments/multi_mnist.py --balancers equal --seeds 3 --steps 300 --learning_rates 3e-3,1e-2 \
    --data_dir DIR --architectures \
    'hard,soft,cross_stitch,mtan,mmoe(num_experts=2),cgc(num_shared=1),ple,graph,lora,knowledge'

The first command printed accuracies of 0.9256 and 0.9180 (seed 0). The second took 24 min of processor time (30 min on
two busy cores) and printed

  method                 left accuracy   right accuracy        Δm [%]  rank  time/hard  parameters  steps   rate
  -------------------  ---------------  ---------------  ------------  ----  ---------  ----------  -----  -----
  single-task          0.9403 ± 0.0200  0.9284 ± 0.0069         +0.00     –       1.91     178,780    300  0.003
  graph                0.9429 ± 0.0209  0.9292 ± 0.0086  +0.19 ± 1.43  1.50       3.80     181,780    300  0.003
  cgc(num_shared=1)    0.9416 ± 0.0190  0.9274 ± 0.0159  +0.02 ± 2.61  3.00       3.72     270,298    300  0.003
  ple                  0.9369 ± 0.0233  0.9312 ± 0.0129  -0.03 ± 0.69  2.00       5.04     303,360    300  0.003
  lora                 0.9366 ± 0.0129  0.9245 ± 0.0141  -0.40 ± 0.88  5.00       2.44     108,250    300  0.003
  mmoe(num_experts=2)  0.9361 ± 0.0181  0.9250 ± 0.0082  -0.40 ± 1.08  5.00       3.02     183,968    300  0.003
  soft                 0.9329 ± 0.0186  0.9280 ± 0.0262  -0.41 ± 1.09  5.50       2.57     178,780    300  0.003
  cross_stitch         0.9333 ± 0.0281  0.9244 ± 0.0164  -0.58 ± 1.91  7.00       2.44     178,792    300  0.003
  hard                 0.9354 ± 0.0181  0.9181 ± 0.0075  -0.81 ± 0.66  7.00       1.00      92,450    300  0.003
  knowledge            0.9259 ± 0.0155  0.9129 ± 0.0182  -1.60 ± 0.35  9.50       1.12     117,538    300  0.003
  mtan                 0.9291 ± 0.0111  0.9011 ± 0.0262  -2.06 ± 2.75  9.50       3.36     119,006    300  0.003

These are short runs, 9600 pairs each; docs/sharing.md reads the table. All balancers,

  mtljax compare experiments/multi_mnist.py --balancers all --seeds 3 --steps 120 --learning_rates 3e-3,1e-2 \
    --data_dir DIR

took 34 min of processor time (20 min on two busy cores) and printed docs/multi_mnist_methods.txt, of which

  method             left accuracy   right accuracy          Δm [%]   rank  time/equal  steps   rate
  ---------------  ---------------  ---------------  --------------  -----  ----------  -----  -----
  single-task      0.8641 ± 0.1137  0.8507 ± 0.0358           +0.00      –        2.00    120  0.003
  fairgrad         0.8815 ± 0.1284  0.8469 ± 0.1363    +0.75 ± 6.96   1.00        1.14    120   0.01
  mgda             0.8593 ± 0.0470  0.8158 ± 0.0676    -2.28 ± 2.75  18.50        1.17    120  0.003
  equal            0.8517 ± 0.0812  0.8172 ± 0.0401    -2.65 ± 5.03  19.00        1.00    120  0.003

After 120 steps the spread over seeds is larger than most differences. Sener & Koltun (2018) report that MGDA gives
better models than per-task training and than other ways to weight the tasks. Here Δm has single-task nets before MGDA
and MGDA before equal weights, but both intervals include 0 and the gap between MGDA and equal weights is small beside
them: neither confirmed nor contradicted. Lin et al. (2019) look for many trade-offs rather than one, which these
accuracies do not show.
docs/balancing.md reads the table.

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
