"""`experiments/text_embeddings.py` on made-up files; skip-gram on a language whose neighbours are known."""

import json

import numpy as np
import pytest

from mtljax import cli, rundir
from mtljax import experiment as experiment_lib
from mtljax.data import labelled_text

embeddings = experiment_lib.load('text_embeddings')
WORDS = ('good', 'bad', 'film', 'plot', 'who', 'where', 'is', 'the')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path, draw = tmp_path_factory.mktemp('text_cls'), np.random.default_rng(0)
  for name in (*embeddings.SETS.values(), *embeddings.UNLABELLED):
    classes = labelled_text.SETS[name]
    for split, count in (('train', 80), ('test', 12)):
      rows = [
        json.dumps({'text': ' '.join(draw.choice(WORDS, 6)), 'label': classes[i % len(classes)]}) for i in range(count)
      ]
      (path / f'{name}.{split}.jsonl').write_text('\n'.join(rows))
  return path


@pytest.mark.parametrize('skip_gram_steps', [3, 0])
def test_a_run(folder, tmp_path, skip_gram_steps):
  words = ['--skip_gram_steps', str(skip_gram_steps), '--features', '4', '--batch_size', '16', '--steps', '3']
  cli.main(['train', embeddings.__file__, *words, '--data_dir', str(folder), '--run_dir', str(tmp_path / 'run')])
  assert set(rundir.read_json(tmp_path / 'run' / 'result.json')['test']) == set(embeddings.SETS)


def test_neighbours_come_close():
  """Words 1, 2 stand beside 3 only, words 4, 5 beside 6 only: words with the same neighbours become alike."""
  draw = np.random.default_rng(0)
  sentences = [[a, 3] if draw.random() < 0.5 else [a + 3, 6] for a in draw.integers(1, 3, 2000)]
  vectors = embeddings.skip_gram(sentences, 7, 8, 300, batch_size=256)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  assert unit[1] @ unit[2] > 0.9 and unit[4] @ unit[5] > 0.9 and unit[1] @ unit[4] < 0.5


def test_pairs_are_neighbours_of_one_sentence():
  centers, neighbours = embeddings.pairs([[1, 2], [3, 4, 5]], window=1, keep=1.0)
  found = set(zip(centers.tolist(), neighbours.tolist()))
  assert found == {(1, 2), (2, 1), (3, 4), (4, 3), (4, 5), (5, 4)}
