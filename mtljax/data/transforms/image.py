"""Augmentation of images together with labels at their pixels: pure, keyed, in the compiled step.

`augment(*steps, maps=...)` is the `transform` of `data.Batches`. A step is a function `(key, images, maps) -> (images,
maps)` of a whole batch that draws for every example on its own; one of your own goes between those that are here. For
colour spaces see `transforms.colour`.

>>> transform = augment(flip(), pad_and_crop(2), brightness(0.2), maps=('segmentation',))
>>> batch = {'inputs': jnp.ones((4, 8, 8, 3)), 'labels': {'segmentation': jnp.ones((4, 8, 8), int)}}
>>> out = jax.jit(transform)(jax.random.key(0), batch)
>>> out['inputs'].shape, out['labels']['segmentation'].shape, out['mask']['segmentation'].dtype
((4, 8, 8, 3), (4, 8, 8), dtype('bool'))

Evaluation batches are not transformed: what is to hold for them too (a mean taken off, a colour space) is applied to
them beforehand, and in training by `on_images` as the last step.
"""

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtljax.arrays import expand_to, name_key
from mtljax.base import Array, Batch, InputError
from mtljax.data.transforms import colour

KINDS = ('labels', 'depth', 'inverse_depth', 'normals')


class Map(NamedTuple):
  """Labels at the pixels of the images.

  Attributes:
    values: [B, H, W] or [B, H, W, D].
    mask: bool[B, H, W], [B] or of the values' shape, or None: all count.
    kind: 'labels' move; 'depth' is divided by the scale when the image is enlarged, 'inverse_depth' (disparity)
      multiplied; of 'normals' [B, H, W, 3] the first component, to the right, changes its sign in the mirror.
  """

  values: Array
  mask: Array | None = None
  kind: str = 'labels'

  def move(self, function: Callable[[Array], Array]) -> 'Map':
    """Moves values and mask alike."""
    mask = self.mask if self.mask is None or self.mask.ndim == 1 else function(self.mask)
    return self._replace(values=function(self.values), mask=mask)


Maps = dict[str, Map]
Step = Callable[[Array, Array, Maps], tuple[Array, Maps]]


def augment(
  *steps: Step, maps: Iterable[str] | Mapping[str, str] = (), tasks: Iterable[str] | None = None
) -> Callable[[Array, Batch], Batch]:
  """The steps one after another, as a function `(key, batch) -> batch` for `data.Batches(transform=...)`.

  Args:
    steps: `(key, images, maps) -> (images, maps)`.
    maps: names of the tasks whose labels are at the pixels, int or f[B, H, W] or [B, H, W, D]; they move with the
      image, their masks too. Or {task: kind}, a kind being one of `KINDS`; names alone are 'labels'. All other labels
      stay as they are. A task that a batch does not have (a single-task baseline) is passed over.
    tasks: multi-input only: those whose inputs are images, each with draws of its own; None means all.

  Returns:
    A pure function of a batch whose inputs are f[B, H, W, C], single-input or multi-input.

  Raises:
    InputError: a kind that there is none of, a step that cannot be called; while tracing, inputs that are no images, a
      map of another size, and labels of the images' size that are not among the maps.
  """
  names = [maps] if isinstance(maps, str) else maps
  kinds = dict(maps) if isinstance(maps, Mapping) else dict.fromkeys(names, 'labels')
  tasks = None if tasks is None else frozenset([tasks] if isinstance(tasks, str) else tasks)
  for task, kind in kinds.items():
    if kind not in KINDS:
      raise InputError(f'augment maps[{task!r}]: found {kind!r}, expected one of {KINDS}.')
  for step in steps:
    if not callable(step):
      raise InputError(f'augment steps: found {step!r}, expected a function (key, images, maps) -> (images, maps).')

  def moved(key, images, labels, masks, where):
    _check_maps(images, labels, kinds, where)
    moving = {task: Map(y, masks.get(task), kinds[task]) for task, y in labels.items() if task in kinds}
    for place, step in enumerate(steps):
      images, moving = step(jax.random.fold_in(key, place), images, moving)
    masks = {**masks, **{task: part.mask for task, part in moving.items() if part.mask is not None}}
    return images, {**labels, **{task: part.values for task, part in moving.items()}}, masks

  def transform(key, batch):
    if 'inputs' in batch:
      masks = batch.get('mask') or {}
      images, labels, masks = moved(key, batch['inputs'], batch['labels'], masks, "batch['inputs']")
      return {**batch, 'inputs': images, 'labels': labels} | ({'mask': masks} if masks else {})
    out = dict(batch)
    for task in batch:
      if task == 'outer' or (tasks is not None and task not in tasks):
        continue
      part, masks = batch[task], {} if batch[task].get('mask') is None else {task: batch[task]['mask']}
      where = f"batch[{task!r}]['inputs']"
      of_task = name_key(key, task)
      images, labels, masks = moved(of_task, part['inputs'], {task: part['labels']}, masks, where)
      out[task] = {**part, 'inputs': images, 'labels': labels[task]} | ({'mask': masks[task]} if masks else {})
    return out

  return transform


def _check_maps(images: Array, labels: Mapping[str, Array], kinds: Mapping[str, str], where: str) -> None:
  if getattr(images, 'ndim', 0) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    found = f'{images.dtype}{list(images.shape)}' if hasattr(images, 'dtype') else type(images).__name__
    raise InputError(f'augment: {where} is {found}, expected images f[B, H, W, C].')
  size = images.shape[:3]
  for task, y in labels.items():
    shape = getattr(y, 'shape', ())
    if len(shape) >= 3 and shape[:3] == size and task not in kinds:
      raise InputError(
        f'augment maps: found {sorted(kinds)}, but labels of {task!r} are {list(shape)}, at the pixels of images '
        f'{list(images.shape)}: expected {task!r} among the maps.'
      )
    normals = kinds.get(task) == 'normals'
    if task in kinds and (shape[:3] != size or len(shape) > 4 or (normals and shape[3:] != (3,))):
      expected = [*size, 3] if normals else [*size]
      raise InputError(f'augment maps: labels of {task!r} have shape {list(shape)}, expected {expected}.')


def flip(probability: float = 0.5) -> Step:
  """Mirrors left and right, each example with the probability; normals point the other way."""
  _check('flip', 'probability', probability, 0, 1)

  def step(key, images, maps):
    chosen = jax.random.bernoulli(key, float(probability), images.shape[:1])
    mirrored = lambda x: jnp.where(expand_to(chosen, x.ndim), x[:, :, ::-1], x)
    maps = {task: part.move(mirrored) for task, part in maps.items()}
    for task, part in maps.items():
      if part.kind == 'normals':
        sign = jnp.where(chosen[:, None] & (jnp.arange(3) == 0)[None], -1, 1).astype(part.values.dtype)
        maps[task] = part._replace(values=part.values * sign[:, None, None])
    return mirrored(images), maps

  return step


def random_crop(size: Sequence[int]) -> Step:
  """A window (height, width) of every example, each at a place of its own."""
  size = tuple(_count('random_crop', 'size', n) for n in size)
  if len(size) != 2:
    raise InputError(f'random_crop size: found {size}, expected (height, width).')

  def step(key, images, maps):
    room = [n - wanted for n, wanted in zip(images.shape[1:3], size)]
    if min(room) < 0:
      raise InputError(f'random_crop size: found {size}, expected at most {images.shape[1:3]}, the size of the images.')
    corners = jax.random.randint(key, (len(images), 2), 0, jnp.array([room]) + 1)

    def crop(x):
      one = lambda x, corner: jax.lax.dynamic_slice(x, (*corner, *[0] * (x.ndim - 2)), (*size, *x.shape[2:]))
      return jax.vmap(one)(x, corners)

    return crop(images), {task: part.move(crop) for task, part in maps.items()}

  return step


def pad_and_crop(pad: int) -> Step:
  """Moves every example by up to `pad` pixels in each direction: zeros on each side, then a window of the old size.

  Where a map has been padded its mask is False, so nothing is learned there.
  """
  pad = _count('pad_and_crop', 'pad', pad)

  def padded(x):
    return jnp.pad(x, [(0, 0), (pad, pad), (pad, pad), *[(0, 0)] * (x.ndim - 3)])

  def step(key, images, maps):
    maps = {task: part._replace(mask=_pixel_mask(part)).move(padded) for task, part in maps.items()}
    return random_crop(images.shape[1:3])(key, padded(images), maps)

  return step


def random_scale(low: float = 1.0, high: float = 1.5) -> Step:
  """Enlarges a window of every example to the old size: the window is smaller by a factor drawn from low..high.

  Images are interpolated linearly, maps take the nearest pixel. Depth is divided by the factor, inverse depth
  multiplied: the camera has come nearer. The papers' NYUv2 recipe draws from 1, 1.2 and 1.5 (Liu, Johns & Davison,
  End-to-End Multi-Task Learning with Attention (MTAN, CVPR 2019),
  https://arxiv.org/abs/1803.10704).
  """
  _check('random_scale', 'low', low, 1, high)
  _check('random_scale', 'high', high, low, 1e3)

  def step(key, images, maps):
    of_scale, of_corner = jax.random.split(key)
    scale = jax.random.uniform(of_scale, images.shape[:1], images.dtype, low, high)
    room = jnp.array(images.shape[1:3], images.dtype)[None] * (1 - 1 / scale)[:, None]
    corner = jax.random.uniform(of_corner, (len(images), 2), images.dtype) * room

    def enlarged(image, scale, corner):
      return jax.image.scale_and_translate(
        image, image.shape, (0, 1), jnp.stack([scale, scale]), -corner * scale, 'linear', antialias=False
      )

    def nearest(x):
      rows, columns = (
        jnp.clip(corner[:, None, axis] + (jnp.arange(n)[None] + 0.5) / scale[:, None], 0, n - 0.5).astype(jnp.int32)
        for axis, n in enumerate(x.shape[1:3])
      )
      return jax.vmap(lambda x, row, column: x[row][:, column])(x, rows, columns)

    maps = {task: part.move(nearest) for task, part in maps.items()}
    for task, part in maps.items():
      if part.kind in ('depth', 'inverse_depth'):
        factor = expand_to(1 / scale if part.kind == 'depth' else scale, part.values.ndim)
        maps[task] = part._replace(values=part.values * factor.astype(part.values.dtype))
    return jax.vmap(enlarged)(images, scale, corner), maps

  return step


def brightness(amount: float) -> Step:
  """Multiplies every example by a factor from max(0, 1 - amount)..1 + amount and cuts to 0..1 (as torchvision)."""
  return _jitter('brightness', amount, lambda x: jnp.zeros_like(x))


def contrast(amount: float) -> Step:
  """Blends every example with its mean grey, f x + (1 - f) mean, f as in `brightness`, cut to 0..1 (as torchvision).

  The mean is that of the luma (BT.601), or of the pixels where there are not three channels.
  """
  return _jitter('contrast', amount, lambda x: _luma(x).mean((1, 2), keepdims=True))


def saturation(amount: float) -> Step:
  """Blends every pixel with its luma (BT.601), f as in `brightness`, cut to 0..1 (as torchvision)."""
  return _jitter('saturation', amount, _luma)


def hue(amount: float) -> Step:
  """Turns the hue of every example by -amount..amount of a full turn, at most 0.5 (as torchvision)."""
  _check('hue', 'amount', amount, 0, 0.5)

  def step(key, images, maps):
    turn = jax.random.uniform(key, images.shape[:1], images.dtype, -amount, amount)
    hsv = colour.rgb_to_hsv(images)
    return colour.hsv_to_rgb(hsv.at[..., 0].add(turn[:, None, None])), maps

  return step


def on_images(function: Callable[[Array], Array]) -> Step:
  """A function of the images alone, without chance: `colour.rgb_to_lab`, or `normalise` with its numbers."""
  if not callable(function):
    raise InputError(f'on_images: found {function!r}, expected a function images -> images.')
  return lambda key, images, maps: (function(images), maps)


def normalise(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
  """(images - mean) / std, channel by channel; f[..., C].

  >>> print(normalise(jnp.ones((1, 2)), mean=(0.5, 0.0), std=(0.5, 2.0)))
  [[1.  0.5]]

  Raises:
    InputError: another number of channels, a deviation that is not positive.
  """
  mean, std = np.array(mean, float), np.array(std, float)
  if not mean.shape == std.shape == jnp.shape(images)[-1:] or not (std > 0).all():
    raise InputError(
      f'normalise: found mean {mean.tolist()} and std {std.tolist()}, expected {jnp.shape(images)[-1]} numbers each, '
      'std > 0.'
    )
  images = jnp.asarray(images)
  shape = (1,) * (images.ndim - 1) + (-1,)
  return (images - jnp.asarray(mean, images.dtype).reshape(shape)) / jnp.asarray(std, images.dtype).reshape(shape)


def _jitter(name: str, amount: float, grey: Callable[[Array], Array]) -> Step:
  _check(name, 'amount', amount, 0, 1e3)

  def step(key, images, maps):
    factor = jax.random.uniform(key, images.shape[:1], images.dtype, max(0.0, 1 - amount), 1 + amount)
    factor = expand_to(factor, images.ndim)
    return jnp.clip(factor * images + (1 - factor) * grey(images), 0, 1), maps

  return step


def _luma(images: Array) -> Array:
  """f[B, H, W, 1]."""
  return colour.rgb_to_gray(images, colour.BT601) if images.shape[-1] == 3 else images.mean(-1, keepdims=True)


def _pixel_mask(part: Map) -> Array:
  """The mask, with an axis for every pixel."""
  mask = jnp.ones(part.values.shape[:3], bool) if part.mask is None else part.mask
  return jnp.broadcast_to(expand_to(mask, 3), part.values.shape[:3]) if mask.ndim < 3 else mask


def _check(name: str, argument: str, value: float, low: float, high: float) -> None:
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
    raise InputError(f'{name} {argument}: found {value!r}, expected a number in {low:g}..{high:g}.')


def _count(name: str, argument: str, value: int) -> int:
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
    raise InputError(f'{name} {argument}: found {value!r}, expected a whole number >= 1.')
  return int(value)
