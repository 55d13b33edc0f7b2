"""The experiments of docs/data.md, as they stand there, on made-up data of the kinds that they read."""

import json
import pathlib
import re

import numpy as np
import pytest

from mtljax import cli, rundir

TEXT = (pathlib.Path(__file__).parent.parent / 'docs' / 'data.md').read_text()
FILES = dict(re.findall(r'^```python\n# (\w+)\.py\n(.*?)^```$', TEXT, flags=re.M | re.S))


def speech(folder, draw):
  for part, count in {'train': 24, 'val': 5, 'test': 6}.items():
    lengths = draw.integers(24, 40, count)
    words = [' '.join(draw.choice(['yes', 'no'], draw.integers(1, 3))) for _ in range(count)]
    features = draw.normal(size=(lengths.sum(), 13)).astype(np.float32)
    speaker = np.arange(count) % 3
    np.savez(folder / f'{part}.npz', features=features, lengths=lengths, transcript=words, speaker=speaker)


def tags(folder, draw):
  for part, count in {'train': 30, 'val': 5, 'test': 6}.items():
    lines = []
    for i in range(count):
      words = list(draw.choice(['Ann', 'saw', 'New York', 'today'], draw.integers(2, 6)))
      line = {'tokens': words, 'upos': ['PROPN' if w[0].isupper() else 'X' for w in words]}
      if i % 3 == 0:
        line['ner'] = ['B-name' if w[0].isupper() else 'O' for w in words]
      lines.append(json.dumps(line))
    (folder / f'{part}.jsonl').write_text('\n'.join(lines))


def schools(folder, draw, count=11):
  rows = [f's{i % count},{a:.3f},{"mf"[i % 2]},{a + i % count:.3f}' for i, a in enumerate(draw.normal(size=count * 24))]
  (folder / 'schools.csv').write_text('\n'.join(['school,age,sex,score', *rows]))


def plant(folder, draw):
  x = draw.normal(size=(150, 3))
  y = (x @ draw.normal(size=(3, 12)) + 5) * 10.0 ** np.linspace(-3, 6, 12)
  lines = [','.join(f'{value:.6g}' for value in row) for row in np.hstack([x, y])]
  lines[3] = lines[3].rpartition(',')[0] + ','  # a label is missing
  (folder / 'plant.csv').write_text('\n'.join([','.join(['a', 'b', 'c', *(f'y{t}' for t in range(12))]), *lines]))


def streets(folder, draw):
  images = draw.integers(0, 256, (20, 16, 24, 3)).astype(np.uint8)
  classes = np.where(draw.random((20, 16, 24)) < 0.1, 255, images[..., 0] // 64)
  np.savez(folder / 'streets.npz', images=images, classes=classes)


DATA = {'my_speech': speech, 'my_tags': tags, 'my_schools': schools, 'my_plant': plant, 'my_streets': streets}


def test_every_kind_has_its_experiment():
  assert FILES.keys() == DATA.keys()
  assert all(len([line for line in source.splitlines() if line.strip()]) < 30 for source in FILES.values())


SLOW = ('my_streets',)  # a ResNet


@pytest.mark.parametrize('name', [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in DATA])
def test_it_trains(name, tmp_path):
  DATA[name](tmp_path, np.random.default_rng(0))
  (tmp_path / f'{name}.py').write_text(FILES[name])
  run = tmp_path / 'run'
  cli.main(['train', str(tmp_path / f'{name}.py'), '--data_dir', str(tmp_path), '--steps', '3', '--run_dir', str(run)])
  result = rundir.read_json(run / 'result.json')
  values = [value for task in result['test'].values() for value in task.values()]
  assert len(result['test']) == {'my_schools': 11, 'my_plant': 12}.get(name, 2) and np.isfinite(values).all()


@pytest.mark.slow
def test_many_schools(tmp_path):
  schools(tmp_path, np.random.default_rng(0), 139)
  (tmp_path / 'my_schools.py').write_text(FILES['my_schools'])
  run = tmp_path / 'run'
  words = ['--data_dir', str(tmp_path), '--steps', '3', '--run_dir', str(run)]
  cli.main(['train', str(tmp_path / 'my_schools.py'), *words])
  assert len(rundir.read_json(run / 'result.json')['test']) == 139
