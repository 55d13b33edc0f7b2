"""Augmentation: what a pixel shows and what its label says move together; numbers against scikit-image and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color, transform

from mtljax import data
from mtljax.base import InputError
from mtljax.data.transforms import colour, image

B, H, W = 6, 8, 10
KEY = jax.random.key(3)
GEOMETRIC = {
  'flip': image.flip(),
  'random_crop': image.random_crop((5, 7)),
  'pad_and_crop': image.pad_and_crop(2),
  'all': [image.pad_and_crop(1), image.flip(0.7), image.random_crop((6, 6))],
}


def places():
  """Images whose pixels say where they are from, counted from 1, and labels that say the same."""
  rows, columns, number = np.meshgrid(np.arange(1, H + 1), np.arange(1, W + 1), np.arange(1, B + 1), indexing='ij')
  grid = np.stack([number, rows, columns], axis=-1).transpose(2, 0, 1, 3)
  return grid.astype(np.float32), (grid @ [10_000, 100, 1]).astype(np.int32)


def single(**extra):
  x, y = places()
  known = (y + np.arange(B)[:, None, None]) % 3 > 0
  labels = {'where': y, 'depth': y[..., None].astype(np.float32), 'whole': np.arange(B), **extra}
  return {'inputs': x, 'labels': labels, 'mask': {'where': known, 'whole': np.arange(B) % 2 == 0}}


def run(steps, batch, key=KEY, **options):
  steps = steps if isinstance(steps, list) else [steps]
  options = {'maps': ('where', 'depth'), **options}
  return jax.tree.map(np.asarray, jax.jit(image.augment(*steps, **options))(key, batch))


def number(x):
  return np.asarray(x @ np.array([10_000, 100, 1], np.float32)).astype(int)


@pytest.mark.parametrize('name', GEOMETRIC)
def test_labels_and_masks_of_all_tasks_move_with_the_image(name):
  batch = single()
  out = run(GEOMETRIC[name], batch)
  y = number(out['inputs'])
  np.testing.assert_array_equal(out['labels']['where'], y)
  np.testing.assert_array_equal(out['labels']['depth'][..., 0], y)
  known = np.where(y > 0, (y + np.arange(B)[:, None, None]) % 3 > 0, False)
  np.testing.assert_array_equal(out['mask']['where'], known)
  np.testing.assert_array_equal(out['labels']['whole'], batch['labels']['whole'])
  np.testing.assert_array_equal(out['mask']['whole'], batch['mask']['whole'])
  assert out['labels']['where'].dtype == np.int32 and out['mask']['where'].dtype == bool
  assert not np.array_equal(out['inputs'], batch['inputs'])


@pytest.mark.parametrize('name', GEOMETRIC)
def test_an_image_of_its_own_for_every_task(name):
  x, y = places()
  known = y % 3 > 0
  batch = {
    'where': {'inputs': x, 'labels': y, 'mask': known},
    'depth': {'inputs': x + 0, 'labels': y.astype(np.float32)},
    'words': {'inputs': np.arange(B), 'labels': np.arange(B)},
    'outer': 7,
  }
  out = run(GEOMETRIC[name], batch, tasks=('where', 'depth'))
  assert out['outer'] == 7
  np.testing.assert_array_equal(out['words']['inputs'], np.arange(B))
  shown = {task: number(out[task]['inputs']) for task in ('where', 'depth')}
  for task, pixels in shown.items():
    np.testing.assert_array_equal(out[task]['labels'], pixels)
  np.testing.assert_array_equal(out['where']['mask'], (shown['where'] > 0) & (shown['where'] % 3 > 0))
  assert not np.array_equal(shown['where'], shown['depth'])  # each has draws of its own
  alone = run(GEOMETRIC[name], {'depth': batch['depth']})
  np.testing.assert_array_equal(alone['depth']['inputs'], out['depth']['inputs'])


def test_a_mask_of_rows_becomes_one_of_pixels_where_images_are_padded():
  x, y = places()
  rows = np.arange(B) > 1
  out = run(image.pad_and_crop(2), {'inputs': x, 'labels': {'where': y}, 'mask': {'where': rows}})
  np.testing.assert_array_equal(out['mask']['where'], (out['inputs'][..., 0] > 0) & rows[:, None, None])
  assert (out['inputs'][..., 0] == 0).any()
  moved = run(image.flip(), {'inputs': x, 'labels': {'where': y}, 'mask': {'where': rows}})
  np.testing.assert_array_equal(moved['mask']['where'], rows)


def test_flips_by_probability_and_normals_turn():
  x, _ = places()
  normals = np.random.default_rng(0).normal(size=(B, H, W, 3)).astype(np.float32)
  batch = {'inputs': x, 'labels': {'normals': normals}}
  maps = {'normals': 'normals'}
  np.testing.assert_array_equal(run(image.flip(0), batch, maps=maps)['labels']['normals'], normals)
  out = run(image.flip(1), batch, maps=maps)
  np.testing.assert_array_equal(out['inputs'], x[:, :, ::-1])
  np.testing.assert_array_equal(out['labels']['normals'], normals[:, :, ::-1] * [-1, 1, 1])
  many = {'inputs': np.arange(2.0, dtype=np.float32).reshape(1, 1, 2, 1).repeat(4000, 0), 'labels': {}}
  flipped = run(image.flip(0.3), many)['inputs'][:, 0, 0, 0] == 1
  assert abs(flipped.mean() - 0.3) < 0.03


def test_crops_reach_every_corner_and_shifts_every_distance():
  x, _ = places()
  many = {'inputs': np.repeat(x[:1], 2000, axis=0), 'labels': {}}
  corners = run(image.random_crop((H - 1, W - 2)), many)['inputs'][:, 0, 0, 1:]
  counts = np.unique(corners, axis=0, return_counts=True)[1]
  assert len(counts) == 2 * 3 and counts.min() > 2000 / 6 * 0.8
  shifts = run(image.pad_and_crop(1), many)['inputs'][:, 3, 3, 1:] - [4, 4]
  assert sorted(map(tuple, np.unique(shifts, axis=0))) == [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def test_enlarged_as_by_scikit_image():
  """A ramp tells scale and corner of the window; scikit-image enlarges a picture by them."""
  ramp = places()[0][..., 1:] - 1
  picture = np.random.default_rng(1).random((B, H, W, 3)).astype(np.float32)
  batch = {
    'inputs': np.concatenate([ramp, picture], axis=-1),
    'labels': {
      'where': places()[1],
      'depth': np.full((B, H, W), 6.0, np.float32),
      'disparity': np.full((B, H, W), 6.0, np.float32),
    },
  }
  maps = {'where': 'labels', 'depth': 'depth', 'disparity': 'inverse_depth'}
  out = run(image.random_scale(1.2, 2.0), batch, maps=maps)
  rows, columns = out['inputs'][..., 0], out['inputs'][..., 1]
  scale = 1 / (rows[:, 4, 4] - rows[:, 3, 4])
  assert scale.min() >= 1.2 - 1e-4 and scale.max() <= 2.0 + 1e-4 and np.ptp(scale) > 0.1
  for i in range(B):
    top, left = (v[i, 4, 4] - 4 / scale[i] for v in (rows, columns))  # centre of the first pixel
    matrix = np.array([[1 / scale[i], 0, left], [0, 1 / scale[i], top], [0, 0, 1]])
    expected = transform.warp(picture[i], matrix, order=1, mode='edge')
    np.testing.assert_allclose(out['inputs'][i, ..., 2:], expected, atol=2e-4)
    y = out['labels']['where'][i] % 10_000
    for place, shown in ((rows[i], y // 100 - 1), (columns[i], y % 100 - 1)):
      sure = np.abs((place + 0.5) % 1 - 0.5) < 0.499  # not between two pixels
      assert sure.mean() > 0.8
      np.testing.assert_array_equal(shown[sure], np.floor(place + 0.5)[sure])
  np.testing.assert_allclose(out['labels']['depth'], np.broadcast_to((6 / scale)[:, None, None], (B, H, W)), rtol=1e-4)
  np.testing.assert_allclose(out['labels']['disparity'][:, 0, 0], 6 * scale, rtol=1e-4)


PICTURES = (0.2 + 0.3 * np.random.default_rng(2).random((B, H, W, 3))).astype(np.float32)


def jittered(step, images=PICTURES):
  return run(step, {'inputs': images, 'labels': {}})['inputs']


def test_brightness_is_a_factor_of_each_image():
  out = jittered(image.brightness(0.5))
  factor = out[:, :1, :1, :1] / PICTURES[:, :1, :1, :1]
  np.testing.assert_allclose(out, factor * PICTURES, rtol=1e-5)
  assert np.ptp(factor) > 0.2 and factor.min() >= 0.5 and factor.max() <= 1.5
  bright = jittered(image.brightness(3.0), np.full((400, 2, 2, 1), 0.5, np.float32))
  assert bright.min() >= 0 and bright.max() == 1 and (bright < 0.5).any()


def test_contrast_keeps_the_mean_grey_and_saturation_the_grey_of_each_pixel():
  grey = lambda x: x @ np.array(colour.BT601)
  out = jittered(image.contrast(0.4))
  mean = grey(PICTURES).mean((1, 2))[:, None, None, None]
  factor = ((out - mean) / (PICTURES - mean))[:, 0, 0, 0]
  np.testing.assert_allclose(out, mean + factor[:, None, None, None] * (PICTURES - mean), atol=1e-5)
  assert np.ptp(factor) > 0.1 and factor.min() >= 0.6 - 1e-3 and factor.max() <= 1.4 + 1e-3
  out = jittered(image.saturation(0.4))
  np.testing.assert_allclose(grey(out), grey(PICTURES), atol=1e-5)
  ratio = np.ptp(out, axis=-1) / np.ptp(PICTURES, axis=-1)
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-2)
  assert np.ptp(ratio[:, 0, 0]) > 0.1
  one = jittered(image.contrast(0.4), PICTURES[..., :1])
  np.testing.assert_allclose(one.mean((1, 2, 3)), PICTURES[..., 0].mean((1, 2)), atol=1e-5)


def test_hue_turns_and_keeps_the_rest():
  out = jittered(image.hue(0.2))
  before, after = color.rgb2hsv(PICTURES), color.rgb2hsv(out)
  np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=1e-4)
  turn = (after[..., 0] - before[..., 0] + 0.5) % 1 - 0.5
  np.testing.assert_allclose(turn, np.broadcast_to(turn[:, :1, :1], turn.shape), atol=1e-3)
  assert np.abs(turn).max() <= 0.2 + 1e-3 and np.ptp(turn[:, 0, 0]) > 0.1


def test_functions_of_images_alone():
  steps = [image.on_images(colour.rgb_to_ycbcr), image.on_images(lambda x: image.normalise(x, (0.5,) * 3, (0.1, 1, 2)))]
  expected = (color.rgb2ycbcr(PICTURES) / 255 - 0.5) / [0.1, 1, 2]
  np.testing.assert_allclose(jittered(steps), expected, atol=2e-5)


def test_batches_are_transformed_by_seed_and_step_and_evaluation_is_not():
  steps = (image.flip(), image.random_crop((5, 5)), image.brightness(0.1))
  examples = single()
  train = data.Batches(examples, 3, transform=image.augment(*steps, maps=('where', 'depth')))
  a, b, c = train(0, 0), train(0, 0), train(1, 0)
  assert a['inputs'].shape == (3, 5, 5, 3) and a['labels']['where'].shape == (3, 5, 5)
  np.testing.assert_array_equal(a['inputs'], b['inputs'])
  assert not np.array_equal(a['inputs'], c['inputs'])
  alone = train.select(['where'])(0, 0)
  np.testing.assert_array_equal(alone['labels']['where'], a['labels']['where'])
  np.testing.assert_array_equal(data.eval_batches(examples, B)[0]['inputs'], examples['inputs'])


BAD = {
  'kind': (lambda: image.augment(maps={'a': 'angles'}), r"augment maps\['a'\]: found 'angles', expected one of"),
  'step': (lambda: image.augment(3), 'augment steps: found 3, expected a function'),
  'missing': (lambda: run(image.flip(), single(), maps=('depth',)), r"expected 'where' among the maps"),
  'size': (
    lambda: run(image.flip(), single(where=np.zeros((B, 4, 4), int))),
    rf"labels of 'where' have shape \[6, 4, 4\], expected \[{B}, {H}, {W}\]",
  ),
  'normals': (
    lambda: run(image.flip(), single(), maps={'where': 'normals', 'depth': 'depth'}),
    rf"labels of 'where' have shape .* expected \[{B}, {H}, {W}, 3\]",
  ),
  'uint8': (
    lambda: run(image.flip(), {**single(), 'inputs': np.zeros((B, H, W, 3), np.uint8)}),
    r"augment: batch\['inputs'\] is uint8\[6, 8, 10, 3\], expected images",
  ),
  'words': (
    lambda: run(image.flip(), {'a': {'inputs': np.arange(3), 'labels': np.arange(3)}}),
    r"augment: batch\['a'\]\['inputs'\] is int\d+\[3\], expected images",
  ),
  'crop': (
    lambda: run(image.random_crop((9, 3)), single()),
    r'random_crop size: found \(9, 3\), expected at most \(8, 10\)',
  ),
  'crop 3': (lambda: image.random_crop((1, 2, 3)), r'random_crop size: found \(1, 2, 3\), expected \(height, width\)'),
  'pad': (lambda: image.pad_and_crop(0), 'pad_and_crop pad: found 0, expected a whole number >= 1'),
  'probability': (lambda: image.flip(1.5), r'flip probability: found 1.5, expected a number in 0..1'),
  'scale': (lambda: image.random_scale(0.5), r'random_scale low: found 0.5, expected a number in 1..1.5'),
  'hue': (lambda: image.hue(0.7), r'hue amount: found 0.7, expected a number in 0..0.5'),
  'amount': (lambda: image.brightness(-1), 'brightness amount: found -1'),
  'function': (lambda: image.on_images(1), 'on_images: found 1'),
  'std': (
    lambda: image.normalise(jnp.ones((2, 3)), (0, 0, 0), (1, 0, 1)),
    r'normalise: found mean .* expected 3 numbers each',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name):
  call, message = BAD[name]
  with pytest.raises(InputError, match=message):
    call()
