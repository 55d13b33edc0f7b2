"""multi_digits: what is drawn, and that preparing it is safe."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mtljax.base import InputError
from mtljax.data import multi_digits

PAIRS = {'train': 40, 'val': 10, 'test': 20}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def splits(folder):
  return multi_digits.load(folder, PAIRS)


def sorted_rows(examples):
  rows = np.concatenate([np.reshape(x, (len(x), -1)) for x in (examples['inputs'], *examples['labels'].values())], 1)
  return rows[np.lexsort(rows.T)]


def test_examples(splits):
  assert {name: len(part['inputs']) for name, part in splits.items()} == PAIRS
  digits = load_digits()
  for name, part in splits.items():
    assert part['inputs'].dtype == np.float32 and part['inputs'].shape[1:] == (10, 10, 1)
    assert part['inputs'].min() == 0 and part['inputs'].max() == 1
    left, right = part['labels']['left'], part['labels']['right']
    assert left.dtype == right.dtype == np.int32 and (left != right).all()
    pairs = multi_digits.draw_pairs(name, PAIRS[name], digits.target)
    canvas = np.zeros((len(pairs), 10, 10))
    canvas[:, :8, :8] = digits.images[pairs[:, 0]]
    canvas[:, 2:, 2:] = np.maximum(canvas[:, 2:, 2:], digits.images[pairs[:, 1]])
    labels = dict(zip(('left', 'right'), digits.target[pairs].T))
    np.testing.assert_array_equal(sorted_rows(part), sorted_rows({'inputs': canvas[..., None] / 16, 'labels': labels}))


def test_splits_share_no_source():
  target = load_digits().target
  drawn = {name: multi_digits.draw_pairs(name, multi_digits.PAIRS[name], target) for name in multi_digits.PAIRS}
  sources = {name: set(pairs.ravel()) for name, pairs in drawn.items()}
  assert {name: len(found) for name, found in sources.items()} == multi_digits.SOURCES
  assert len(set.union(*sources.values())) == 1797 == sum(multi_digits.SOURCES.values())
  for pairs in drawn.values():
    assert (target[pairs[:, 0]] != target[pairs[:, 1]]).all()
    assert np.ptp(np.unique(pairs[:, 0], return_counts=True)[1]) <= 1


def test_second_load_reads_the_cache(folder, splits, monkeypatch):
  def drawn_again(*args):
    raise AssertionError('prepared twice')

  monkeypatch.setattr(multi_digits, 'draw_pairs', drawn_again)
  again = multi_digits.load(folder, PAIRS)
  for name in PAIRS:
    np.testing.assert_array_equal(again[name]['inputs'], splits[name]['inputs'])
    np.testing.assert_array_equal(again[name]['labels']['left'], splits[name]['labels']['left'])


def test_order_is_the_same_in_another_folder(tmp_path, splits):
  other = multi_digits.load(tmp_path, PAIRS)
  np.testing.assert_array_equal(other['train']['inputs'], splits['train']['inputs'])


def test_interrupted_preparation_is_done_again(tmp_path, splits, monkeypatch):
  whole = multi_digits.overlay

  def interrupted(images, pairs):
    if len(pairs) == PAIRS['test']:  # train and val are written by then
      raise KeyboardInterrupt
    return whole(images, pairs)

  monkeypatch.setattr(multi_digits, 'overlay', interrupted)
  with pytest.raises(KeyboardInterrupt):
    multi_digits.load(tmp_path, PAIRS)
  monkeypatch.undo()
  folder = tmp_path / 'multi_digits' / 'pairs_40_10_20'
  assert not (folder / '1.0.0').exists()
  leftover = folder / 'incomplete.ABCDEF_1.0.0'  # of a process that was killed
  leftover.mkdir()
  (leftover / 'multi_digits-train.array_record-00000-of-00001').write_bytes(b'half')
  found = multi_digits.load(tmp_path, PAIRS)
  np.testing.assert_array_equal(found['test']['inputs'], splits['test']['inputs'])
  (folder / '1.0.0' / 'dataset_info.json').unlink()  # a deletion that was interrupted
  found = multi_digits.load(tmp_path, PAIRS)
  np.testing.assert_array_equal(found['test']['inputs'], splits['test']['inputs'])


def test_another_process_was_faster(tmp_path, splits, monkeypatch):
  """A whole preparation elsewhere, between our look and our rename."""
  whole, busy = multi_digits.overlay, []

  def slow(images, pairs):
    if not busy:
      busy.append(True)
      multi_digits.prepare(tmp_path, PAIRS)
    return whole(images, pairs)

  monkeypatch.setattr(multi_digits, 'overlay', slow)
  found = multi_digits.load(tmp_path, PAIRS)
  assert busy
  np.testing.assert_array_equal(found['val']['inputs'], splits['val']['inputs'])


def test_says_nothing(tmp_path, capfd):
  multi_digits.load(tmp_path, {'train': 3, 'val': 2, 'test': 2})
  assert capfd.readouterr().out == ''


def test_bad_arguments(tmp_path):
  with pytest.raises(InputError, match=r"pairs: found \{'train': 4\}, expected a positive number for each of"):
    multi_digits.load(tmp_path, {'train': 4})
  with pytest.raises(InputError, match='pairs: found'):
    multi_digits.load(tmp_path, PAIRS | {'val': 0})
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match="data_dir: '.*/file' cannot be written"):
    multi_digits.load(tmp_path / 'file', PAIRS)
