import numpy as np
import pytest
import soundfile

from mtljax.base import InputError
from mtljax.data import spoken_digits

SPEAKERS = ('ann', 'bob')


def sound(digit, speaker, recording):
  """Samples that say whose they are."""
  return np.full(20 + digit + recording, (100 * digit + 10 * speaker + recording) / 2**11, np.float32)


CASES = [(d, s, r) for d in (0, 7) for s in range(2) for r in (0, 4, 5, 9, 10, 12)]


def write_npz(folder, **changes):
  rows = [sound(*case) for case in CASES]
  arrays = {
    'audio': (np.concatenate(rows) * 2**15).astype(np.int16),
    'offset': np.cumsum([0, *map(len, rows)]),
    'sample_rate': 8000,
    **dict(zip(('digit', 'speaker', 'recording'), np.array(CASES, np.uint8).T)),
    **changes,
  }
  np.savez(folder / 'fsdd.npz', **{k: v for k, v in arrays.items() if v is not None})


def write_files(folder):
  (folder / 'recordings').mkdir()
  for digit, speaker, recording in CASES:
    path = folder / 'recordings' / f'{digit}_{SPEAKERS[speaker]}_{recording}.wav'
    soundfile.write(path, sound(digit, speaker, recording), 8000)
  (folder / 'recordings' / 'read_me_0.txt').write_text('')


@pytest.mark.parametrize('write, folder', [(write_npz, 'fsdd'), (write_files, 'free-spoken-digit-dataset')])
def test_both_layouts_and_the_split(tmp_path, write, folder):
  (tmp_path / folder).mkdir()
  write(tmp_path / folder)
  for data_dir in (tmp_path, tmp_path / folder):
    splits = spoken_digits.load(data_dir)
    expected = {'train': {10, 12}, 'val': {5, 9}, 'test': {0, 4}}
    for split, part in splits.items():
      assert set(part.columns['recording'].tolist()) == expected[split] and len(part) == 8 and part.rate == 8000
      for row, digit, speaker, recording in zip(
        part.rows, *(part.columns[c] for c in ('digit', 'speaker', 'recording'))
      ):
        np.testing.assert_allclose(row, sound(digit, speaker, recording), atol=1e-4)


def test_other_splits_and_rates(tmp_path):
  write_files(tmp_path)
  splits = spoken_digits.load(tmp_path, test=[12], val=[12, 10], rate=16000)
  assert [len(splits[part]) for part in ('train', 'val', 'test')] == [16, 4, 4] and splits['val'].rate == 16000
  assert len(splits['test'].rows[0]) == 2 * len(sound(0, 0, 12))


def test_strings_are_of_one_speaker_and_say_their_digits(tmp_path):
  write_npz(tmp_path)
  part = spoken_digits.load(tmp_path)['test']
  found = spoken_digits.strings(part, 30, (2, 4), gap=0.001)
  assert {len(said.split()) for said in found.columns['text']} == {2, 3, 4}
  assert set(found.columns['speaker'].tolist()) == {0, 1}
  values = {
    round(float(row[0]) * 2**11): (spoken_digits.WORDS[d], s)
    for row, d, s in zip(part.rows, part.columns['digit'], part.columns['speaker'])
  }
  for row, said, speaker in zip(found.rows, found.columns['text'], found.columns['speaker']):
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    heard = [values[round(float(row[i]) * 2**11)] for i in starts if row[i] or 0]
    silent = sum(value == 0 for value in row)
    assert silent >= 8 * (len(said.split()) - 1)
    # The recording whose value is 0 cannot be told from the silence between two.
    known = [word for word, _ in heard]
    assert all(s == speaker for _, s in heard) and [w for w in said.split() if w == 'seven'] == [
      w for w in known if w == 'seven'
    ]
  again = spoken_digits.strings(part, 30, (2, 4), gap=0.001)
  assert again.columns['text'].tolist() == found.columns['text'].tolist()
  assert spoken_digits.strings(part, 30, (2, 4), seed=1).columns['text'].tolist() != found.columns['text'].tolist()


BAD = {
  'nothing there': (None, 'has no fsdd.npz and no files such as'),
  'column': (dict(speaker=None), r"found the columns \['digit', 'recording'\], expected 'speaker'"),
  'digit': (dict(digit=np.full(len(CASES), 10)), "fsdd.npz, row 0, 'digit': found 10, expected 0 to 9"),
  'split': (dict(recording=np.full(len(CASES), 7)), "found no recording for split 'train'"),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_data_are_named(tmp_path, case):
  changes, message = BAD[case]
  if changes is not None:
    write_npz(tmp_path, **changes)
  with pytest.raises(InputError, match=message):
    spoken_digits.load(tmp_path)


def test_bad_strings_are_named(tmp_path):
  write_npz(tmp_path)
  part = spoken_digits.load(tmp_path)['test']
  for arguments in ((0, (2, 3)), (3, (3, 2)), (3, (0, 2))):
    with pytest.raises(InputError, match='strings: count is'):
      spoken_digits.strings(part, *arguments)


@pytest.mark.data
def test_the_real_recordings(data_dir):
  splits = spoken_digits.load(data_dir)
  assert {split: len(part) for split, part in splits.items()} == {'train': 2400, 'val': 300, 'test': 300}
  for part in splits.values():
    assert np.bincount(part.columns['digit']).tolist() == [len(part) // 10] * 10
    assert np.bincount(part.columns['speaker']).tolist() == [len(part) // 6] * 6
