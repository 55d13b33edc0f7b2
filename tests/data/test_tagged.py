import gzip
import json

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import tagged
from mtljax.data.transforms import text


def jsonl(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def names(found, task):
  """Tags as strings, None where they are masked."""
  rows = zip(found.labels[task], found.mask[task], strict=True)
  return [[found.tags[task][i] if there else None for i, there in zip(y, m, strict=True)] for y, m in rows]


CONLLU = """# sent_id = 1
# text = Zum Haus
1-2\tZum\t_\t_\t_\t_\t_\t_\t_\t_
1\tZu\tzu\tADP\tAPPR\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\tART\tCase=Dat|Number=Sing\t3\tdet\t_\t_
3\tHaus\tHaus\tNOUN\tNN\tNumber=Sing\t0\troot\t_\tNER=B-place|SpaceAfter=No
3.1\tgeht\tgehen\tVERB\t_\t_\t_\t_\t0:root\t_

# sent_id = 2
1\tHäuser sind\tHaus\tNOUN\tNN\tNumber=Plur\t0\troot\t_\t_
2\t#\t#\tSYM\t_\t_\t1\tdep\t_\t_"""


@pytest.mark.parametrize('end', ['', '\n', '\n\n\n'])
def test_conllu(tmp_path, end):
  """Multiword tokens and empty nodes are no words, a form may hold a blank, attributes are tags of their own."""
  path = tmp_path / 'a.conllu.gz'
  path.write_bytes(gzip.compress((CONLLU + end).encode()))
  columns = {'pos': 'upos', 'xpos': 'xpos', 'number': 'feats:Number', 'entities': 'misc:NER'}
  found = tagged.read(path, columns)
  assert found.words == [['Zu', 'dem', 'Haus'], ['Häuser sind', '#']] and found.sentences[1] == 'Häuser_sind #'
  assert found.tags['pos'] == ('ADP', 'DET', 'NOUN', 'SYM') and found.tags['number'] == ('Plur', 'Sing')
  assert names(found, 'pos') == [['ADP', 'DET', 'NOUN'], ['NOUN', 'SYM']]
  assert names(found, 'xpos') == [['APPR', 'ART', 'NN'], ['NN', None]]
  assert names(found, 'number') == [[None, 'Sing', 'Sing'], ['Plur', None]]
  assert names(found, 'entities') == [[None, None, 'B-place'], [None, None]]


def test_json_lines_with_tasks_that_most_sentences_lack(tmp_path):
  rows = [{'form': ['A', 'b'], 'ner': ['B-x', 'O']}, {'form': ['c'], 'pos': ['N']}, {'form': ['d'], 'pos': None}]
  path = jsonl(
    tmp_path / 'a.jsonl', *rows, {'form': ['e', 'f', 'g'], 'pos': ['V', None, 'N'], 'ner': ['O', 'O', 'A-x']}
  )
  found = tagged.read(path, {'entities': 'ner', 'pos': 'pos'})
  assert found.tags == {'entities': ('O', 'A-x', 'B-x'), 'pos': ('N', 'V')}
  assert names(found, 'entities') == [['B-x', 'O'], [None], [None], ['O', 'O', 'A-x']]
  assert names(found, 'pos') == [[None, None], ['N'], [None], ['V', None, 'N']]
  words = text.words(found.sentences, pattern=text.BLANKS)
  inputs = text.pad([words.encode(sentence) for sentence in found.sentences], 4)
  examples = found.examples(inputs, 4)
  assert examples['labels']['pos'].dtype == np.int32 and examples['mask']['pos'].dtype == bool
  assert examples['labels']['pos'].tolist() == [[0] * 4, [0] * 4, [0] * 4, [1, 0, 0, 0]]
  assert examples['mask']['pos'].sum(axis=1).tolist() == [0, 1, 0, 2]
  assert examples['mask']['entities'].tolist()[3] == [True, True, True, False]
  assert found.examples(inputs)['labels']['pos'].shape == (4, 3)
  with pytest.raises(InputError, match='sentence 3 has 3 tokens, expected at most 2'):
    found.examples(inputs, 2)
  some = found.take([3, 1])
  assert some.words == [['e', 'f', 'g'], ['c']] and names(some, 'pos') == [['V', None, 'N'], ['N']]


def test_tags_of_training_give_the_places(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', {'form': ['a'], 'ner': ['I-x']})
  found = tagged.read(path, {'entities': 'ner'}, tags={'entities': ('O', 'B-x', 'I-x')})
  assert found.labels['entities'][0].tolist() == [2]


@pytest.mark.parametrize('sep', ['\t', ' '])
def test_columns(tmp_path, sep):
  path = tmp_path / 'train.txt'
  path.write_text(f'\n\nEU{sep}B-ORG\nrejects{sep}O\n{sep}\n#{sep}O\n')
  found = tagged.read(path, 'ner', layout='columns', columns=('form', 'ner'))
  assert found.words == [['EU', 'rejects'], ['#']] and names(found, 'ner') == [['B-ORG', 'O'], ['O']]


GOOD = {'form': ['x'], 'ner': ['O']}
BAD_SENTENCES = {
  'length': (
    {'form': ['a', 'b'], 'ner': ['O', 'O', 'O']},
    {},
    "task 'entities': found 3 tags, expected 2, one for each word",
  ),
  'tag': (
    {'form': ['a', 'b'], 'ner': ['O', 'B-y']},
    {'tags': {'entities': ('O', 'B-x')}},
    r"task 'entities': found 'B-y' at word 2, expected one of \['O', 'B-x'\]",
  ),
  'type': ({'form': ['a'], 'ner': [3]}, {}, r"task 'entities': found 3 at word 1, expected a tag \(str\)"),
  'no list': ({'form': ['a'], 'ner': 'O'}, {}, "task 'entities': found 'O' as 'ner', expected a list of tags"),
  'long': ({'form': ['a', 'b', 'c'], 'ner': ['O'] * 3}, {'max_length': 2}, 'found 3 words, expected at most 2'),
  'empty': ({'form': [], 'ner': []}, {}, 'found no word, expected a sentence'),
  'blank': ({'form': ['a', ' '], 'ner': ['O', 'O']}, {}, 'word 2 is empty, expected a word'),
  'string': ({'form': 'a b', 'ner': ['O', 'O']}, {}, "found 'a b' as 'form', expected a list of words"),
  'missing': ({'ner': ['O']}, {}, r"found no 'form' but \['ner'\], expected a list of words"),
}


@pytest.mark.parametrize('case', BAD_SENTENCES)
def test_bad_sentences_are_named_or_left_out(tmp_path, case):
  row, options, message = BAD_SENTENCES[case]
  path = jsonl(tmp_path / 'a.jsonl', GOOD, row, GOOD)
  with pytest.raises(InputError, match=f'a.jsonl, line 2: {message}'):
    tagged.read(path, {'entities': 'ner'}, **options)
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: line 2'):
    assert tagged.read(path, {'entities': 'ner'}, **options, on_bad='skip').words == [['x'], ['x']]


ROW = '{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n'
BAD_BLOCKS = {
  'cells': (ROW.format(1, 'a', 'X') + '2\tb\tX\n', 'line 3: in line 4 found 3 cells, expected 10'),
  'id': (ROW.format(1, 'a', 'X') + ROW.format(3, 'b', 'X'), "line 3: in line 4 found the id '3', expected '2'"),
  'nodes': (ROW.format('1-2', 'ab', '_'), 'line 3: found no word, expected a sentence'),
}


@pytest.mark.parametrize('case', BAD_BLOCKS)
def test_bad_blocks_are_named_or_left_out(tmp_path, case):
  block, message = BAD_BLOCKS[case]
  path = tmp_path / 'a.conllu'
  good = ROW.format(1, 'x', 'X') + '\n'
  path.write_text(good + block + '\n' + good)
  with pytest.raises(InputError, match=f'a.conllu, {message}'):
    tagged.read(path, 'upos')
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: line 3'):
    assert tagged.read(path, 'upos', on_bad='skip').words == [['x'], ['x']]


def test_bytes_that_are_no_text_spoil_their_sentence(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a O\n\nb O\n\xff O\n\nc O\n')
  options = dict(layout='columns', columns=('form', 'ner'))
  with pytest.raises(InputError, match='a.txt, line 4: found byte 0xff'):
    tagged.read(path, 'ner', **options)
  with pytest.warns(UserWarning, match='skipped 1 of 3'):
    assert tagged.read(path, 'ner', **options, on_bad='skip').words == [['a'], ['c']]


@pytest.mark.parametrize(
  ('name', 'content', 'labels', 'options', 'message'),
  [
    ('a.jsonl', '{"form": ["a"]}\n', 'ner', {}, "task 'ner' has no tag 'ner' in any of 1 sentences, expected some"),
    ('a.jsonl', '', 'ner', {}, 'a.jsonl: found no sentence'),
    ('a.conllu', ROW.format(1, 'a', '_'), 'upos', {}, "task 'upos' has no tag 'upos' in any of 1"),
    ('a.conllu', ROW.format(1, 'a', 'X'), 'ner', {}, "found no column 'ner', expected one of columns="),
    ('a.txt', 'a O\n', 'ner', {}, 'layout: .*a.txt does not tell'),
    ('a.txt', 'a O\n', 'ner', {'layout': 'columns'}, "found no column 'form'"),
    ('a.txt', 'a O\n', 'ner', {'layout': 'xml'}, "layout: found 'xml'"),
    ('a.jsonl', '{"form": ["a"]}\n', 'ner', {'tags': {'pos': ('N',)}}, r"tags: found \['pos'\]"),
  ],
)
def test_refuses(tmp_path, name, content, labels, options, message):
  path = tmp_path / name
  path.write_text(content)
  with pytest.raises(InputError, match=message):
    tagged.read(path, labels, **options)


@pytest.mark.parametrize('original', [False, True])
def test_wnut17(tmp_path, original):
  (tmp_path / 'wnut17_ner').mkdir()
  for split, name in tagged.WNUT17.items():
    rows = [('Empire', 'B-location'), ('State', 'I-location' if split == 'train' else 'O'), ('.', 'O')]
    if original:
      (tmp_path / 'wnut17_ner' / name).write_text(''.join(f'{w}\t{t}\n' for w, t in rows) + '\t\n')
    else:
      jsonl(tmp_path / 'wnut17_ner' / f'{split}.jsonl', dict(form=[w for w, _ in rows], ner=[t for _, t in rows]))
  found = tagged.wnut17(tmp_path)
  assert list(found) == ['train', 'val', 'test']
  assert names(found['train'], 'entities') == [['B-location', 'I-location', 'O']]
  assert found['test'].tags == found['train'].tags and names(found['test'], 'entities') == [['B-location', 'O', 'O']]


@pytest.mark.data
def test_wnut17_itself(data_dir):
  found = tagged.wnut17(data_dir, max_length=105)
  assert {split: len(part.words) for split, part in found.items()} == {'train': 3394, 'val': 1009, 'test': 1287}
  assert len(found['train'].tags['entities']) == 13 and found['train'].tags['entities'][0] == 'O'
