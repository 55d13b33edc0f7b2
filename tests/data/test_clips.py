import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import clips
from mtljax.data.transforms import text

LENGTHS = np.array([3, 1, 2])


def write(tmp_path, **arrays):
  given = {'audio': np.arange(6, dtype=np.int16), 'offset': np.array([0, 3, 4, 6]), 'text': ['a b', 'b', 'a a']}
  np.savez(tmp_path / 'x.npz', **{k: v for k, v in {**given, **arrays}.items() if v is not None})
  return tmp_path / 'x.npz'


def test_audio_with_offsets(tmp_path):
  found = clips.npz(write(tmp_path, sample_rate=8000, speaker=[1, 0, 1], names=np.arange(5)))
  assert [row.tolist() for row in found.rows] == [[0, 1 / 2**15, 2 / 2**15], [3 / 2**15], [4 / 2**15, 5 / 2**15]]
  assert found.rows[0].dtype == np.float32 and found.rate == 8000 and sorted(found.columns) == ['speaker', 'text']


def test_features_with_lengths_and_ragged_symbols(tmp_path):
  features, symbols = np.arange(12.0).reshape(6, 2), np.array([4, 5, 5, 4])
  path = write(tmp_path, audio=None, offset=None, f=features, n=LENGTHS, y=symbols, m=np.array([2, 1, 1]))
  found = clips.npz(path, features='f', offsets='n', ragged={'y': 'm'})
  np.testing.assert_array_equal(found.rows[2], features[4:])
  assert [row.tolist() for row in found.columns['y']] == [[4, 5], [5], [4]] and found.rate is None
  examples = clips.ctc_examples(found, text='y')
  assert examples['labels'].tolist() == [[4, 5], [5, 0], [4, 0]] and examples['labels'].dtype == np.int32
  assert examples['inputs']['mask'].tolist() == [[True] * 3, [True, False, False], [True, True, False]]
  np.testing.assert_array_equal(examples['inputs']['x'][0], features[:3])
  assert not examples['inputs']['x'][1, 1:].any()


def test_features_filled_up_to_one_length(tmp_path):
  path = write(tmp_path, audio=np.arange(18.0).reshape(3, 3, 2), offset=np.array([3, 1, 2]))
  rows = clips.npz(path).rows
  assert [row.shape for row in rows] == [(3, 2), (1, 2), (2, 2)] and rows[1].tolist() == [[6, 7]]


BAD = {
  'no array': (dict(), dict(features='feats'), "'feats' is no array there"),
  'no lengths': (dict(), dict(offsets='length'), "'length' is no array there"),
  'lengths': (dict(offset=LENGTHS + [0, 0, 1]), {}, "'offset': row 2 of 'audio' has length 3 and ends at 7, .* is 6"),
  'too few': (dict(offset=LENGTHS[:2]), {}, "'offset': row 1 of 'audio' has length 1 and ends at 4, .* is 6"),
  'offsets': (dict(offset=[0, 3, 2, 6]), {}, "'offset': row 1 of 'audio' ends at 2, expected offsets that rise from 0"),
  'end': (dict(offset=[0, 3, 4, 7]), {}, "'offset': row 2 of 'audio' ends at 7"),
  'kind': (dict(offset=[0.0, 3, 4, 6]), {}, "'offset': found float64"),
  'rates': (dict(sample_rate=[8000, 8000, 16000]), {}, r"'sample_rate': found \[8000, 16000\], expected one"),
  'filled': (
    dict(audio=np.ones((3, 2)), offset=[2, 3, 1]),
    {},
    "'offset': row 1 of 'audio' has length 3, expected 0 to 2",
  ),
  'audio': (dict(audio=list('abcdef')), {}, "'audio': found <U1"),
  'ragged': (
    dict(y=np.arange(3), m=[1, 2]),
    dict(ragged={'y': 'm'}),
    "'y': found 2 rows, expected 3, as in 'audio'",
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_what_does_not_fit_is_named(tmp_path, case):
  arrays, options, message = BAD[case]
  path = write(tmp_path, **arrays)
  with pytest.raises(InputError, match=f'x.npz, {message}|x.npz: {message}'):
    clips.npz(path, **options)


def test_bad_rows_are_named_or_left_out(tmp_path):
  path = write(tmp_path, audio=np.array([1.0, 2.0, 3.0, np.nan, 1.0]), offset=np.array([0, 3, 3, 5]))
  with pytest.raises(InputError, match="x.npz, row 1 of 'audio': found nothing"):
    clips.npz(path)
  with pytest.warns(UserWarning, match="skipped 2 of 3, the first: row 1 of 'audio'"):
    found = clips.npz(path, on_bad='skip')
  assert found.names == ['row 0'] and found.columns['text'].tolist() == ['a b']


def test_files_that_hold_objects(tmp_path):
  path = write(tmp_path, text=np.array([['a'], 'b', 'c'], object))
  with pytest.raises(InputError, match="array 'text' holds Python objects, .* end to end into one array"):
    clips.npz(path)


def spoken(*texts):
  rows = [np.ones((6, 2), np.float32)] * len(texts)
  return clips.Clips(rows, {'text': np.array(texts)}, source='x.npz')


WORDS = text.words(['one two'])


def test_transcripts_become_symbols():
  found = clips.ctc_examples(spoken('one', 'two one'), WORDS, max_frames=8, max_symbols=3)
  assert found['inputs']['x'].shape == (2, 8, 2) and found['inputs']['mask'].sum(axis=1).tolist() == [6, 6]
  assert [WORDS.decode(row) for row in found['labels']] == ['one', 'two one'] and found['labels'].shape == (2, 3)


WRONG = {
  'empty': (' ', {}, 'found nothing, expected a transcript'),
  'unknown': ('one three', {}, "found 'three', expected symbols of the vocabulary"),
  'symbols': ('one two one', dict(max_symbols=2), 'found 3 symbols, expected at most 2'),
  'short': ('one one', dict(subsample=3), 'found 6 frames for 2 symbols, expected at least 9'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_transcripts_are_named_or_left_out(case):
  said, options, message = WRONG[case]
  with pytest.raises(InputError, match=f"x.npz, row 1, 'text': {message}"):
    clips.ctc_examples(spoken('one', said), WORDS, **options)
  with pytest.warns(UserWarning, match=f"x.npz: skipped 1 of 3, the first: row 1, 'text': {message}"):
    found = clips.ctc_examples(spoken('one', said, 'two'), WORDS, **options, on_bad='skip')
  assert [WORDS.decode(row) for row in found['labels']] == ['one', 'two']


def test_other_bad_examples():
  with pytest.raises(InputError, match="row 0, 'text': found 6 frames, expected at most 5"):
    clips.ctc_examples(spoken('one'), WORDS, max_frames=5)
  with pytest.raises(InputError, match=r"found the columns \['text'\], expected 'words' among them"):
    clips.ctc_examples(spoken('one'), WORDS, text='words')
  symbols = clips.Clips([np.ones((6, 2))] * 2, {'y': [[1, 2], [0, 1]]})
  with pytest.raises(InputError, match="row 1, 'y': found symbol 0, expected 1 and up"):
    clips.ctc_examples(symbols, text='y')


def test_rows_keep_their_names():
  found = spoken('one', 'two', 'zero').take(np.array([False, True, True]))
  assert found.columns['text'].tolist() == ['two', 'zero'] and found.take([1]).names == ['row 2']
  with pytest.raises(InputError, match='x.npz, row 2, '):
    clips.ctc_examples(found, WORDS)
  doubled = found.map(lambda row: row[::2], rate=50)
  assert doubled.rows[0].shape == (3, 2) and doubled.rate == 50 and doubled.names == found.names


def test_pad():
  rows = [np.ones(3), np.ones(1)]
  assert clips.pad(rows, 2, cut=True)['x'].tolist() == [[1, 1], [1, 0]]
  with pytest.raises(InputError, match='clip 0 has 3 frames, expected at most 2'):
    clips.pad(rows, 2)
  with pytest.raises(InputError, match=r'clip 1 has shape \(1, 2\)'):
    clips.pad([np.ones((3, 1)), np.ones((1, 2))])
  with pytest.raises(InputError, match="'text': found 1 entries, expected 2"):
    clips.Clips(rows, {'text': ['a']})
  with pytest.raises(InputError, match='found no recording'):
    clips.Clips([])
