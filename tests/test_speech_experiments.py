"""`experiments/image_speech.py` and `experiments/shared_knowledge.py`, on made-up files."""

import struct

import jax
import numpy as np
import pytest

import mtljax as mtl
from mtljax import cli, runs
from mtljax import experiment as experiment_lib

image_speech = experiment_lib.load('image_speech')
shared_knowledge = experiment_lib.load('shared_knowledge')

SMALL = dict(features=(4, 4), hidden=8, batch_size=4)
IMAGES = {'train': 40, 't10k': 12}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Tones for digits, in as many octaves as speakers, and images with as many bright rows as the digit says."""
  path = tmp_path_factory.mktemp('speech')
  cases = [(d, s, r) for d in range(10) for s in range(6) for r in (0, 5, 10)]
  tone = lambda d, s, r: np.sin(np.arange(400 + 50 * d + r) * (d + 1) / 10) * 2 ** (10 + s % 3)
  rows = [tone(*case).astype(np.int16) for case in cases]
  digit, speaker, recording = np.array(cases, np.uint8).T
  columns = dict(digit=digit, speaker=speaker, recording=recording, offset=np.cumsum([0, *map(len, rows)]))
  np.savez(path / 'fsdd.npz', audio=np.concatenate(rows), sample_rate=8000, **columns)
  for prefix, count in IMAGES.items():
    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.broadcast_to((np.arange(28) < 2 * labels[:, None] + 2)[..., None] * 255, (count, 28, 28)).astype(
      np.uint8
    )
    for name, array in ((f'{prefix}-images-idx3-ubyte', images), (f'{prefix}-labels-idx1-ubyte', labels)):
      head = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
      (path / name).write_bytes(head + array.tobytes())
  return path


def build(module, folder, **changes):
  return module.build(module.Config(data_dir=str(folder), **{**SMALL, **changes}))


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
  monkeypatch.setattr(image_speech, 'VAL_IMAGES', 10)


def images(folder, **changes):
  return build(image_speech, folder, **{'train_images': 30, **changes})


def test_tasks_have_data_of_their_own(folder):
  experiment = images(folder)
  counts = {task: len(part['labels']) for task, part in experiment.train.examples.items()}
  assert counts == {'image': 30, 'digit': 60, 'speaker': 60}
  assert [task.name for task in experiment.tasks] == ['image', 'digit', 'speaker']
  batch = experiment.train(0, 3)
  assert {part['inputs'].shape for part in batch.values()} == {(4, 28, 28, 1)}
  rows = experiment.train.indices(0, 3)
  for task, part in batch.items():
    same = np.array_equal(part['inputs'], experiment.train.examples[task]['inputs'][rows[task]])
    assert same == (task == 'image'), 'spectrograms are masked, images are not'
  plain = images(folder, augment=False).train
  assert np.array_equal(plain(0, 3)['digit']['inputs'], plain.examples['digit']['inputs'][rows['digit']])


def test_schedules(folder):
  train = images(folder, schedule='round_robin').train
  assert [list(train(0, step)) for step in range(3)] == [['digit'], ['image'], ['speaker']]
  train = images(folder, schedule='sampled', temperature=1.0).train
  drawn = [next(iter(train.indices(0, step))) for step in range(200)]
  assert drawn.count('digit') > drawn.count('image') > 20


@pytest.mark.parametrize('architecture', ['hard', 'mmoe(num_experts=2)', 'cross_stitch'])
def test_architectures_of_images_and_speech(folder, architecture):
  experiment_lib.check_model(images(folder, architecture=architecture))


def first_loss_and_last(experiment, steps):
  run = runs.Run(experiment, experiment_lib.Options(steps=steps, learning_rate=1e-2))
  state = run.init()
  losses = []
  for step in range(steps):
    state, info = run.step(state, step)
    losses.append(np.asarray(info.losses))
  return np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0), state


def test_both_learn(folder):
  for experiment in (images(folder, dropout=0.0), build(shared_knowledge, folder, dropout=0.0, size=16)):
    first, last, _ = first_loss_and_last(experiment, 60)
    assert np.all(last < 0.97 * first) and last.mean() < 0.8 * first.mean()


def test_knowledge_is_what_classes_sound_like(folder):
  experiment = build(shared_knowledge, folder, size=16)
  x, labels = (experiment.train.examples[key] for key in ('inputs', 'labels'))
  _, state = jax.eval_shape(lambda: experiment.model.init(jax.random.key(0), dict.fromkeys(labels, x[:2])))
  assert state['shared']['memory']['matrix'].shape == (16, 256)
  found = shared_knowledge.facts(shared_knowledge.Config(), {'inputs': x, 'labels': labels})
  np.testing.assert_allclose(found[10 + 2], x[labels['speaker'] == 2].mean(axis=0).ravel(), atol=1e-5)
  config = shared_knowledge.Config(facts=('speaker',), matrix='statistics')
  found = shared_knowledge.facts(config, {'inputs': x, 'labels': labels})
  assert found.shape == (6, 512)
  np.testing.assert_allclose(found[2, 256:], x[labels['speaker'] == 2].std(axis=0).ravel(), atol=1e-4)


def test_knowledge_is_fixed_or_learned(folder):
  for architecture, fixed in (('knowledge', True), ('knowledge(size=(5, 6))', False)):
    experiment = build(shared_knowledge, folder, architecture=architecture, size=16)
    _, _, state = first_loss_and_last(experiment, 3)
    memory = state.params['shared']['memory']
    assert ('matrix' in state.model_state['shared']['memory']) == fixed == ('matrix' not in memory)
    assert fixed or memory['matrix'].shape == (5, 6)
  experiment_lib.check_model(build(shared_knowledge, folder, architecture='hard'))


BAD = {
  'train_images': (lambda f: images(f, train_images=31), 'train_images: found 31, expected 1 to 30'),
  'schedule': (lambda f: images(f, schedule='random'), "schedule: found 'random', expected one of"),
  'temperature': (lambda f: images(f, schedule='sampled', temperature=0.5), 'temperature is 0.5'),
  'matrix': (lambda f: build(shared_knowledge, f, matrix='embedding'), "matrix: found 'embedding', expected one of"),
  'facts': (lambda f: build(shared_knowledge, f, facts=('word',)), r"facts: found \('word',\), expected some of"),
  'no data': (lambda f: build(shared_knowledge, f / 'none'), 'has no fsdd.npz'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_options_are_named(folder, case):
  call, message = BAD[case]
  with pytest.raises(mtl.InputError, match=message):
    call(folder)


def test_command(folder, tmp_path, capsys):
  options = [f'--{name}={value}' for name, value in SMALL.items() if name != 'features']
  argv = ['train', 'shared_knowledge', '--steps=3', *options, f'--data_dir={folder}', f'--run_dir={tmp_path / "run"}']
  assert cli.main(argv) == 0
  rows = capsys.readouterr().out.split('\ntest')[1].splitlines()[2:4]
  assert [row.split()[0] for row in rows] == ['digit', 'speaker']


@pytest.mark.data
@pytest.mark.parametrize('module', [image_speech, shared_knowledge])
def test_real_data_are_learned_from(data_dir, module, monkeypatch):
  """A hundred steps are far above chance in every task."""
  monkeypatch.undo()
  changes = {} if module is shared_knowledge else dict(train_images=3000)
  experiment = module.build(module.Config(data_dir=str(data_dir), steps=100, **changes))
  run = runs.Run(experiment, experiment_lib.Options(steps=100, learning_rate=2e-3))
  state = run.init()
  for step in range(100):
    state, _ = run.step(state, step)
  found = run.evaluate(state, experiment.test)
  assert all(values['accuracy'] > 0.5 for values in found.values()), found
