"""Figures of predictions at the pixels beside their labels."""

from collections.abc import Mapping

import numpy as np

from mtljax.arrays import check_names
from mtljax.base import InputError, PyTree

ROWS = 4
VOID = (0.75, 0.75, 0.75)  # where there is no label


def predictions(batch: PyTree, outputs: Mapping[str, np.ndarray], rows: int = ROWS):
  """Images, and for every task its labels and its predictions, row by row; tasks without pixels are left out.

  Classes have a colour each, the same in label and prediction; yes or no (logits of the labels' shape) is black for
  certain; numbers (depth) share a scale within the row; vectors (normals) are red, green and blue. Where the mask
  leaves a label out it is grey.

  Args:
    batch: single-input, images f[B, H, W, C] in 0..1 and labels [B, H, W] or [B, H, W, 3], with masks or without.
    outputs: {task: of the head}: logits f[B, H, W, classes], logits or numbers f[B, H, W], or vectors f[B, H, W, 3].
    rows: how many of the images, from the first on.

  Returns:
    A matplotlib figure, 9 inches wide.

  Raises:
    InputError: inputs that are no images, no task with labels at the pixels, outputs of another shape.
  """
  images, labels = np.asarray(batch['inputs']), batch['labels']
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise InputError(
      f"predictions: batch['inputs'] have shape {list(images.shape)}, expected images [B, H, W, 1 or 3]."
    )
  check_names('outputs', outputs, labels, all_of=False)
  found = {}
  for task in outputs:
    y = np.asarray(labels[task])
    if y.shape[:3] == images.shape[:3]:
      mask = np.asarray((batch.get('mask') or {}).get(task, np.ones(len(images), bool)))
      mask = (
        np.broadcast_to(mask.reshape(mask.shape + (1,) * (3 - mask.ndim)), images.shape[:3]) if mask.ndim < 3 else mask
      )
      found[task] = _panels(task, y, np.asarray(outputs[task]), mask if mask.ndim == 3 else mask.any(-1))
  if not found:
    raise InputError(f'predictions: found labels of {sorted(outputs)}, expected a task with labels at the pixels.')
  rows = min(rows, len(images))
  figure, axes = _grid(rows, 1 + 2 * len(found), images.shape[1] / images.shape[2])
  for row in range(rows):
    panels = [('image', images[row].squeeze(-1) if images.shape[-1] == 1 else images[row].clip(0, 1))]
    for task, (label, prediction) in found.items():
      panels += [(f'{task}: label', label[row]), ('prediction', prediction[row])]
    for axis, (title, panel) in zip(axes[row], panels):
      axis.imshow(panel, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
      axis.set_xticks([])
      axis.set_yticks([])
      if row == 0:
        axis.set_title(title, fontsize=8)
  return figure


def _panels(task, y, z, mask):
  """Labels and predictions as pictures f[B, H, W, 3]."""
  whole = np.issubdtype(y.dtype, np.integer)
  if whole and z.shape[:-1] == y.shape:
    colours = _colours(z.shape[-1])
    label, prediction = colours[np.clip(y, 0, len(colours) - 1)], colours[z.argmax(-1)]
  elif z.shape != y.shape or y.ndim not in (3, 4) or (y.ndim == 4 and y.shape[-1] not in (1, 3)):
    raise InputError(f'outputs[{task!r}]: found shape {list(z.shape)}, expected {list(y.shape)}, or logits of classes.')
  elif whole:
    label, prediction = _grey(1 - y), _grey(1 / (1 + np.exp(z.astype(float))))
  elif y.ndim == 4 and y.shape[-1] == 3:
    label, prediction = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) / 2 + 0.5 for x in (y, z))
  else:
    y, z = (x.reshape(mask.shape) for x in (y, z))
    known = np.where(mask, y, np.nan)
    empty = ~mask.any((1, 2), keepdims=True)
    low, high = (
      np.where(empty, 0, f(np.where(empty, 0, known), axis=(1, 2), keepdims=True)) for f in (np.nanmin, np.nanmax)
    )
    label, prediction = (_scaled((x - low) / np.where(high > low, high - low, 1)) for x in (y, z))
  return np.where(mask[..., None], label, VOID), prediction


def _colours(count):
  from matplotlib import colormaps

  table = colormaps['tab20'] if count <= 20 else colormaps['nipy_spectral'].resampled(count)
  return np.array([table(i)[:3] for i in range(count)])


def _scaled(x):
  from matplotlib import colormaps

  return colormaps['viridis'](np.clip(x, 0, 1))[..., :3]


def _grey(x):
  return np.repeat(np.asarray(x, float)[..., None], 3, axis=-1)


def _grid(rows, columns, ratio):
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 9 / columns * ratio * rows + 0.35), layout='constrained')
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  return figure, figure.subplots(rows, columns, squeeze=False)
