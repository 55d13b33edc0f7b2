r"""Multi-MNIST, two digits of MNIST on one canvas, with any sharing architecture over a LeNet.

  mtljax train experiments/multi_mnist.py --data_dir DIR
  mtljax compare experiments/multi_mnist.py --balancers equal --seeds 3 --steps 300 --learning_rates 3e-3,1e-2 \
    --data_dir DIR --architectures \
    'hard,soft,cross_stitch,mtan,mmoe(num_experts=2),cgc(num_shared=1),ple,graph,lora,knowledge'

The first command printed accuracies of 0.9256 and 0.9180 (seed 0). The second took 38 min of processor time (39 min on
two busy cores) and printed

  method                 left accuracy   right accuracy        Δm [%]   rank  time/hard  parameters  steps   rate
  -------------------  ---------------  ---------------  ------------  -----  ---------  ----------  -----  -----
  single-task          0.9404 ± 0.0211  0.9276 ± 0.0048         +0.00      –       2.00     178,780    300  0.003
  graph                0.9443 ± 0.0206  0.9295 ± 0.0111  +0.31 ± 1.29   1.50       4.27     181,780    300  0.003
  ple                  0.9391 ± 0.0146  0.9305 ± 0.0157  +0.08 ± 0.61   2.00       5.69     303,360    300  0.003
  cgc(num_shared=1)    0.9405 ± 0.0265  0.9285 ± 0.0119  +0.06 ± 2.68   2.50       4.61     270,298    300  0.003
  mmoe(num_experts=2)  0.9365 ± 0.0152  0.9267 ± 0.0136  -0.26 ± 0.97   4.50       3.16     183,968    300  0.003
  soft                 0.9337 ± 0.0179  0.9273 ± 0.0361  -0.37 ± 1.66   6.00       3.01     178,780    300  0.003
  cross_stitch         0.9343 ± 0.0244  0.9261 ± 0.0160  -0.40 ± 1.85   6.50       3.12     178,792    300  0.003
  lora                 0.9362 ± 0.0164  0.9233 ± 0.0047  -0.45 ± 0.60   6.00       3.07     108,250    300  0.003
  hard                 0.9347 ± 0.0197  0.9184 ± 0.0080  -0.80 ± 0.50   7.00       1.00      92,450    300  0.003
  knowledge            0.9271 ± 0.0117  0.9121 ± 0.0122  -1.55 ± 0.26   9.00       1.16     117,538    300  0.003
  mtan                 0.9247 ± 0.0159  0.9028 ± 0.0142  -2.17 ± 1.79  10.00       3.26     119,006    300  0.003

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
