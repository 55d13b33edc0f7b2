r"""Images and speech through one convolutional trunk: MNIST's digits, spoken digits and their speakers.

  mtljax train experiments/image_speech.py --data_dir DIR
  mtljax compare experiments/image_speech.py --balancers equal,uncertainty --seeds 3 --steps 700 \
    --learning_rates 2e-3,4e-3 --data_dir DIR
  mtljax train experiments/image_speech.py --schedule sampled --steps 2100 --data_dir DIR

Every task has data of its own; recordings become log-mel spectrograms of the size of MNIST's images. The first command
took 40 s and printed accuracies of 0.9773, 0.9967 and 1.0000 (seed 0). The second took 8 min of wall time on two busy
cores (8 min of processor time) and printed

  method        image accuracy   digit accuracy  speaker accuracy        Δm [%]  rank  time/equal  steps         rate
  -----------  ---------------  ---------------  ----------------  ------------  ----  ----------  -----  -----------
  single-task  0.9838 ± 0.0048  0.9956 ± 0.0096   0.9978 ± 0.0048         +0.00     –        1.15    700  0.004/0.002
  uncertainty  0.9776 ± 0.0040  0.9978 ± 0.0048   1.0000 ± 0.0000  -0.06 ± 0.12  1.17        1.37    700        0.002
  equal        0.9762 ± 0.0037  0.9978 ± 0.0048   0.9989 ± 0.0048  -0.15 ± 0.27  1.83        1.00    700        0.002

Logistic regression on log-mel energies has 0.960 and 0.983 on the 300 spoken digits and their speakers; all rows are
above by more than twice its standard error (0.011 and 0.007). Images lose: 0.006 to 0.008 below a net of their own,
which has as many filters for one task as the shared one for three. On speech no row differs from single-task nets by
more than its interval: one recording in 300 is 0.0033.

The third command learns from one task a step, drawn by the size of its data, three times as many steps; it took 57 s
and printed 0.9833, 0.9933 and 1.0000.

Data, in `--data_dir` or in folders mnist and fsdd within it: MNIST's idx files, TFDS `mnist`,
https://storage.googleapis.com/cvdf-datasets/mnist/; the Free Spoken Digit Dataset, TFDS `spoken_digit`,
https://github.com/Jakobovski/free-spoken-digit-dataset: its wav files or fsdd.npz. Recordings 0 to 4 are for testing.
"""

import dataclasses
from typing import Literal

import numpy as np
import optax

import mtljax as mtl
from mtljax.data import idx, schedules, spectrograms, spoken_digits
from mtljax.data.transforms import speech

CLASSES = {'image': 10, 'digit': 10, 'speaker': 6}
SPOKEN = ('digit', 'speaker')
SIZE = 28  # of MNIST's images, and of spectrograms
VAL_IMAGES = 5000


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'mmoe(num_experts=3)'.
    schedule: 'all', a batch of every task in every step; or one task a step: 'round_robin', in turn, 'sampled',
      drawn by the size of its data, or 'by_loss', drawn by its loss.
    temperature: of 'sampled' and 'by_loss': 1 draws in proportion, more evens the tasks out.
    features: channels of the trunk's convolutions.
    hidden: width of the dense layer of every head.
    dropout: rate, after that.
    augment: whether spectrograms are shifted and masked.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: examples of a task per step.
    train_images: of MNIST, to learn from, at most 55000; there are 2400 recordings.
    data_dir: folder with mnist and fsdd.
  """

  architecture: str = 'hard'
  schedule: Literal['all', 'round_robin', 'sampled', 'by_loss'] = 'all'
  temperature: float = 2.0
  features: tuple[int, ...] = (8, 32)
  hidden: int = 128
  dropout: float = 0.3
  augment: bool = True
  learning_rate: float = 3e-3
  steps: int = 700
  batch_size: int = 48
  train_images: int = 20_000
  data_dir: str = '~/.cache/mtljax'


def load(data_dir: str, train_images: int) -> dict:
  """{split: {task: examples}}."""
  images, labels = idx.mnist(data_dir, 'train')
  if not 1 <= train_images <= len(labels) - VAL_IMAGES:
    raise mtl.InputError(f'train_images: found {train_images}, expected 1 to {len(labels) - VAL_IMAGES}.')
  parts = {
    'train': (images[:train_images], labels[:train_images]),
    'val': (images[-VAL_IMAGES:], labels[-VAL_IMAGES:]),
    'test': idx.mnist(data_dir, 'test'),
  }
  spoken = spectrograms.examples(spoken_digits.load(data_dir), SPOKEN, frames=SIZE, mels=SIZE)
  splits = {}
  for split, (x, y) in parts.items():
    splits[split] = {'image': {'inputs': x[..., None].astype(np.float32) / 255, 'labels': y}}
    for task, found in spoken[split]['labels'].items():
      splits[split][task] = {'inputs': spoken[split]['inputs'], 'labels': found}
  return splits


def schedule(config: Config) -> schedules.Schedule | schedules.ByLoss | None:
  """Which tasks a step has."""
  made = {
    'all': None,
    'round_robin': schedules.round_robin(),
    'sampled': schedules.sampled(config.temperature),
    'by_loss': schedules.by_loss(config.temperature),
  }
  if config.schedule not in made:
    raise mtl.InputError(f'schedule: found {config.schedule!r}, expected one of {sorted(made)}.')
  return made[config.schedule]


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  splits = load(config.data_dir, config.train_images)
  loss, metrics = mtl.losses.softmax_cross_entropy, {'accuracy': mtl.metrics.accuracy()}
  tasks = tuple(mtl.Task(name, loss, metrics=metrics) for name in CLASSES)
  trunk = mtl.trunks.LeNet(config.features, hidden=None, kernel_size=3)
  hidden = dict(hidden=(config.hidden,), dropout=config.dropout)
  heads = {name: mtl.heads.classify(classes, **hidden) for name, classes in CLASSES.items()}
  masked = speech.augment(speech.shift_time(2), speech.mask_frequency(4, 1), speech.mask_time(4, 1), tasks=SPOKEN)

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name='image_speech',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(
      splits['train'], config.batch_size, transform=masked if config.augment else None, schedule=schedule(config)
    ),
    val=mtl.data.eval_batches(splits['val'], 500),
    test=mtl.data.eval_batches(splits['test'], 500),
    optimizer=optimizer,
  )
