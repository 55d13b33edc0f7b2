import gzip
import json

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import labelled_text


def jsonl(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_one_task(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', {'text': ' A film. ', 'label': 10}, {'text': 'B', 'label': 9, 'more': 1})
  found = labelled_text.read(path)
  assert found.texts == ['A film.', 'B'] and found.classes == {'label': ('9', '10')}
  assert found.labels['label'].dtype == np.int32 and found.labels['label'].tolist() == [1, 0]
  examples = found.examples(np.arange(2))
  assert set(examples) == {'inputs', 'labels'}
  other = labelled_text.read(jsonl(tmp_path / 'b.jsonl', {'text': 'C', 'label': '10'}), classes=found.classes)
  assert other.labels['label'].tolist() == [1]


TABLES = {
  'tsv': ('tsv', 'tone\ttopic\tsaid\nbad\tb\t"Well, no\n\ngood\t\tYes\n\ta\tIt "is"\n'),
  'csv': ('csv', 'tone,topic,said\nbad,b,"""Well, no"\ngood,,Yes\n,a,"It ""is"""\n'),
  'jsonl': (
    'jsonl',
    '{"said": "\\"Well, no", "tone": "bad", "topic": "b"}\n{"said": "Yes", "tone": "good", "topic": null}\n'
    '{"said": "It \\"is\\"", "topic": "a"}\n',
  ),
}


@pytest.mark.parametrize('layout', TABLES)
def test_several_tasks_whose_labels_are_known_for_some_texts(tmp_path, layout):
  end, content = TABLES[layout]
  path = tmp_path / f'a.{end}.gz'
  path.write_bytes(gzip.compress(content.encode()))
  found = labelled_text.read(path, {'sentiment': 'tone', 'topic': 'topic'}, text='said')
  assert found.texts == ['"Well, no', 'Yes', 'It "is"']
  assert found.classes == {'sentiment': ('bad', 'good'), 'topic': ('a', 'b')}
  examples = found.examples({'x': np.zeros((3, 2), np.int32)})
  assert {task: y.tolist() for task, y in examples['labels'].items()} == {'sentiment': [0, 1, 0], 'topic': [1, 0, 0]}
  mask = {task: m.tolist() for task, m in examples['mask'].items()}
  assert mask == {'sentiment': [True, True, False], 'topic': [True, False, True]}


def test_tables_without_a_header_and_cells_over_lines(tmp_path):
  path = tmp_path / 'train'
  path.write_text('3,"Wall St.","Stocks fell\nand rose"\n1,Sports,Goal\n')
  found = labelled_text.read(path, {'topic': 'class'}, text='body', layout='csv', columns=('class', 'title', 'body'))
  assert found.texts == ['Stocks fell\nand rose', 'Goal'] and found.labels['topic'].tolist() == [1, 0]


def test_a_text_is_in_one_part_whatever_its_set_and_case(tmp_path):
  texts = [f'Sentence number {i}' for i in range(300)]
  a = labelled_text.read(jsonl(tmp_path / 'a.jsonl', *({'text': t, 'label': i % 2} for i, t in enumerate(texts))))
  b = labelled_text.read(jsonl(tmp_path / 'b.jsonl', *({'text': t.lower(), 'label': 0} for t in texts[::-2])))
  fractions = {'train': 0.5, 'val': 0.2, 'test': 0.3}
  parts, others = a.split(fractions), b.split(fractions)
  sizes = [len(part.texts) for part in parts.values()]
  assert sum(sizes) == 300 and all(abs(n - 300 * f) < 30 for n, f in zip(sizes, fractions.values()))
  for name, part in parts.items():
    assert part.labels['label'].tolist() == [int(t.split()[-1]) % 2 for t in part.texts]
    assert {t.lower() for t in part.texts} >= set(others[name].texts)
  with pytest.raises(InputError, match='expected positive numbers that sum to 1'):
    a.split({'train': 0.9, 'val': 0.2})
  with pytest.raises(InputError, match="'val' gets no label of task 'label'"):
    a.split({'train': 1 - 1e-7, 'val': 1e-7})


def write_set(folder, name, splits=('train', 'test')):
  for i, split in enumerate(splits):
    rows = ({'text': f'{name} {i} {n}', 'label': n % 2} for n in range(50))
    jsonl(folder / f'{name}.{split}.jsonl', *rows)


def test_known_sets(tmp_path):
  (tmp_path / 'text_cls').mkdir()
  write_set(tmp_path / 'text_cls', 'trec_question')
  write_set(tmp_path / 'text_cls', 'sst2_sentiment', ('train', 'test', 'dev'))
  found = labelled_text.text_cls(tmp_path, {'question': 'trec_question', 'tone': 'sst2_sentiment'}, val=0.3)
  assert found['question']['train'].classes['question'] == ('0', '1', '2', '3', '4', '5')
  assert len(found['tone']['train'].texts) == 50 and found['tone']['val'].texts[0] == 'sst2_sentiment 2 0'
  parts = found['question']
  assert set(parts['train'].texts) | set(parts['val'].texts) == {f'trec_question 0 {n}' for n in range(50)}
  assert len(parts['train'].texts) + len(parts['val'].texts) == 50 and len(parts['test'].texts) == 50
  with pytest.raises(InputError, match="found \\('mr_sentiment', 'sst2_sentiment'\\) together"):
    labelled_text.text_cls(tmp_path, {'a': 'mr_sentiment', 'b': 'sst2_sentiment'})
  with pytest.raises(InputError, match=r"sets: found \['imdb'\]"):
    labelled_text.text_cls(tmp_path, {'a': 'imdb'})
  with pytest.raises(InputError, match='has no cr_product_sentiment.train.jsonl'):
    labelled_text.text_cls(tmp_path, {'a': 'cr_product_sentiment'})


BAD_ROWS = {
  'empty': ({'text': ' ', 'label': 1}, {}, "line 2: found nothing as 'text', expected a text"),
  'no text': ({'label': 1}, {}, "line 2: found None as 'text', expected a text"),
  'long': ({'text': 'a b c', 'label': 1}, {'max_length': 2}, 'line 2: found 3 words, expected at most 2'),
  'label': (
    {'text': 'a', 'label': 7},
    {'classes': {'tone': ('0', '1')}},
    r"line 2: task 'tone': found the label '7', expected one of \['0', '1'\]",
  ),
}


@pytest.mark.parametrize('case', BAD_ROWS)
def test_bad_rows_are_named_or_left_out(tmp_path, case):
  row, options, message = BAD_ROWS[case]
  path = jsonl(tmp_path / 'a.jsonl', {'text': 'x', 'label': 0}, row, {'text': 'y', 'label': 1})
  with pytest.raises(InputError, match=f'a.jsonl, {message}'):
    labelled_text.read(path, {'tone': 'label'}, **options)
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: line 2'):
    assert labelled_text.read(path, {'tone': 'label'}, **options, on_bad='skip').texts == ['x', 'y']


@pytest.mark.parametrize(
  ('name', 'content', 'options', 'message'),
  [
    ('a.tsv', 'text\tlabel\na\t0\nb\n', {}, 'a.tsv, line 3: found 1 cells, expected 2'),
    ('a.tsv', 'text\ttone\na\t0\n', {}, "a.tsv, line 1: found no column 'label', expected it among"),
    ('a.csv', 'text,label\n"a"b,0\n', {}, 'a.csv, line 2: cannot be taken apart'),
    ('a.jsonl', '{"text": "a"}\n', {}, "a.jsonl: task 'label' has no label 'label' in any of 1 rows"),
    ('a.jsonl', '', {}, 'a.jsonl: found no text'),
    ('a.tsv', 'text\tlabel\n', {}, 'a.tsv: found no text'),
    ('a.txt', 'a\n', {}, 'layout: .*a.txt does not tell'),
    ('a.jsonl', '{"text": "a"}\n', {'layout': 'xml'}, "layout: found 'xml'"),
    ('a.jsonl', '{"text": "a"}\n', {'classes': {'tone': ('a',)}}, r"classes: found \['tone'\]"),
  ],
)
def test_refuses(tmp_path, name, content, options, message):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(InputError, match=message):
    labelled_text.read(path, **options)


@pytest.mark.data
def test_no_text_for_testing_is_learned_from(data_dir):
  sets = {'sentiment': 'mr_sentiment', 'subjectivity': 'subj_subjectivity', 'product': 'cr_product_sentiment'}
  loaded = labelled_text.text_cls(data_dir, sets)
  assert len(loaded['sentiment']['test'].texts) == 1055 and len(loaded['subjectivity']['test'].texts) == 995
  learned = {text.lower() for task in ('sentiment', 'subjectivity') for text in loaded[task]['train'].texts}
  for task in ('sentiment', 'subjectivity'):
    assert not learned & {text.lower() for split in ('val', 'test') for text in loaded[task][split].texts}
