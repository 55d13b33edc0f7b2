r"""Two handwritten digits on one canvas, hard sharing by default: which is at the top left, which at the bottom right.

  mtljax train experiments/multi_digits.py
  mtljax compare experiments/multi_digits.py --balancers equal,uncertainty,pcgrad,cagrad,nash_mtl,upgrad --seeds 3

About 25 s and 13 min on two cores. The second command printed (1e-3, 3e-3 and 1e-2 tried for every row):

  method         left accuracy   right accuracy        Δm [%]  rank  time/equal  steps   rate
  -----------  ---------------  ---------------  ------------  ----  ----------  -----  -----
  single-task  0.9748 ± 0.0088  0.9713 ± 0.0085         +0.00     –        2.29   2000  0.003
  nash_mtl     0.9715 ± 0.0078  0.9677 ± 0.0068  -0.36 ± 0.11  1.50        2.04   2000  0.003
  pcgrad       0.9717 ± 0.0092  0.9663 ± 0.0031  -0.42 ± 0.82  2.50        2.07   2000   0.01
  uncertainty  0.9713 ± 0.0029  0.9663 ± 0.0019  -0.44 ± 0.11  3.00        0.98   2000  0.003
  cagrad       0.9707 ± 0.0061  0.9665 ± 0.0057  -0.46 ± 0.45  3.00        2.14   2000  0.003
  upgrad       0.9702 ± 0.0124  0.9658 ± 0.0052  -0.52 ± 1.10  5.50        2.13   2000   0.01
  equal        0.9705 ± 0.0025  0.9652 ± 0.0019  -0.54 ± 0.34  5.50        1.00   2000  0.003

Both tasks of `equal` are above .96; no method beats single-task training of the same budget. The first command printed
accuracies of 0.9695 and 0.9650 (seed 0). The losses include the label smoothing, so .65 is near their floor.

Architectures, and those that skip residual blocks,

  mtljax compare experiments/multi_digits.py --architectures all --balancers equal --seeds 3 --steps 300 \
    --learning_rates 3e-3,1e-2,3e-2
  mtljax compare experiments/multi_digits.py --blocks 3 --width 24 --balancers equal --seeds 3 --steps 300 \
    --learning_rates 1e-3,3e-3 --architectures 'hard,adashare,adashare(hard=True),cross_stitch'

are in docs/sharing.md.

Data: scikit-learn's 1797 digits, no download (`mtljax.data.multi_digits`). A logistic regression reaches .910 / .921.
"""

import dataclasses
import functools

import flax.linen as nn
import optax

import mtljax as mtl


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=3)'.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: pairs of digits per step.
    width: channels of the convolution.
    blocks: residual blocks between the convolution and the dense layer. They keep the shape of what they read, so
      `adashare` can skip them.
    hidden: units of the dense layer that the heads share.
    label_smoothing: share of the probability that a label spreads over all digits; the training pairs show only 1097
      sources, which the net learns by heart.
    data_dir: folder of prepared data sets.
  """

  architecture: str = 'hard'
  learning_rate: float = 3e-3
  steps: int = 2000
  batch_size: int = 32
  width: int = 48
  blocks: int = 0
  hidden: int = 128
  label_smoothing: float = 0.1
  data_dir: str = '~/.cache/mtljax'


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  splits = mtl.data.multi_digits.load(config.data_dir)
  loss = functools.partial(mtl.losses.softmax_cross_entropy, label_smoothing=config.label_smoothing)
  tasks = tuple(mtl.Task(name, loss, metrics={'accuracy': mtl.metrics.accuracy()}) for name in ('left', 'right'))
  trunk = mtl.trunks.LeNet(features=(config.width,), hidden=config.hidden, kernel_size=3)
  if config.blocks:
    resnet = mtl.trunks.ResNet(depths=(config.blocks,), width=config.width, groups=4).blocks
    blocks = {name: part for name, part in resnet.items() if name not in ('stem', 'pool')}
    trunk = mtl.sharing.chained({'conv': trunk.stages['conv_0'], **blocks, 'dense': trunk.stages['dense']})

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='multi_digits',
    model=mtl.sharing.parse(config.architecture)(trunk, {task.name: nn.Dense(10) for task in tasks}),
    tasks=tasks,
    train=mtl.data.Batches(splits['train'], config.batch_size),
    val=mtl.data.eval_batches(splits['val'], 500),
    test=mtl.data.eval_batches(splits['test'], 500),
    optimizer=optimizer,
  )
