"""What decoders say, against what was to be said: word and character error rates, BLEU, chrF.

They read predictions of a task with `decode`, outside of jit, and keep sentences as their sums: the value is the
library's score of the whole corpus, however it was cut into batches.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from mtljax.base import InputError, Metric

ToText = Callable[[np.ndarray], str]


def wer(to_text: ToText) -> Metric:
  """Word error rate, (substitutions + deletions + insertions) / words of the labels, by jiwer; lower is better.

  >>> metric = wer(lambda ids: ' '.join('_abc'[i] for i in ids if i))
  >>> found, labels = {'symbols': np.array([[1, 2, 0]]), 'lengths': np.array([2])}, np.array([[1, 3, 3, 1]])
  >>> metric.compute(metric.update(found, labels, np.array([True])))
  0.75

  Args:
    to_text: ids int[L] -> sentence, such as `decode` of a tokeniser (`data.transforms.text`).

  `update` takes predictions int[B, L] (`heads.Search`) or {'symbols': int[B, L], 'lengths': int[B]}
  (`heads.ctc_decode`), labels int[B, M], whose negative entries are padding, and a mask: bool[B], the rows that count,
  or bool[B, M], the places of the labels that count; a row without any counts nothing.
  """
  return _corpus('wer', to_text, _jiwer('wer'), higher_is_better=False)


def cer(to_text: ToText) -> Metric:
  """Character error rate, edits / characters of the labels, by jiwer; lower is better; arguments as for `wer`."""
  return _corpus('cer', to_text, _jiwer('cer'), higher_is_better=False)


def bleu(to_text: ToText, *, tokenize: str = '13a', lowercase: bool = False) -> Metric:
  """BLEU, 0 to 100: geometric mean of the precisions of 1- to 4-grams times a brevity penalty, by sacrebleu.

  Args:
    to_text: as for `wer`.
    tokenize: sacrebleu's name of how sentences are taken apart: '13a', 'intl', 'char', 'none', ...
    lowercase: whether case counts nothing.

  Raises:
    InputError: an unknown `tokenize`.

  References: Papineni et al., BLEU (2002), https://aclanthology.org/P02-1040; Post, A Call for Clarity in Reporting
  BLEU Scores (2018), https://arxiv.org/abs/1804.08771.
  """

  def score(labels, found):
    return scorer().corpus_score(found, [labels]).score

  def scorer():
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
      raise InputError(f'bleu: tokenize is {tokenize!r}, expected one of {sorted(map(str, BLEU.TOKENIZERS))}.')
    # Forced: labels that were taken apart before are the user's choice.
    return BLEU(tokenize=tokenize, lowercase=lowercase, force=True)

  return _corpus('bleu', to_text, score)


def chrf(to_text: ToText, *, char_order: int = 6, word_order: int = 0, lowercase: bool = False) -> Metric:
  """chrF, 0 to 100: F score (recall twice as important) of character n-grams up to `char_order`, by sacrebleu.

  Args:
    to_text: as for `wer`.
    char_order, word_order: longest n-grams of characters, and of words; a `word_order` of 2 is chrF++.
    lowercase: whether case counts nothing.

  Reference: Popović, chrF (2015), https://aclanthology.org/W15-3049.
  """

  def score(labels, found):
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=char_order, word_order=word_order, lowercase=lowercase).corpus_score(found, [labels]).score

  return _corpus('chrf', to_text, score)


def _jiwer(name):
  def score(labels, found):
    import jiwer

    return getattr(jiwer, name)(labels, found)

  return score


def _corpus(name: str, to_text: ToText, score: Callable[[list, list], float], higher_is_better: bool = True) -> Metric:
  """The score of all sentences together; without any it is NaN."""
  if not callable(to_text):
    raise InputError(f'{name}: to_text is {to_text!r}, expected a function ids int[L] -> str.')

  def update(predictions, labels, mask):
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((predictions, labels, mask))):
      raise InputError(f'{name}: reads predictions outside of jit, expected a task with `decode`.')
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
      raise InputError(f'{name}: labels are {labels.dtype}{list(labels.shape)}, expected integers [B, L].')
    mask = np.ones(len(labels), bool) if mask is None else np.asarray(mask)
    if mask.shape not in (labels.shape, labels.shape[:1]):
      raise InputError(f'{name}: mask has shape {mask.shape}, expected {labels.shape} or {labels.shape[:1]}.')
    places = np.broadcast_to(mask.reshape(len(mask), -1), labels.shape) & (labels >= 0)
    rows = _rows(name, predictions, len(labels))
    counts = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
    return [to_text(labels[i][places[i]]) for i in counts], [to_text(rows[i]) for i in counts]

  def merge(a, b):
    return a[0] + b[0], a[1] + b[1]

  def compute(sums):
    return score(*sums) if sums[0] else math.nan

  return Metric(update, merge, compute, higher_is_better)


def _rows(name: str, predictions, size: int) -> Sequence[np.ndarray]:
  lengths = None
  if isinstance(predictions, Mapping) and {'symbols', 'lengths'} <= set(predictions):
    predictions, lengths = predictions['symbols'], np.asarray(predictions['lengths'])
  found = predictions if isinstance(predictions, Mapping) else np.asarray(predictions)
  if isinstance(found, Mapping) or found.ndim != 2 or len(found) != size or not np.issubdtype(found.dtype, np.integer):
    what = sorted(found) if isinstance(found, Mapping) else f'{found.dtype}{list(found.shape)}'
    raise InputError(f"{name}: predictions are {what}, expected integers [{size}, L], or 'symbols' and 'lengths'.")
  return found if lengths is None else [row[:length] for row, length in zip(found, lengths)]
