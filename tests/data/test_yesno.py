import numpy as np
import pytest
import soundfile

from mtljax.base import InputError
from mtljax.data import yesno

NAMES = ['0_0_0_1_0_1_1_0', '0_1_0_0_0_1_1_0', '0_1_1_1_0_1_0_1', '1_0_0_0_1_0_0_0', '1_1_1_1_1_1_1_1']


def said(name):
  return ' '.join('YES' if word == '1' else 'NO' for word in name.split('_'))


def write_files(folder):
  (folder / 'waves_yesno').mkdir()
  for i, name in enumerate(NAMES):
    soundfile.write(folder / 'waves_yesno' / f'{name}.wav', np.full(10 + i, i / 8), 8000)
  (folder / 'waves_yesno' / 'README').write_text('')


def write_npz(folder, **changes):
  arrays = {
    'audio': np.repeat(np.arange(5), np.arange(10, 15)).astype(np.int16) * 2**12,
    'offset': np.cumsum([0, *range(10, 15)]),
    'text': [said(name) for name in NAMES],
    'is_test': [name.startswith('1') for name in NAMES],
    'sample_rate': 8000,
    **changes,
  }
  np.savez(folder / 'yesno_8k.npz', **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize('write', [write_files, write_npz])
def test_both_layouts(tmp_path, write):
  (tmp_path / 'yesno').mkdir()
  write(tmp_path / 'yesno')
  splits = yesno.load(tmp_path, val_every=2)
  expected = {'train': NAMES[1:2], 'val': [NAMES[0], NAMES[2]], 'test': NAMES[3:]}
  for split, names in expected.items():
    assert splits[split].columns['text'].tolist() == [said(name) for name in names]
    places = [NAMES.index(name) for name in names]
    assert [len(row) for row in splits[split].rows] == [10 + i for i in places]
    np.testing.assert_allclose([row[-1] for row in splits[split].rows], np.array(places) / 8, atol=1e-4)
  assert yesno.load(tmp_path, val_every=2, rate=16000)['test'].rate == 16000


def test_bad_data_are_named(tmp_path):
  with pytest.raises(InputError, match='has no files such as 0_0_1_0_1_1_1_1.wav and no yesno_8k.npz'):
    yesno.load(tmp_path)
  write_npz(tmp_path, is_test=None)
  with pytest.raises(InputError, match="expected 'is_test' among them"):
    yesno.load(tmp_path)
  write_npz(tmp_path, is_test=[False] * 5)
  with pytest.raises(InputError, match="found no recording for split 'test'"):
    yesno.load(tmp_path)


@pytest.mark.data
def test_the_real_recordings(data_dir):
  splits = yesno.load(data_dir)
  assert {split: len(part) for split, part in splits.items()} == {'train': 24, 'val': 7, 'test': 29}
  assert all(len(text.split()) == 8 for part in splits.values() for text in part.columns['text'])
