"""CamVid from pictures and from npz; tasks that follow from classes of pixels; what is wrong is named."""

import numpy as np
import pytest
from PIL import Image
from skimage import segmentation, transform

from mtljax.base import InputError
from mtljax.data import camvid, pixels

SPLITS = ('train', 'val', 'test')
RANDOM = np.random.default_rng(0)


def scene(height=12, width=16):
  """An image and its annotation: blocks of classes, some without a label."""
  image = RANDOM.integers(0, 256, (height, width, 3)).astype(np.uint8)
  label = np.kron(RANDOM.integers(0, 12, (height // 4, width // 4)), np.ones((4, 4), int)).astype(np.uint8)
  return image, label


def write_pictures(folder, count=2):
  found = {}
  for split in SPLITS:
    (folder / split).mkdir(parents=True)
    (folder / f'{split}annot').mkdir()
    found[split] = [scene() for _ in range(count)]
    for i, (image, label) in enumerate(found[split]):
      Image.fromarray(image).save(folder / split / f'{i:03}.png')
      Image.fromarray(label).save(folder / f'{split}annot' / f'{i:03}.png')
  return found


def write_npz(folder, size=(12, 16), **changes):
  arrays, found = {}, {}
  for split in SPLITS:
    found[split] = [scene(*size) for _ in range(3)]
    arrays[f'{split}_image'], arrays[f'{split}_label'] = (np.stack(part) for part in zip(*found[split]))
  np.savez(
    folder / f'camvid_{size[0]}x{size[1]}.npz', **{k: v for k, v in {**arrays, **changes}.items() if v is not None}
  )
  return found


def check(splits, found):
  for split in SPLITS:
    examples = splits[split]
    images, annotations = (np.stack(part) for part in zip(*found[split]))
    known = annotations < 11
    np.testing.assert_allclose(examples['inputs'], images / 255, atol=1e-6)
    assert examples['inputs'].dtype == np.float32
    np.testing.assert_array_equal(examples['mask']['segmentation'], known)
    np.testing.assert_array_equal(examples['labels']['segmentation'][known], annotations[known])
    assert (examples['labels']['segmentation'][~known] == 0).all()
    for i, annotation in enumerate(annotations):
      there = [int(c in annotation) for c in range(11)]
      assert examples['labels']['presence'][i].tolist() == there
    assert all(y.dtype == np.int32 for y in examples['labels'].values())


@pytest.mark.parametrize('above', ['', 'CamVid'])
def test_pictures(tmp_path, above):
  found = write_pictures(tmp_path / above)
  check(camvid.load(tmp_path, (12, 16)), found)


@pytest.mark.parametrize('above', ['', 'camvid_small'])
def test_npz(tmp_path, above):
  (tmp_path / above).mkdir(exist_ok=True)
  found = write_npz(tmp_path / above)
  check(camvid.load(tmp_path, (12, 16)), found)


def test_pictures_are_made_smaller(tmp_path):
  found = write_pictures(tmp_path)
  examples = camvid.load(tmp_path, (6, 8))['val']
  image, label = found['val'][1]
  expected = transform.downscale_local_mean(image.astype(float), (2, 2, 1)) / 255
  np.testing.assert_allclose(examples['inputs'][1], expected, atol=1 / 255)
  known = label[1::2, 1::2] < 11
  np.testing.assert_array_equal(examples['mask']['segmentation'][1], known)
  np.testing.assert_array_equal(examples['labels']['segmentation'][1][known], label[1::2, 1::2][known])


def test_boundaries_as_scikit_image():
  """Where all is known, they are the 'thick' boundaries of 4-neighbours."""
  labels = np.stack([scene(20, 24)[1] for _ in range(3)]).astype(int)
  found = pixels.boundaries(labels)
  for y, edge in zip(labels, found):
    np.testing.assert_array_equal(edge, segmentation.find_boundaries(y, connectivity=1, mode='thick'))
  assert 0 < found.mean() < 1


def test_what_is_not_known_makes_no_boundary():
  labels = np.array([[[0, 9, 1, 1, 2]]])
  known = np.array([[[True, False, True, True, True]]])
  assert pixels.boundaries(labels, known).tolist() == [[[0, 0, 0, 1, 1]]]
  assert pixels.presence(labels, 3, known).tolist() == [[1, 1, 1]]
  assert pixels.presence(labels, 3, ~known).tolist() == [[0, 0, 0]]


def test_sizes_that_do_not_divide():
  x = RANDOM.random((2, 7, 9, 3))
  np.testing.assert_allclose(pixels.resized(x, (3, 4)).mean((1, 2)), x.mean((1, 2)), rtol=1e-9)
  np.testing.assert_allclose(pixels.resized(x, (7, 9)), x)
  fine = np.repeat(np.repeat(x, 4, axis=2), 3, axis=1)
  expected = [transform.downscale_local_mean(image, (7, 9, 1)) for image in fine]
  np.testing.assert_allclose(pixels.resized(x, (3, 4)), expected, rtol=1e-9)
  np.testing.assert_array_equal(pixels.nearest(x, (14, 18)), np.repeat(np.repeat(x, 2, axis=2), 2, axis=1))


def test_bad_pictures_are_named_or_skipped(tmp_path):
  write_pictures(tmp_path)
  path = tmp_path / 'trainannot' / '001.png'
  path.unlink()
  with pytest.raises(InputError, match=r'trainannot/001.png: found no such file, expected a picture'):
    camvid.load(tmp_path, (12, 16))
  path.write_bytes(b'no picture')
  with pytest.raises(InputError, match=r'trainannot/001.png: cannot be read, expected a picture'):
    camvid.load(tmp_path, (12, 16))
  Image.fromarray(np.full((12, 16), 12, np.uint8)).save(path)
  expected = r'trainannot/001.png: found label 12 at \[0, 0, 0\], expected a class 0..10 or 11 \(no label\)'
  with pytest.raises(InputError, match=expected):
    camvid.load(tmp_path, (12, 16))
  with pytest.warns(UserWarning, match=r'train: skipped 1 of 2, the first: 001.png: .*found label 12'):
    assert len(camvid.load(tmp_path, (12, 16), on_bad='skip')['train']['inputs']) == 1
  Image.fromarray(scene()[0]).save(path)
  with pytest.raises(InputError, match=r'trainannot/001.png: found a picture of mode RGB, expected one number'):
    camvid.load(tmp_path, (12, 16))


def test_a_cut_picture_is_named(tmp_path):
  write_pictures(tmp_path)
  path = tmp_path / 'val' / '000.png'
  path.write_bytes(path.read_bytes()[:-300])
  with pytest.raises(InputError, match=r'val/000.png: cannot be read, expected a picture'):
    camvid.load(tmp_path, (12, 16))


def test_bad_arrays_are_named(tmp_path):
  with pytest.raises(InputError, match=r'data_dir: .* has no trainannot, nor has a folder camvid_small or camvid'):
    camvid.load(tmp_path, (12, 16))
  write_npz(tmp_path, val_label=None)
  with pytest.raises(InputError, match=r'camvid_12x16.npz: found .*, expected an array val_label'):
    camvid.load(tmp_path, (12, 16))
  write_npz(tmp_path, test_label=np.zeros((3, 4, 4), np.uint8))
  with pytest.raises(InputError, match=r'test_label: found images uint8\[3, 12, 16, 3\] and labels uint8\[3, 4, 4\]'):
    camvid.load(tmp_path, (12, 16))
  write_npz(tmp_path, train_image=np.full((3, 12, 16, 3), np.nan))
  with pytest.raises(InputError, match=r'found images with NaN or infinite values'):
    camvid.load(tmp_path, (12, 16))
  write_npz(tmp_path, train_image=np.zeros((3, 12, 16, 3), int))
  with pytest.raises(InputError, match=r'found images of dtype int64, expected uint8 or floats'):
    camvid.load(tmp_path, (12, 16))


def test_another_data_set_of_the_layout(tmp_path):
  write_pictures(tmp_path)
  examples = camvid.load(tmp_path, (12, 16), classes=[str(i) for i in range(12)], void=())['train']
  assert examples['labels']['presence'].shape == (2, 12) and examples['mask']['segmentation'].all()


@pytest.mark.data
def test_the_real_files(data_dir):
  splits = camvid.load(data_dir)
  assert [len(splits[split]['inputs']) for split in SPLITS] == [367, 101, 233]
  test, mask = splits['test']['labels'], splits['test']['mask']
  prior = np.stack(
    [
      ((splits['train']['labels']['segmentation'] == c) & splits['train']['mask']['segmentation']).sum(0)
      for c in range(11)
    ]
  ).argmax(0)
  right = (prior[None] == test['segmentation'])[mask['segmentation']].mean()
  assert abs(right - 0.615) < 1e-3
  assert 0.1 < test['boundary'][mask['boundary']].mean() < 0.2
