"""Batches of like length: nothing is cut that counts, every example comes, the shapes are few."""

import jax
import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import Batches, Buckets, quantiles

LENGTHS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3])
MASK = np.arange(10)[None] < LENGTHS[:, None]
TOKENS = np.where(MASK, 100 * np.arange(12)[:, None] + np.arange(10)[None], 0)
EXAMPLES = {
  'inputs': {'x': TOKENS, 'mask': MASK},
  'labels': {'tag': TOKENS, 'class': np.arange(12), 'wide': np.ones((12, 10))},
  'mask': {'tag': MASK},
}
LEAVES = 'inputs/.*|labels/tag|mask/tag'


def batches(**options):
  return Batches(EXAMPLES, 3, buckets=Buckets(LENGTHS, (4, 7, 10), LEAVES), **options)


def test_batches_are_cut_to_the_bucket_and_lose_nothing():
  train = batches()
  assert train.steps_per_epoch == 2 + 1 + 1
  for step in range(12):
    rows, batch = train.indices(0, step), train(0, step)
    length = batch['inputs']['x'].shape[1]
    assert length in (4, 7, 10) and LENGTHS[rows].max() <= length
    if length > 4:
      assert LENGTHS[rows].max() > {7: 4, 10: 7}[length]
    np.testing.assert_array_equal(batch['inputs']['x'], TOKENS[rows][:, :length])
    np.testing.assert_array_equal(batch['labels']['tag'], TOKENS[rows][:, :length])
    assert batch['mask']['tag'].sum() == LENGTHS[rows].sum()
    np.testing.assert_array_equal(batch['labels']['class'], rows)
    assert batch['labels']['wide'].shape == (3, 10)  # not named, so not cut


def test_an_epoch_has_every_example_at_most_once_and_later_ones_the_rest():
  train = batches()
  epochs = [np.concatenate([train.indices(0, 4 * e + i) for i in range(4)]) for e in range(6)]
  assert all(len(set(epoch)) == 12 for epoch in epochs)
  assert not np.array_equal(epochs[0], epochs[1])


def test_seeds_share_the_lengths_and_not_the_rows():
  train = batches()
  for step in range(8):
    one, two = train.draw(0, step), train.draw(1, step)
    assert one.places[''].shape == two.places[''].shape
  assert any(not np.array_equal(train.indices(0, s), train.indices(1, s)) for s in range(8))


def test_one_trace_for_every_length():
  train, traces = batches(), []

  @jax.jit
  def gather(examples, draw):
    traces.append(draw.places[''].shape)
    return train.gather(examples, draw)

  for step in range(12):
    gather(train.examples, train.draw(0, step))
  assert sorted(traces) == [(4,), (7,), (10,)]
  assert train.example()['inputs']['x'].shape == (3, 10)


def test_small_buckets_are_joined():
  assert [(n, rows.tolist()) for n, rows in Buckets(np.array([1, 9, 2, 5]), (3, 6, 9)).of_size(2)] == [
    (3, [0, 2]),
    (9, [1, 3]),
  ]
  assert [(n, rows.tolist()) for n, rows in Buckets(np.array([1, 9, 2, 1]), (3, 6, 12)).of_size(2)] == [
    (12, [0, 1, 2, 3])
  ]


def test_tasks_of_a_multi_input_batch():
  data = {'text': {'inputs': TOKENS, 'labels': TOKENS}, 'image': {'inputs': np.ones((4, 8)), 'labels': np.arange(4)}}
  train = Batches(data, 2, buckets={'text': Buckets(LENGTHS, (4, 10), 'inputs|labels')})
  shapes = {train(0, step)['text']['inputs'].shape for step in range(6)}
  assert shapes == {(2, 4), (2, 10)} and train(0, 0)['image']['inputs'].shape == (2, 8)
  assert train.select('image')(0, 0)['image']['inputs'].shape == (2, 8)


def test_quantiles():
  assert quantiles(LENGTHS, 2) == (4, 10) and quantiles(np.array([0, 0, 4]), 3) == (4,)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: Buckets(np.array([1, 11]), (4, 10)), 'example 1 has length 11, expected at most 10'),
    (lambda: Buckets(np.array([1.0]), (4,)), 'lengths are float64'),
    (lambda: Buckets(LENGTHS, (10, 4)), 'expected rising'),
    (lambda: Buckets(LENGTHS, (10,), '('), 'regular expression'),
    (lambda: Batches(EXAMPLES, 3, buckets=Buckets(LENGTHS[:5], (10,))), 'found 5 lengths, expected 12'),
    (lambda: Batches(EXAMPLES, 3, buckets={'a': Buckets(LENGTHS, (10,))}), r"unknown \['a'\]"),
    (lambda: quantiles(LENGTHS, 0), 'count is 0'),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(InputError, match=message):
    call()
