"""Saving again and again keeps nothing."""

import gc
import sys

import jax.numpy as jnp
import pytest
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


@pytest.mark.parametrize('name', ['run', "it's", 'a "b" (c)', 'é', 'x' * 99, 'a\nb'], ids=range(6))
def test_what_a_folder_is_called(tmp_path, name):
  checkpoint.Checkpoints(tmp_path).close()
  told = {'driver': 'file', 'path': f'{tmp_path}/{name}/'}
  spec = tensorstore.KvStore.Spec(told)
  assert spec.to_json() == told and spec.to_json(include_defaults=True) != told
  base = {'driver': 'file', 'path': f'/{name}/', 'file_io_locking': {'mode': 'non_atomic'}}
  told = {'driver': 'ocdbt', 'base': base, 'path': f'{name}/', 'cache_pool': 'cache_pool#x'}
  assert tensorstore.KvStore.Spec(told).to_json() == told


@pytest.mark.parametrize('name', ['é', 'a b', "it's"], ids=['accent', 'space', 'quote'])
def test_a_save_into_such_a_folder(tmp_path, name):
  checkpoints = checkpoint.Checkpoints(tmp_path / name)
  checkpoints.save(1, {'w': jnp.ones(3)})
  checkpoints.close()
  restored, _, step = checkpoint.restore_latest(tmp_path / name, {'w': jnp.zeros(3)})
  assert step == 1 and restored['w'].tolist() == [1, 1, 1]
