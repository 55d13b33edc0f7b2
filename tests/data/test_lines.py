import gzip

import pytest

from mtljax.base import InputError
from mtljax.data import lines
from mtljax.data.reading import Reading


def test_objects(tmp_path):
  path = tmp_path / 'a.jsonl.gz'
  path.write_bytes(gzip.compress('{"text": "ä"}\r\n\n{"text": "b", "n": [1]}'.encode()))
  assert list(lines.read_objects(path, Reading(path))) == [(1, {'text': 'ä'}), (3, {'text': 'b', 'n': [1]})]


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    (b'{"text": ', r"a.jsonl, line 2: found '\{\"text\": ', expected a JSON object"),
    (b'[1]', 'a.jsonl, line 2: found a JSON list, expected an object'),
    (b'"\xff"', 'a.jsonl, line 2: found byte 0xff at place 1, expected UTF-8 text'),
  ],
)
def test_lines_that_are_no_objects(tmp_path, line, message):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n')
  with pytest.raises(InputError, match=message):
    list(lines.read_objects(path, Reading(path)))
  reading = Reading(path, 'skip')
  assert [found['n'] for _, found in lines.read_objects(path, reading)] == [1, 3]
  assert reading.count == 3 and len(reading.skipped) == 1


def test_where_files_are(tmp_path):
  (tmp_path / 'set').mkdir()
  (tmp_path / 'set' / 'train.tsv').write_text('')
  assert lines.locate(tmp_path, 'train.tsv', 'set') == tmp_path / 'set' / 'train.tsv'
  (tmp_path / 'set' / 'train.tsv.gz').write_text('')
  assert lines.locate(tmp_path / 'set', 'train.tsv').name == 'train.tsv.gz'
  with pytest.raises(InputError, match=r'has no train.tsv or train.tsv.gz\.'):
    lines.locate(tmp_path, 'train.tsv')
  with pytest.raises(InputError, match="has no dev.tsv or dev.tsv.gz, nor is it in 'set' within it"):
    lines.locate(tmp_path, 'dev.tsv', 'set')
