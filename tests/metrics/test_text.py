import functools
import math

import jax
import jiwer
import numpy as np
import pytest
import sacrebleu

from mtljax import heads, losses, metrics
from mtljax.base import InputError, Task
from mtljax.data.transforms import text

REFERENCES = [
  'the cat sat on the mat',
  'two dogs play in the grass .',
  'a man rides a bike',
  'hello there',
  'a b c d e',
]
FOUND = ['the cat sat on mat', 'two dogs in the green grass .', 'a man rides a bike', 'hello', 'a b c d f']
TOKENS = text.words(REFERENCES + FOUND, pattern=text.BLANKS)
PREDICTIONS = text.pad([TOKENS.encode(s, eos=True) for s in FOUND], 9)['x']
LABELS = text.pad([TOKENS.encode(s, eos=True) for s in REFERENCES])
EXPECTED = {
  'wer': lambda y, x: jiwer.wer(y, x),
  'cer': lambda y, x: jiwer.cer(y, x),
  'bleu': lambda y, x: sacrebleu.corpus_bleu(x, [y]).score,
  'chrf': lambda y, x: sacrebleu.corpus_chrf(x, [y]).score,
}
ROWS = np.array([True, True, False, True, True])


@pytest.fixture(params=EXPECTED)
def name(request):
  return request.param


def kept(sentences):
  return [sentence for sentence, counts in zip(sentences, ROWS) if counts]


@pytest.mark.parametrize('mask', [ROWS, LABELS['mask'] & ROWS[:, None]])
def test_the_score_of_the_corpus_whatever_the_batches(name, mask):
  metric = getattr(metrics, name)(TOKENS.decode)
  expected = EXPECTED[name](kept(REFERENCES), kept(FOUND))
  assert expected not in (0, EXPECTED[name](REFERENCES, FOUND))
  for cuts in ([0, 5], [0, 2, 5], [0, 1, 2, 3, 4, 5]):
    parts = [metric.update(PREDICTIONS[a:b], LABELS['x'][a:b], mask[a:b]) for a, b in zip(cuts, cuts[1:])]
    assert metric.compute(functools.reduce(metric.merge, parts)) == expected
  assert metric.higher_is_better == (name in ('bleu', 'chrf'))


def test_symbols_and_lengths_of_ctc(name):
  metric = getattr(metrics, name)(TOKENS.decode)
  lengths = (PREDICTIONS > text.EOS).sum(axis=1)
  found = {'symbols': np.where(np.arange(9) < lengths[:, None], PREDICTIONS, 5), 'lengths': lengths}
  labels = np.where(LABELS['mask'], LABELS['x'], -1)
  assert metric.compute(metric.update(found, labels, None)) == EXPECTED[name](REFERENCES, FOUND)


def test_nothing_counts(name):
  metric = getattr(metrics, name)(TOKENS.decode)
  assert math.isnan(metric.compute(metric.update(PREDICTIONS, LABELS['x'], ~ROWS & ROWS)))


def test_options():
  def value(metric):
    return metric.compute(metric.update(PREDICTIONS, LABELS['x'], None))

  upper = lambda ids: TOKENS.decode(ids).upper() if ids[-1] == 0 else TOKENS.decode(ids)
  assert value(metrics.bleu(upper, lowercase=True)) == value(metrics.bleu(TOKENS.decode))
  assert value(metrics.bleu(upper)) < value(metrics.bleu(TOKENS.decode))
  assert (
    value(metrics.chrf(TOKENS.decode, word_order=2)) == sacrebleu.corpus_chrf(FOUND, [REFERENCES], word_order=2).score
  )
  with pytest.raises(InputError, match="bleu: tokenize is 'words', expected one of"):
    value(metrics.bleu(TOKENS.decode, tokenize='words'))


def test_in_an_evaluation():
  """A task with `decode`, whose predictions are made outside of jit."""
  from mtljax import evaluate, sharing

  logits = np.zeros((2, 4, TOKENS.size), np.float32)
  found = [[4, 4, 0, 5], [6, 0, 0, 0]]
  for row, frames in enumerate(found):
    logits[row, np.arange(4), frames] = 9
  module = (lambda key, x: {'w': np.ones((), np.float32)}, lambda params, x: x * params['w'])
  head = (lambda key, x: {'w': np.ones((), np.float32)}, lambda p, x: {'logits': x * p['w'], 'mask': x[..., 0] < 99})
  model = sharing.hard(module, {'words': head})
  task = Task('words', losses.ctc, metrics={'wer': metrics.wer(TOKENS.decode)}, decode=heads.ctc_decode)
  labels = np.array([[4, 5, 0], [6, 7, 7]])
  params, state = model.init(jax.random.key(0), {'words': logits})
  batch = {'inputs': logits, 'labels': {'words': labels}}
  assert evaluate.evaluate(model, (task,), params, state, [batch, batch])['words']['wer'] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
  ('predictions', 'labels', 'mask', 'message'),
  [
    (PREDICTIONS.astype(float), LABELS['x'], None, r'predictions are float64\[5, 9\], expected integers \[5, L\]'),
    (PREDICTIONS[:2], LABELS['x'], None, 'predictions are int32'),
    ({'tokens': PREDICTIONS}, LABELS['x'], None, r"predictions are \['tokens'\]"),
    (PREDICTIONS, LABELS['x'][0], None, r'labels are int32\[8\], expected integers \[B, L\]'),
    (PREDICTIONS, LABELS['x'], ROWS[:2], r'mask has shape \(2,\)'),
  ],
)
def test_refuses(predictions, labels, mask, message):
  with pytest.raises(InputError, match=f'wer: {message}'):
    metrics.wer(TOKENS.decode).update(predictions, labels, mask)


def test_refuses_to_be_traced():
  with pytest.raises(InputError, match='bleu: reads predictions outside of jit, expected a task with `decode`'):
    jax.jit(metrics.bleu(TOKENS.decode).update)(PREDICTIONS, LABELS['x'], ROWS)
  with pytest.raises(InputError, match='to_text is None'):
    metrics.cer(None)
