import numpy as np
import pytest
import soundfile

from mtljax.base import InputError
from mtljax.data import librispeech

SAID = {'84-121-0000': 'GO DO YOU HEAR', '84-121-0001': 'BUT IN LESS', '19-5-0000': 'YES'}


def write(folder, rate=16000, **more):
  for i, (name, said) in enumerate({**SAID, **more}.items()):
    speaker, chapter, _ = name.split('-')
    place = folder / 'dev-clean' / speaker / chapter
    place.mkdir(parents=True, exist_ok=True)
    soundfile.write(place / (name + ('.wav' if speaker == '19' else '.flac')), np.full(160 * (i + 1), 0.25), rate)
    with (place / f'{speaker}-{chapter}.trans.txt').open('a') as file:
      file.write(f'{name} {said}\n')
  return folder / 'dev-clean'


def test_layout(tmp_path):
  found = librispeech.load(write(tmp_path))
  assert found.columns['id'].tolist() == ['19-5-0000', '84-121-0000', '84-121-0001']
  assert found.columns['text'].tolist() == ['YES', 'GO DO YOU HEAR', 'BUT IN LESS']
  assert found.columns['speaker'].tolist() == ['19', '84', '84'] and found.columns['chapter'][1] == '121'
  assert [len(row) for row in found.rows] == [480, 160, 320] and found.rate == 16000
  assert len(librispeech.load(tmp_path, rate=8000).rows[0]) == 240


BAD = {
  'no transcript': (lambda folder: edit(folder, '84-121-0001 BUT IN LESS', '84-121-0001 '), 'line 2: found no transcr'),
  'no file': (lambda folder: (folder / '84/121/84-121-0001.flac').unlink(), 'line 2: found no file 84-121-0001.flac'),
  'damaged': (lambda folder: (folder / '84/121/84-121-0001.flac').write_text('x'), '84-121-0001.flac: cannot be read'),
}


def edit(folder, old, new):
  path = folder / '84' / '121' / '84-121.trans.txt'
  path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize('case', BAD)
def test_bad_utterances_are_named_or_left_out(tmp_path, case):
  change, message = BAD[case]
  folder = write(tmp_path)
  change(folder)
  with pytest.raises(InputError, match=message):
    librispeech.load(folder)
  with pytest.warns(UserWarning, match=f'skipped 1 of .*{message}'):
    assert librispeech.load(folder, on_bad='skip').columns['id'].tolist() == ['19-5-0000', '84-121-0000']


def test_a_chapter_may_lose_all(tmp_path):
  folder = write(tmp_path)
  (folder / '19/5/19-5-0000.wav').unlink()
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: 19/5/19-5.trans.txt, line 1: found no file'):
    assert librispeech.load(folder, on_bad='skip').columns['speaker'].tolist() == ['84', '84']


def test_long_ones(tmp_path):
  folder = write(tmp_path)
  with pytest.raises(InputError, match=r'19/5/19-5-0000.wav: found 0.03 seconds, expected at most 0.02'):
    librispeech.load(folder, max_seconds=0.02)
  with pytest.warns(UserWarning, match='skipped 1 of 3'):
    assert len(librispeech.load(folder, max_seconds=0.02, on_bad='skip')) == 2


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match=r'found no \*.trans.txt below it'):
    librispeech.load(tmp_path)
