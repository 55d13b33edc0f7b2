"""Saving again and again keeps nothing."""

import gc
import sys

import jax.numpy as jnp
import tensorstore

from mtljax import checkpoint

LEAVES = 24


def test_a_save_keeps_nothing(tmp_path):
  """Or a few blocks: without `_leaks` it keeps 360, of which are objects as many as leaves."""
  state = {f'w{i}': jnp.ones((2, 2)) for i in range(LEAVES)}
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  found = []
  for step in range(1, 25):
    checkpoints.save(step, state, {'seconds': 1.0}, score=1.0)
    if step in (4, 12, 24):
      checkpoints.wait()
      gc.collect()
      found.append((sys.getallocatedblocks(), len(gc.get_objects())))
  checkpoints.close()
  blocks, objects = ((b - a) / 12 for a, b in zip(*found[1:]))
  assert blocks < 4 * LEAVES and objects < LEAVES / 2, (blocks, objects)


def test_what_a_folder_is_called_is_told_again(tmp_path):
  checkpoint.Checkpoints(tmp_path).close()
  told = {'driver': 'file', 'path': f'{tmp_path}/'}
  spec, other = tensorstore.KvStore.Spec(told), tensorstore.KvStore.Spec({'driver': 'memory', 'path': 'a/'})
  answer = spec.to_json()
  assert answer == told
  answer['path'] = 'changed by who asked'
  assert spec.to_json() == told
  assert other.to_json() == {'driver': 'memory', 'path': 'a/'} and spec.to_json(include_defaults=True) != told
