"""CelebA: 40 yes/no attributes of faces, a task each.

The files are those of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (non-commercial research), which TFDS `celeba`
downloads too: list_attr_celeba.txt, list_eval_partition.txt and the folder img_align_celeba of 202599 jpg pictures,
218x178. Papers of multi-task learning read them at 64x64 (Sener & Koltun 2018, https://arxiv.org/abs/1810.04650).

Reference: Liu, Luo, Wang & Tang, Deep Learning Face Attributes in the Wild (ICCV 2015), https://arxiv.org/abs/1411.7766.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError, PyTree
from mtljax.data.pixels import find_folder, read_image
from mtljax.data.reading import OnBad
from mtljax.data.scenes import stacked

FOLDERS = ('celeba', 'CelebA')
ATTRIBUTES, PARTITION, PICTURES = 'list_attr_celeba.txt', 'list_eval_partition.txt', 'img_align_celeba'
SPLITS = {'0': 'train', '1': 'val', '2': 'test'}
SOURCE = 'the files of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html'


class Pictures:
  """Pictures with yes/no labels, each read when it is asked for: a source of records, as `load` stacks them.

  Args:
    folder: of the pictures.
    names: of the files.
    labels: {task: 0 or 1 of every file}.
    size: (H, W) that they are resized to.
  """

  def __init__(
    self, folder: str | os.PathLike, names: Sequence[str], labels: Mapping[str, np.ndarray], size: tuple[int, int]
  ):
    self.folder, self.names, self.labels, self.size = pathlib.Path(folder), list(names), dict(labels), size

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, number: int) -> PyTree:
    """`{'inputs': f32[H, W, 3] in 0..1, 'labels': {task: int32[]}}`."""
    image = read_image(self.folder / self.names[number], self.size)
    return {'inputs': image.astype(np.float32) / 255, 'labels': {task: y[number] for task, y in self.labels.items()}}


def sources(
  data_dir: str | os.PathLike,
  size: tuple[int, int] = (64, 64),
  *,
  attributes: Sequence[str] | None = None,
  limit: int | None = None,
) -> dict[str, Pictures]:
  """The three official splits, pictures read one by one.

  Args:
    data_dir: folder of the two lists and of the pictures, or the one above it, called celeba.
    size: (H, W) that pictures are resized to.
    attributes: the tasks, some of the 40 of the list; None takes all.
    limit: the first so many pictures of every split; None takes all.

  Returns:
    {'train', 'val', 'test'} -> `Pictures` (162770, 19867 and 19962).

  Raises:
    InputError: missing or damaged lists, an attribute that there is none of, a split without a picture.
  """
  folder = find_folder(data_dir, FOLDERS, ATTRIBUTES, SOURCE)
  lines = _lines(folder / ATTRIBUTES)
  tasks = lines[1][1] if len(lines) > 1 else []
  if not tasks or len(lines[0][1]) != 1:
    raise InputError(
      f'{folder / ATTRIBUTES}: found {len(lines)} lines, expected a number, names of attributes, pictures.'
    )
  wanted = list(tasks if attributes is None else attributes)
  check_names('attributes', wanted, tasks, all_of=False)
  where = {task: tasks.index(task) + 1 for task in wanted}
  rows = {}
  for number, words in lines[2:]:
    if len(words) != len(tasks) + 1 or not set(words[1:]) <= {'1', '-1'}:
      wrong = sorted(set(words[1:]) - {'1', '-1'})[:3]
      found = f'{len(words) - 1} values' + f', {wrong} among them' * bool(wrong)
      expected = f'a file and {len(tasks)} times 1 or -1'
      raise InputError(f'{folder / ATTRIBUTES}, line {number}: found {found}, expected {expected}.')
    rows[words[0]] = [int(words[where[task]] == '1') for task in wanted]
  names = {split: [] for split in SPLITS.values()}
  for number, words in _lines(folder / PARTITION):
    if len(words) != 2 or words[1] not in SPLITS or words[0] not in rows:
      expected = f'a file of {ATTRIBUTES} and its split, one of {list(SPLITS)}'
      raise InputError(f'{folder / PARTITION}, line {number}: found {" ".join(words)!r}, expected {expected}.')
    names[SPLITS[words[1]]].append(words[0])
  found = {}
  for split, files in names.items():
    files = files[:limit]
    if not files:
      raise InputError(f'{folder / PARTITION}: found no picture of split {split!r}, expected at least one.')
    values = np.array([rows[name] for name in files], np.int32).reshape(len(files), len(wanted))
    found[split] = Pictures(folder / PICTURES, files, {task: values[:, i] for i, task in enumerate(wanted)}, size)
  return found


def load(
  data_dir: str | os.PathLike,
  size: tuple[int, int] = (64, 64),
  *,
  attributes: Sequence[str] | None = None,
  limit: int | None = None,
  on_bad: OnBad = 'error',
) -> dict[str, PyTree]:
  """What `sources` reads, stacked: 49 kB a picture of 64x64, so 10 GB for all of them; `limit` takes some.

  Args:
    on_bad: 'skip' leaves out pictures that cannot be read, and warns.

  Returns:
    {'train', 'val', 'test'} -> `{'inputs': f32[N, H, W, 3] in 0..1, 'labels': {attribute: int32[N], 1 for yes}}`, for
    `losses.sigmoid_cross_entropy` and heads of one number.

  Raises:
    InputError: what `sources` raises, pictures that are missing or damaged.
  """
  splits = sources(data_dir, size, attributes=attributes, limit=limit)
  return {split: stacked(source, source.names, source.folder, on_bad) for split, source in splits.items()}


def _lines(path: pathlib.Path) -> list[tuple[int, list[str]]]:
  """(number, words) of the lines that are not empty."""
  try:
    text = path.read_text(encoding='utf-8')
  except FileNotFoundError:
    raise InputError(f'{path}: found no such file, expected {SOURCE}.') from None
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'{path}: cannot be read, expected text: {error}.') from error
  return [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
