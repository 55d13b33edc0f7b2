"""CelebA's lists and pictures: 40 tasks, three splits; what is wrong is named by file and line."""

import numpy as np
import pytest
from PIL import Image

from mtljax import data
from mtljax.base import InputError
from mtljax.data import celeba

NAMES = ['Smiling', 'Young', '5_o_Clock_Shadow']
VALUES = [(1, -1, 1), (-1, -1, 1), (1, 1, -1), (-1, 1, -1), (1, -1, -1)]
PARTS = '00112'
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90), (10, 60, 200)]


def write(folder, values=VALUES, parts=PARTS, names=NAMES):
  (folder / 'img_align_celeba').mkdir(parents=True, exist_ok=True)
  files = [f'{i + 1:06}.jpg' for i in range(len(values))]
  for file, colour in zip(files, COLOURS):
    Image.new('RGB', (18, 22), colour).save(folder / 'img_align_celeba' / file, quality=95)
  rows = [f'{file} ' + ' '.join(f'{v:2}' for v in row) for file, row in zip(files, values)]
  (folder / celeba.ATTRIBUTES).write_text('\n'.join([str(len(values)), ' '.join(names) + ' ', *rows, '']))
  (folder / celeba.PARTITION).write_text(''.join(f'{file} {part}\n' for file, part in zip(files, parts)))


@pytest.mark.parametrize('above', ['', 'celeba'])
def test_pictures_attributes_and_splits(tmp_path, above):
  write(tmp_path / above)
  splits = celeba.load(tmp_path, size=(8, 6))
  assert list(splits) == ['train', 'val', 'test']
  for split, rows in {'train': [0, 1], 'val': [2, 3], 'test': [4]}.items():
    x, labels = splits[split]['inputs'], splits[split]['labels']
    assert x.shape == (len(rows), 8, 6, 3) and x.dtype == np.float32
    np.testing.assert_allclose(x.mean((1, 2)), [np.array(COLOURS[row]) / 255 for row in rows], atol=0.02)
    assert set(labels) == set(NAMES)
    for i, name in enumerate(NAMES):
      assert labels[name].tolist() == [int(VALUES[row][i] == 1) for row in rows] and labels[name].dtype == np.int32


def test_some_attributes_of_some_pictures_read_one_by_one(tmp_path):
  write(tmp_path)
  chosen = dict(attributes=['Young', 'Smiling'], limit=1)
  splits, sources = celeba.load(tmp_path, (4, 4), **chosen), celeba.sources(tmp_path, (4, 4), **chosen)
  assert set(splits['val']['labels']) == {'Young', 'Smiling'} and len(sources['val']) == 1
  batch = data.Stream(sources['val'], 1, threads=1)(0, 0)
  np.testing.assert_array_equal(batch['inputs'], splits['val']['inputs'])
  assert batch['labels']['Smiling'].tolist() == [1]


BAD = {
  'value': (dict(values=[(1, 0, 1), *VALUES[1:]]), r"list_attr_celeba.txt, line 3: found 3 values, \['0'\] among them"),
  'columns': (
    dict(values=[*VALUES[:4], (1, 1)]),
    r'list_attr_celeba.txt, line 7: found 2 values, expected a file and 3 times 1 or -1',
  ),
  'names': (dict(names=[]), r'list_attr_celeba.txt, line 4: found 3 values, expected a file and 4'),
  'split': (dict(parts='00113'), r"list_eval_partition.txt, line 5: found '000005.jpg 3', expected"),
  'empty': (dict(parts='00110'), r"list_eval_partition.txt: found no picture of split 'test'"),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_line_is_named(tmp_path, name):
  changes, message = BAD[name]
  write(tmp_path, **changes)
  with pytest.raises(InputError, match=message):
    celeba.load(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(InputError, match=r'data_dir: .* has no list_attr_celeba.txt, nor has a folder celeba or CelebA'):
    celeba.load(tmp_path)
  write(tmp_path)
  with pytest.raises(InputError, match=r"attributes: .*unknown \['Smile'\]"):
    celeba.load(tmp_path, attributes=['Smile'])
  path = tmp_path / 'img_align_celeba' / '000002.jpg'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(InputError, match=r'000002.jpg: cannot be read, expected a picture'):
    celeba.load(tmp_path)
  with pytest.warns(UserWarning, match=r'img_align_celeba: skipped 1 of 2, the first: 000002.jpg'):
    examples = celeba.load(tmp_path, on_bad='skip')['train']
  assert examples['labels']['Smiling'].tolist() == [1] and len(examples['inputs']) == 1
  (tmp_path / celeba.PARTITION).write_bytes(b'\xff\xfe')
  with pytest.raises(InputError, match=r'list_eval_partition.txt: cannot be read, expected text'):
    celeba.load(tmp_path)
  (tmp_path / celeba.PARTITION).unlink()
  with pytest.raises(InputError, match=r'list_eval_partition.txt: found no such file'):
    celeba.load(tmp_path)
