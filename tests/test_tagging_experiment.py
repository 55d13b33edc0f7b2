"""`experiments/tagging.py` on made-up sentences: what is read, what is masked, what is refused."""

import functools
import json

import jax
import numpy as np
import pytest

import mtljax as mtl
from mtljax import cli, rundir
from mtljax import experiment as experiment_lib

tagging = experiment_lib.load('tagging')
SMALL = dict(features=4, width=8, hidden=8, batch_size=8, steps=3, min_count=1, parts=6, max_length=12)
WORDS = ('Ann', 'saw', 'ROME', 'today', 'iPad', '!')
CONLLU = '1\tRome\t_\tPROPN\t_\t_\t_\t_\t_\t_\n2\tfell\t_\tVERB\t_\t_\t_\t_\t_\t_\n\n'


def write(path, *sentences):
  tags = {'Ann': 'B-person', 'ROME': 'B-place'}
  rows = [{'form': words, 'ner': [tags.get(word, 'O') for word in words]} for words in sentences]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def folder(tmp_path):
  draw = np.random.default_rng(0)
  for split, count in {'train': 24, 'dev': 5, 'test': 6}.items():
    sentences = [draw.choice(WORDS, draw.integers(2, 9)).tolist() for _ in range(count)]
    write(tmp_path / f'{split}.jsonl', ['Ann', 'saw', 'ROME'], *sentences)
  (tmp_path / 'pos.conllu').write_text(CONLLU * 20)
  return tmp_path


def config(folder, **changes):
  return tagging.Config(**{**SMALL, 'data_dir': str(folder), **changes})


def test_a_run(folder, tmp_path):
  words = [word for name, value in SMALL.items() for word in (f'--{name}', str(value))]
  words += ['--pos_file', str(folder / 'pos.conllu'), '--data_dir', str(folder)]
  cli.main(['train', tagging.__file__, *words, '--run_dir', str(tmp_path / 'run')])
  found = rundir.read_json(tmp_path / 'run' / 'result.json')['test']
  assert {task: set(values) - {'loss'} for task, values in found.items()} == {
    'entities': {'F1', 'token F1', 'accuracy'},
    'casing': {'F1', 'accuracy'},
    'pos': {'accuracy'},
  }
  assert all(np.isfinite(value) for values in found.values() for value in values.values())


@pytest.mark.parametrize(
  'changes', [{'trunk': 'lstm', 'depth': 2}, {'trunk': 'transformer'}, {'architecture': 'cross_stitch'}]
)
def test_other_trunks_and_architectures(folder, changes):
  experiment_lib.check_model(tagging.build(config(folder, **changes)))


@pytest.mark.parametrize(
  ('word', 'name'),
  [
    ('a', 'lower'),
    ('#tag2', 'lower'),
    ('#Tag', 'Capitalised'),
    ('I', 'Capitalised'),
    ('USA', 'UPPER'),
    ('U.S.', 'UPPER'),
    ('iPhone', 'mixed'),
    ('McX', 'mixed'),
    ('12:30', 'none'),
    ('שלום', 'none'),
    ('Ärger', 'Capitalised'),
  ],
)
def test_shapes(word, name):
  assert tagging.SHAPES[tagging.shape(word)] == name


def test_what_the_trunk_reads_does_not_tell_the_case(folder):
  made = config(folder)
  splits = tagging.load(made)
  reader = tagging.Reader(made, splits['train'])
  other = tagging.tagged.Tagged([[word.swapcase() for word in words] for words in splits['test'].words], {}, {}, {})
  read, swapped = reader(splits['test']), reader(other)
  assert all((read[name] == swapped[name]).all() for name in ('x', 'parts', 'mask'))
  assert (read['shapes'] != swapped['shapes']).any()
  unknown = reader(tagging.tagged.Tagged([['zzz']], {}, {}, {}))
  assert unknown['x'].tolist() == [[tagging.text.UNK]] and unknown['parts'].any()


def test_only_entities_read_the_shapes(folder):
  """Of a word and its neighbours."""
  experiment = tagging.build(config(folder))
  model, batch = experiment.model, experiment.test[0]
  params, state = jax.jit(model.init)(jax.random.key(0), dict.fromkeys(('entities', 'casing'), batch['inputs']))

  @functools.partial(jax.jit, static_argnums=0)
  def outputs(task, inputs):
    how = dict(train=False, key=None)
    z, _ = model.trunk(params['shared'], state['shared'], inputs, tasks=(task,), **how)
    return model.head(params['tasks'][task], state['tasks'][task], z, inputs=inputs, task=task, **how)[0][0]

  shapes = batch['inputs']['shapes']
  changed = {**batch['inputs'], 'shapes': shapes.at[0, 0].set(shapes[0, 0] % 4 + 1)}
  moved = {task: (outputs(task, changed) != outputs(task, batch['inputs'])).any(axis=-1) for task in params['tasks']}
  assert moved['entities'][: tagging.WINDOW + 1].any() and not moved['entities'][tagging.WINDOW + 1 :].any()
  assert not moved['casing'].any()


def test_sentences_have_the_tags_that_their_file_has(folder):
  splits = tagging.load(config(folder, pos_file=str(folder / 'pos.conllu')))
  assert [len(splits[split].words) for split in ('train', 'val', 'test')] == [25 + 16, 6 + 2, 7 + 2]
  train = splits['train']
  assert train.tags['pos'] == ('PROPN', 'VERB') and train.words[-1] == ['Rome', 'fell']
  there = {task: [bool(row.any()) for row in train.mask[task]] for task in train.tags}
  assert there['entities'] == [True] * 25 + [False] * 16
  assert there['pos'] == [False] * 25 + [True] * 16
  assert train.mask['casing'][0].tolist() == [True] * 3 and train.labels['casing'][0].tolist() == [1, 0, 2]
  examples = train.examples(tagging.Reader(config(folder), train)(train))
  assert examples['mask']['pos'].sum() == 32 and examples['mask']['pos'].shape == examples['inputs']['mask'].shape


def test_hidden_words(folder):
  batch = tagging.build(config(folder)).train(0, 0)
  hidden = tagging.drop_words(1.0)(jax.random.key(0), batch)['inputs']
  assert (hidden['x'] == np.where(batch['inputs']['mask'], tagging.text.UNK, 0)).all() and not hidden['parts'].any()
  shown = tagging.drop_words(0.0)(jax.random.key(0), batch)['inputs']
  assert all((shown[name] == batch['inputs'][name]).all() for name in shown)


def test_words_of_entities_weigh_more():
  outputs, labels = np.zeros((1, 2, 3), np.float32), np.array([[0, 2]])
  losses = tagging.weighted(outputs, labels, weights=[1.0, 4.0, 4.0])
  np.testing.assert_allclose(losses, [[np.log(3), 4 * np.log(3)]], rtol=1e-6)


@pytest.mark.parametrize(
  ('file', 'sentence', 'message'),
  [
    ('train', ['a'] * 13, 'train.jsonl, line 1: found 13 words, expected at most 12'),
    ('dev', ['Ann', 'x'], "dev.jsonl, line 1: task 'entities': found 'B-person' at word 1, expected one of"),
    ('train', ['שלום', '12'], "task 'casing': found no label in 1 sentences of the split 'train', expected some"),
    ('test', ['12'], "task 'casing': found no label in 1 sentences of the split 'test', expected some"),
  ],
)
def test_refuses(folder, file, sentence, message):
  for split in ('train', 'dev', 'test'):
    write(folder / f'{split}.jsonl', sentence if split == file else ['a', 'b'])
  with pytest.raises(mtl.InputError, match=message):
    tagging.build(config(folder))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (CONLLU * 2, "task 'pos': found no label in .* sentences of the split 'val', expected some"),
    (CONLLU.replace('PROPN', '_').replace('VERB', '_'), "task 'pos' has no tag 'upos' in any of 1 sentences"),
    (CONLLU.replace('\tRome', ''), 'pos.conllu, line 1: in line 1 found 9 cells, expected 10'),
  ],
)
def test_refuses_parts_of_speech(folder, content, message):
  (folder / 'pos.conllu').write_text(content)
  with pytest.raises(mtl.InputError, match=message):
    tagging.build(config(folder, pos_file=str(folder / 'pos.conllu')))


def test_refuses_another_trunk(folder):
  with pytest.raises(mtl.InputError, match="trunk: found 'rnn', expected 'gru', 'lstm' or 'transformer'"):
    tagging.build(config(folder, trunk='rnn'))


@pytest.mark.data
def test_wnut17(data_dir, tmp_path):
  words = ['--steps', '4', '--data_dir', str(data_dir), '--run_dir', str(tmp_path / 'run')]
  cli.main(['train', tagging.__file__, *words])
  found = rundir.read_json(tmp_path / 'run' / 'result.json')['test']
  assert found['entities']['accuracy'] > 0.5 and found['casing']['accuracy'] > 0.5
