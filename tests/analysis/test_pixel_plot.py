"""Figures of predictions at the pixels: what each panel shows, and what is refused."""

import numpy as np
import pytest

from mtljax.analysis import plots
from mtljax.analysis.pixel_plot import VOID, predictions
from mtljax.base import InputError

B, H, W = 3, 6, 8
RANDOM = np.random.default_rng(0)
CLASSES = RANDOM.integers(0, 5, (B, H, W))
KNOWN = RANDOM.random((B, H, W)) < 0.8
EDGES = RANDOM.integers(0, 2, (B, H, W))
DEPTH = RANDOM.random((B, H, W)).astype(np.float32) * 4 + 1
NORMALS = RANDOM.normal(size=(B, H, W, 3)).astype(np.float32)
BATCH = {
  'inputs': RANDOM.random((B, H, W, 3)).astype(np.float32),
  'labels': {'segmentation': CLASSES, 'boundary': EDGES, 'depth': DEPTH, 'normals': NORMALS, 'presence': EDGES[:, 0]},
  'mask': {'segmentation': KNOWN, 'boundary': np.array([True, False, True]), 'depth': KNOWN},
}
OUTPUTS = {
  'segmentation': np.eye(5, dtype=np.float32)[CLASSES[::-1]],
  'boundary': np.where(EDGES, 50.0, -50.0),
  'depth': DEPTH + 0.5,
  'normals': 7 * NORMALS,
  'presence': np.zeros((B, W)),
}


def panels(figure, rows):
  grid = np.array(figure.axes).reshape(rows, -1)
  return [[np.asarray(axis.images[0].get_array()) for axis in row] for row in grid], grid


def test_every_panel_shows_what_its_title_says(tmp_path):
  figure = predictions(BATCH, OUTPUTS, rows=2)
  shown, grid = panels(figure, 2)
  titles = [axis.get_title() for axis in grid[0]]
  tasks = ['segmentation', 'boundary', 'depth', 'normals']  # presence has no pixels
  assert titles == ['image', *[title for task in tasks for title in (f'{task}: label', 'prediction')]]
  for row in range(2):
    image, classes, found, edges, certain, depth, deeper, normals, turned = shown[row]
    np.testing.assert_array_equal(image, BATCH['inputs'][row])
    assert (classes[~KNOWN[row]] == VOID).all()
    colour = {c: found[CLASSES[::-1][row] == c] for c in range(5)}
    for c, pixels in colour.items():
      assert len(np.unique(pixels, axis=0)) == 1
      assert (classes[KNOWN[row] & (CLASSES[row] == c)] == pixels[0]).all()
    assert len({tuple(pixels[0]) for pixels in colour.values()}) == 5
    np.testing.assert_allclose(certain[..., 0], 1 - EDGES[row], atol=1e-9)
    expected = certain if row == 0 else np.broadcast_to(VOID, certain.shape)
    np.testing.assert_allclose(edges, expected, atol=1e-9)
    assert (depth[~KNOWN[row]] == VOID).all() and not np.allclose(depth, deeper)
    np.testing.assert_allclose(normals, turned, atol=1e-6)
    np.testing.assert_allclose(
      2 * normals - 1, NORMALS[row] / np.linalg.norm(NORMALS[row], axis=-1, keepdims=True), atol=1e-6
    )
  assert figure.get_size_inches()[0] == 9 and plots.save(figure, tmp_path / 'x.png').stat().st_size > 1000


def test_depth_has_one_scale_for_label_and_prediction():
  outputs = {'depth': DEPTH[..., None]}
  batch = {'inputs': BATCH['inputs'], 'labels': {'depth': DEPTH[..., None]}, 'mask': {'depth': np.zeros(B, bool)}}
  shown, _ = panels(predictions(batch, outputs), B)
  assert (shown[0][1] == VOID).all()  # nothing is known, nothing fails
  shown, _ = panels(predictions({**batch, 'mask': {}}, outputs), B)
  np.testing.assert_array_equal(shown[1][1], shown[1][2])


BAD = {
  'images': (lambda: predictions({**BATCH, 'inputs': CLASSES}, OUTPUTS), r'have shape \[3, 6, 8\], expected images'),
  'unknown': (lambda: predictions(BATCH, {'colour': DEPTH}), r"outputs: .*unknown \['colour'\]"),
  'nothing': (lambda: predictions(BATCH, {'presence': DEPTH}), r"found labels of \['presence'\], expected a task with"),
  'shape': (
    lambda: predictions(BATCH, {'depth': DEPTH[:, 1:]}),
    r"outputs\['depth'\]: found shape \[3, 5, 8\], expected",
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  call, message = BAD[name]
  with pytest.raises(InputError, match=message):
    call()
