import numpy as np
import pytest
import soundfile

from mtljax.base import InputError
from mtljax.data import audio
from mtljax.data.clips import Clips


def tone(hertz, rate, seconds=0.5):
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize('end, tolerance', [('wav', 1e-4), ('flac', 1e-4), ('ogg', 0.1)])
def test_formats(tmp_path, end, tolerance):
  wave = tone(300, 8000)
  soundfile.write(tmp_path / f'x.{end}', wave, 8000)
  found, rate = audio.read(tmp_path / f'x.{end}')
  assert rate == 8000 and found.dtype == np.float32 and found.shape == wave.shape
  np.testing.assert_allclose(found, wave, atol=tolerance)


def test_channels_are_averaged_and_rates_changed(tmp_path):
  left, right = tone(300, 16000), tone(500, 16000)
  soundfile.write(tmp_path / 'x.wav', np.stack([left, right], 1), 16000, subtype='FLOAT')
  found, _ = audio.read(tmp_path / 'x.wav')
  np.testing.assert_allclose(found, (left + right) / 2, atol=1e-6)
  found, rate = audio.read(tmp_path / 'x.wav', 8000)
  assert rate == 8000 and len(found) == 4000
  expected = (tone(300, 8000) + tone(500, 8000)) / 2
  np.testing.assert_allclose(found[400:-400], expected[400:-400], atol=1e-3)


def damaged(path):
  soundfile.write(path, tone(300, 8000), 8000)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def not_finite(path):
  soundfile.write(path, np.array([0.0, np.nan], np.float32), 8000, subtype='FLOAT')


BAD = {
  'missing': ('x.wav', lambda path: None, 'x.wav: found no such file'),
  'text': ('x.wav', lambda path: path.write_text('no sound'), 'x.wav: cannot be read, expected an audio file'),
  'half a flac': ('x.flac', damaged, 'x.flac: '),
  'empty': ('x.wav', lambda path: soundfile.write(path, np.zeros(0), 8000), 'x.wav: found 0 samples'),
  'NaN': ('x.wav', not_finite, 'x.wav: found NaN or infinity'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_files_are_named(tmp_path, case):
  name, make, message = BAD[case]
  make(tmp_path / name)
  with pytest.raises(InputError, match=message):
    audio.read(tmp_path / name)


def three(tmp_path, rates=(8000, 8000, 8000)):
  paths = [tmp_path / f'{i}.wav' for i in range(3)]
  for i, (path, rate) in enumerate(zip(paths, rates)):
    soundfile.write(path, tone(300 + i, rate, 0.1 * (i + 1)), rate)
  return paths


def test_many_files(tmp_path):
  found = audio.read_files(three(tmp_path), {'text': ['a', 'b', 'c']})
  assert [len(row) for row in found.rows] == [800, 1600, 2400] and found.rate == 8000
  assert found.columns['text'].tolist() == ['a', 'b', 'c'] and found.names[2] == '2.wav'


def test_rates_that_differ(tmp_path):
  paths = three(tmp_path, (8000, 8000, 16000))
  message = '2.wav: found 16000 samples per second, expected 8000, as in 0.wav; or give a rate'
  with pytest.raises(InputError, match=message):
    audio.read_files(paths)
  with pytest.warns(UserWarning, match=f'skipped 1 of 3, the first: {message}'):
    assert len(audio.read_files(paths, on_bad='skip')) == 2
  found = audio.read_files(paths, rate=8000)
  assert [len(row) for row in found.rows] == [800, 1600, 2400] and found.rate == 8000


def test_a_bad_one_of_many(tmp_path):
  paths = three(tmp_path)
  paths[0].write_text('no sound')
  with pytest.raises(InputError, match='0.wav: cannot be read'):
    audio.read_files(paths)
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: 0.wav: cannot be read'):
    found = audio.read_files(paths, {'text': ['a', 'b', 'c']}, on_bad='skip')
  assert found.columns['text'].tolist() == ['b', 'c'] and len(found.rows[0]) == 1600
  for path in paths:
    path.write_text('')
  with pytest.raises(InputError, match='Nothing is left'):
    audio.read_files(paths, on_bad='skip')


def test_arguments(tmp_path):
  with pytest.raises(InputError, match='found no path'):
    audio.read_files([])
  with pytest.raises(InputError, match=r"columns\['text'\]: found 1 entries, expected 3"):
    audio.read_files(three(tmp_path), {'text': ['a']})
  with pytest.raises(InputError, match='resample: target is 0'):
    audio.resample(tone(300, 8000), 8000, 0)
  with pytest.raises(InputError, match=r'resample: samples are int64\[3\]'):
    audio.resample(np.arange(3), 8000, 16000)


def test_clips_at_a_rate():
  clips = Clips([tone(300, 8000)], rate=8000)
  assert audio.at_rate(clips, None) is clips and audio.at_rate(clips, 8000) is clips
  found = audio.at_rate(clips, 16000)
  assert found.rate == 16000 and len(found.rows[0]) == 8000
  with pytest.raises(InputError, match='found no sample rate'):
    audio.at_rate(Clips([tone(300, 8000)]), 16000)
