"""Labels at every pixel: `experiments/scene.py` on made-up files of the three data sets."""

import jax
import numpy as np
import pytest

from mtljax import cli, runs
from mtljax import experiment as experiment_lib

scene = experiment_lib.load('scene')
SIZE = (16, 24)
SMALL = dict(size=SIZE, width=4, stages=2, batch_size=2, steps=2)
TASKS = {
  'camvid': ('segmentation', 'boundary', 'presence'),
  'nyuv2': ('segmentation', 'depth', 'normals'),
  'cityscapes': ('segmentation', 'depth'),
}


def write(folder):
  draw = np.random.default_rng(0)
  blocks = lambda n, classes: np.kron(draw.integers(0, classes, (n, 2, 3)), np.ones((1, 8, 8), int))
  arrays = {}
  for split, n in (('train', 6), ('val', 3), ('test', 3)):
    arrays[f'{split}_label'] = blocks(n, 12).astype(np.uint8)
    arrays[f'{split}_image'] = draw.integers(0, 256, (n, *SIZE, 3)).astype(np.uint8)
  np.savez(folder / 'camvid_16x24.npz', **arrays)
  for name, label, classes in (('nyuv2', 'label', 13), ('cityscapes', 'label_7', 7)):
    for split, n in (('train', 6), ('val', 3)):
      for i in range(n):
        files = {
          'image': draw.random((*SIZE, 3)),
          label: blocks(1, classes + 1)[0] - 1,
          'depth': np.maximum(draw.normal(1, 1, (*SIZE, 1)), 0),
          'normal': draw.normal(size=(*SIZE, 3)),
        }
        for part, array in files.items():
          (folder / name / split / part).mkdir(parents=True, exist_ok=True)
          np.save(folder / name / split / part / f'{i}.npy', array)
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp('scene'))


def build(folder, **changes):
  held = dict(data_dir=str(folder)) | SMALL | changes
  return scene.build(scene.Config(**held))


@pytest.mark.parametrize('dataset', TASKS)
def test_every_data_set_has_its_tasks_and_measures(folder, dataset):
  experiment = build(folder, dataset=dataset)
  assert tuple(task.name for task in experiment.tasks) == TASKS[dataset]
  metrics = {task.name: list(task.metrics) for task in experiment.tasks}
  assert metrics['segmentation'] == ['mIoU', 'accuracy']
  if dataset == 'nyuv2':
    assert metrics['normals'] == ['mean', 'median', '11.25°', '22.5°', '30°']
  run = runs.Run(experiment, experiment_lib.Options(steps=2, eval_every=2, checkpoint_every=2))
  assert set(run.names) == set(TASKS[dataset])
  batch = experiment.train(0, 0)
  for name, kind in {'boundary': (2, *SIZE), 'depth': (2, *SIZE), 'normals': (2, *SIZE, 3)}.items():
    if name in batch['labels']:
      assert batch['labels'][name].shape == kind
      assert batch['mask'][name].shape == (2, *SIZE)


def test_a_run_and_its_figure(folder, tmp_path):
  """What the command line does, and the pictures of its predictions."""
  words = [f'--{name}={value}' for name, value in SMALL.items() if name != 'size']
  words += ['--size', *map(str, SIZE), '--data_dir', str(folder), '--run_dir', str(tmp_path / 'run')]
  cli.main(['train', 'scene', *words, '--eval_every', '2', '--checkpoint_every', '2', '--log_every', '1'])
  figure = scene.figure(tmp_path / 'run')
  titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
  assert titles == ['image', 'segmentation: label', 'prediction', 'boundary: label', 'prediction']


def test_single_task_baselines_and_architectures(folder):
  experiment = build(folder)
  for name in TASKS['camvid']:
    part = experiment_lib.subset(experiment, [name])
    batch = part.train(0, 0)
    assert set(batch['labels']) == {name}
  experiment_lib.check_model(build(folder, architecture='soft'))


@pytest.mark.data
def test_pixels_of_the_real_files(data_dir):
  experiment = scene.build(scene.Config(data_dir=str(data_dir)))
  batch = experiment.train(0, 0)
  image, mask = np.asarray(batch['inputs']), np.asarray(batch['mask']['segmentation'])
  assert image.shape == (4, 96, 128, 3) and 0 <= image.min() and image.max() <= 1 and 0.8 < mask.mean() < 1
  assert jax.tree.all(
    jax.tree.map(
      lambda y, m: y.shape == (4, 96, 128),
      *({task: batch[key][task] for task in ('segmentation', 'boundary')} for key in ('labels', 'mask')),
    )
  )
