"""Scenes in the layout of MTAN's release: maps, masks, sizes, reading image by image; what is wrong is named."""

import numpy as np
import pytest

from mtljax import data
from mtljax.base import InputError
from mtljax.data import scenes

H, W = 6, 8
RANDOM = np.random.default_rng(0)


def write(folder, label='label', counts=(11, 3), normals=True, classes=13):
  """Returns {split: [arrays by folder]}."""
  found = {}
  for split, count in zip(('train', 'val'), counts):
    found[split] = []
    for i in range(count):
      arrays = {
        'image': RANDOM.random((H, W, 3)),
        label: RANDOM.integers(-1, classes, (H, W)).astype(np.float64),
        'depth': np.where(RANDOM.random((H, W, 1)) < 0.2, 0, RANDOM.random((H, W, 1)) * 5),
      }
      if normals:
        arrays['normal'] = RANDOM.normal(size=(H, W, 3)) * (RANDOM.random((H, W, 1)) < 0.8)
      for name, array in arrays.items():
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / split / name / f'{i}.npy', array)
      found[split].append(arrays)
  return found


@pytest.mark.parametrize('above', ['', 'nyuv2'])
def test_nyuv2(tmp_path, above):
  found = write(tmp_path / above)
  splits = scenes.load(tmp_path, held_out=0.2)
  assert [len(splits[split]['inputs']) for split in ('train', 'val', 'test')] == [9, 2, 3]
  originals = np.stack([arrays['image'] for arrays in found['train']])
  rows = [
    int(np.abs(originals - x).max((1, 2, 3)).argmin()) for split in ('train', 'val') for x in splits[split]['inputs']
  ]
  assert sorted(rows) == list(range(11))  # every image of the folder once
  assert rows[:9] == sorted(rows[:9])  # files in the order of their numbers, 2 before 10
  for split, chosen in (('train', rows[:9]), ('test', range(3))):
    source = found['val' if split == 'test' else split]
    for i, row in enumerate(chosen):
      x, y, m = (
        splits[split]['inputs'][i],
        *({task: leaf[i] for task, leaf in splits[split][key].items()} for key in ('labels', 'mask')),
      )
      arrays = source[row]
      np.testing.assert_allclose(x, arrays['image'], atol=1e-7)
      np.testing.assert_array_equal(m['segmentation'], arrays['label'] >= 0)
      np.testing.assert_array_equal(y['segmentation'], np.maximum(arrays['label'], 0))
      np.testing.assert_array_equal(m['depth'], arrays['depth'][..., 0] > 0)
      np.testing.assert_allclose(y['depth'], arrays['depth'][..., 0], rtol=1e-6)
      np.testing.assert_array_equal(m['normals'], (arrays['normal'] != 0).any(-1))
      np.testing.assert_allclose(y['normals'], arrays['normal'], rtol=1e-6)
      assert y['segmentation'].dtype == np.int32 and y['depth'].dtype == y['normals'].dtype == np.float32


@pytest.mark.parametrize(
  'maps, label, classes', [(scenes.CITYSCAPES, 'label_7', 7), (scenes.CITYSCAPES_19, 'label_19', 19)]
)
def test_cityscapes(tmp_path, maps, label, classes):
  found = write(tmp_path / 'cityscapes', label=label, normals=False, classes=classes)
  splits = scenes.load(tmp_path, maps)
  assert set(splits['test']['labels']) == {'segmentation', 'depth'} and maps['depth'].kind == 'inverse_depth'
  assert splits['test']['labels']['segmentation'].max() == max(arrays[label].max() for arrays in found['val'])


def test_smaller(tmp_path):
  found = write(tmp_path)
  test = scenes.load(tmp_path, size=(H // 2, W // 2))['test']
  for i, arrays in enumerate(found['val']):
    expected = arrays['image'].reshape(H // 2, 2, W // 2, 2, 3).mean((1, 3))
    np.testing.assert_allclose(test['inputs'][i], expected, atol=1e-6)
    np.testing.assert_array_equal(test['mask']['segmentation'][i], arrays['label'][1::2, 1::2] >= 0)
    np.testing.assert_allclose(test['labels']['normals'][i], arrays['normal'][1::2, 1::2], rtol=1e-6)


def test_read_image_by_image(tmp_path):
  """`Stream` has the batches of `Batches` without loading all."""
  write(tmp_path)
  sources, splits = scenes.sources(tmp_path), scenes.load(tmp_path)
  stream, batches = data.Stream(sources['train'], 4, threads=1), data.Batches(splits['train'], 4)
  a, b = stream(0, 3), batches(0, 3)
  for key in ('labels', 'mask'):
    for task in scenes.NYUV2:
      np.testing.assert_array_equal(a[key][task], b[key][task])
  np.testing.assert_array_equal(a['inputs'], b['inputs'])


def test_data_of_your_own(tmp_path):
  write(tmp_path / 'mine', label='material', normals=False)
  maps = {'material': scenes.Pixels('material', classes=12, void=(-1, 12))}
  examples = scenes.load(tmp_path, maps, names=('mine',))['train']
  assert set(examples['labels']) == {'material'} and examples['labels']['material'].max() == 11


BAD = {
  'missing': (
    'depth/0.npy',
    None,
    r'depth/0.npy: found no such file, expected .* and one of the same name for every task',
  ),
  'damaged': ('image/0.npy', b'\x93NUMPY', r'image/0.npy: cannot be read, expected a numeric array'),
  'pickled': ('label/0.npy', np.array([{}]), r'label/0.npy: cannot be read'),
  'text': ('label/0.npy', np.array(['a']), r'label/0.npy: found dtype <U1, expected numbers'),
  'shape': ('depth/0.npy', np.ones((H, 4)), r'depth/0.npy: found shape \[6, 4\], expected \[6, 8\], as the image'),
  'flat': ('normal/0.npy', np.ones((H, W)), r'normal/0.npy: found shape \[6, 8\], expected \[6, 8, 3\]'),
  'image': ('image/0.npy', np.ones((H, W)), r'image/0.npy: found shape \[6, 8\], expected \[H, W, channels\]'),
  'class': (
    'label/0.npy',
    np.full((H, W), 13),
    r'label/0.npy: found label 13 at \[0, 0\], expected a class 0..12 or -1',
  ),
  'fraction': ('label/0.npy', np.full((H, W), 0.5), r'label/0.npy: found 0.5, expected whole numbers of classes'),
  'nan': ('depth/0.npy', np.full((H, W), np.nan), r'depth/0.npy: found NaN or infinite values'),
  'negative': ('depth/0.npy', np.full((H, W), -2.0), r'depth/0.npy: found a depth of -2, expected numbers >= 0'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_named_or_skipped(tmp_path, name):
  place, content, message = BAD[name]
  write(tmp_path)
  path = tmp_path / 'val' / place
  if content is None:
    path.unlink()
  elif isinstance(content, bytes):
    path.write_bytes(content)
  else:
    np.save(path, content, allow_pickle=True)
  with pytest.raises(InputError, match=message):
    scenes.load(tmp_path)
  with pytest.warns(UserWarning, match=r'val/image: skipped 1 of 3, the first: 0.npy: .*found|cannot'):
    assert len(scenes.load(tmp_path, on_bad='skip')['test']['inputs']) == 2


def test_images_of_another_size_and_bad_arguments_are_named(tmp_path):
  with pytest.raises(InputError, match=r'data_dir: .* has no train/label, nor has a folder nyuv2'):
    scenes.load(tmp_path)
  write(tmp_path)
  for name, shape in (('image', (4, 4, 3)), ('label', (4, 4)), ('depth', (4, 4)), ('normal', (4, 4, 3))):
    np.save(tmp_path / 'val' / name / '1.npy', np.zeros(shape))
  with pytest.raises(
    InputError, match=r'1.npy: found shape \[4, 4, 3\], expected \[6, 8, 3\] as before it; give `size`'
  ):
    scenes.load(tmp_path)
  assert scenes.load(tmp_path, size=(2, 2))['test']['inputs'].shape == (3, 2, 2, 3)
  with pytest.raises(InputError, match=r'held_out: found 0.01, 0 of 11 images, expected some but not all'):
    scenes.load(tmp_path, held_out=0.01)
  with pytest.raises(InputError, match=r"maps\['a'\]: found kind 'labels' and classes None"):
    scenes.Scenes(tmp_path / 'train', {'a': scenes.Pixels('label')})
  with pytest.raises(InputError, match=r'image: found no npy file'):
    scenes.Scenes(tmp_path, scenes.NYUV2)
