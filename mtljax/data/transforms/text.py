"""Text to numbers and back: words, characters, byte pairs; sentences of any length as one array.

A tokeniser is a function of the sentences that it was made from, to the bit, so a run rebuilds it from its training
text; `to_json` and `from_json` carry it to where that text is not. The first four ids of all of them are `PAD`, `BOS`,
`EOS` and `UNK`, the defaults of `heads.Decoder`, `heads.Search` and `trunks.EmbeddingBag` and, 0, the blank of CTC.
"""

import base64
import binascii
import collections
import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from mtljax.base import InputError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')
WORD = r'\w+|[^\w\s]'  # words and signs
BLANKS = r'\S+'  # what stands between blanks: text that has been taken apart before


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What all tokenisers do.

  Attributes:
    size: number of ids, the four special ones included.
  """

  kind: ClassVar[str] = ''

  @property
  def size(self) -> int:
    raise NotImplementedError

  def encode(self, sentence: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    """Ids of a sentence, with a begin before or an end behind them where asked."""
    if not isinstance(sentence, str):
      raise InputError(f'{self.kind}.encode: found {type(sentence).__name__}, expected a sentence (str).')
    return [BOS] * bos + self._ids(sentence) + [EOS] * eos

  def decode(self, ids: Iterable[int]) -> str:
    """The sentence of ids int[L], up to the first end; padding and begin are left out.

    Raises:
      InputError: an id that is none.
    """
    ids = [int(i) for i in np.asarray(ids, np.int64).ravel()]
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    wrong = [i for i in ids if not 0 <= i < self.size]
    if wrong:
      raise InputError(f'{self.kind}.decode: found id {wrong[0]}, expected 0 to {self.size - 1}.')
    return self._text([i for i in ids if i not in (PAD, BOS)])

  def to_json(self) -> str:
    """All that `from_json` needs to make the same tokeniser."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    plain = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in fields.items()}
    return json.dumps({'kind': self.kind, **plain})

  def _ids(self, sentence: str) -> list[int]:
    raise NotImplementedError

  def _text(self, ids: list[int]) -> str:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Symbols(Tokenizer):
  """A tokeniser with a list of symbols.

  Attributes:
    symbols: those of the ids from 4 on, the most frequent first.
    lower: whether text is lower-cased.
  """

  symbols: tuple[str, ...]
  lower: bool
  joint: ClassVar[str] = ''

  @property
  def size(self) -> int:
    return len(SPECIAL) + len(self.symbols)

  def _parts(self, sentence: str) -> Sequence[str]:
    raise NotImplementedError

  @functools.cached_property
  def _known(self) -> dict[str, int]:
    return {symbol: i for i, symbol in enumerate(self.symbols, len(SPECIAL))}

  def _ids(self, sentence):
    return [self._known.get(part, UNK) for part in self._parts(sentence.lower() if self.lower else sentence)]

  def _text(self, ids):
    return self.joint.join((*SPECIAL, *self.symbols)[i] for i in ids)


@dataclasses.dataclass(frozen=True)
class Words(Symbols):
  """Words: what `pattern` finds; `words` makes one.

  Attributes:
    pattern: regular expression of a word.
    ngrams: the most words in a row that have an id of their own.
  """

  pattern: str = WORD
  ngrams: int = 1
  kind: ClassVar[str] = 'words'
  joint: ClassVar[str] = ' '

  def _parts(self, sentence):
    found = [found.group() for found in re.finditer(self.pattern, sentence)]
    rows = (found[i : i + n] for n in range(2, self.ngrams + 1) for i in range(len(found) - n + 1))
    return found + [self.joint.join(row) for row in rows]

  def _ids(self, sentence):
    parts = self._parts(sentence.lower() if self.lower else sentence)
    return [self._known.get(part, UNK) for part in parts if part in self._known or self.joint not in part]

  def _text(self, ids):
    return super()._text(i for i in ids if self.joint not in (*SPECIAL, *self.symbols)[i])


@dataclasses.dataclass(frozen=True)
class Characters(Symbols):
  """Characters, blanks among them; `characters` makes one."""

  kind: ClassVar[str] = 'characters'

  def _parts(self, sentence):
    return sentence


@dataclasses.dataclass(frozen=True)
class BPE(Tokenizer):
  """Byte-pair encoding by sentencepiece; `bpe` makes one.

  Attributes:
    model: bytes of the sentencepiece model.
  """

  model: bytes
  kind: ClassVar[str] = 'bpe'

  @functools.cached_property
  def _processor(self):
    import sentencepiece

    try:
      return sentencepiece.SentencePieceProcessor(model_proto=self.model)
    except RuntimeError as error:
      raise InputError(f'bpe: the model cannot be read, expected bytes of a sentencepiece model: {error}.') from error

  @property
  def size(self) -> int:
    return self._processor.get_piece_size()

  def _ids(self, sentence):
    return self._processor.encode(sentence)

  def _text(self, ids):
    return self._processor.decode(ids)


def words(
  sentences: Iterable[str],
  *,
  pattern: str = WORD,
  ngrams: int = 1,
  lower: bool = True,
  min_count: int = 1,
  max_size: int | None = None,
) -> Words:
  """A tokeniser of the words of some sentences.

  >>> words = words(['A dog runs.', 'a dog'], min_count=2)
  >>> words.symbols, words.encode('A dog sleeps', eos=True), words.decode([1, 4, 5, 2, 4])
  (('a', 'dog'), [4, 5, 3, 2], 'a dog')

  Args:
    sentences: to count words in.
    pattern: regular expression of a word; `BLANKS` for text whose words stand between blanks.
    ngrams: up to so many words in a row have an id too (bags of n-grams), behind those of the words; unknown ones are
      left out, and `decode` gives the words.
    lower: whether text is lower-cased.
    min_count: how often a word must occur; rarer ones are unknown.
    max_size: most ids, the four special ones included; the most frequent words stay, ties in alphabetical order.

  Raises:
    InputError: no sentence with a word, a pattern that is none, counts that are no positive whole numbers.
  """
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise InputError(f'words: pattern is {pattern!r}, expected a regular expression: {error}.') from error
  _check_count('words', 'ngrams', ngrams, 1)
  return _counted(Words((), lower, pattern, ngrams), sentences, min_count, max_size)


def characters(
  sentences: Iterable[str], *, lower: bool = False, min_count: int = 1, max_size: int | None = None
) -> Characters:
  """A tokeniser of the characters of some sentences; arguments as for `words`.

  >>> letters = characters(['ab', 'a'])
  >>> letters.encode('abc'), letters.decode([5, 4, 0, 0])
  ([4, 5, 3], 'ba')
  """
  return _counted(Characters((), lower), sentences, min_count, max_size)


def _counted(empty: Symbols, sentences, min_count, max_size):
  _check_count(empty.kind, 'min_count', min_count, 1)
  if max_size is not None:
    _check_count(empty.kind, 'max_size', max_size, len(SPECIAL) + 1)
  counts = collections.Counter()
  for sentence in _checked(empty.kind, sentences):
    counts.update(empty._parts(sentence.lower() if empty.lower else sentence))
  ranked = sorted((symbol for symbol, n in counts.items() if n >= min_count), key=lambda s: (-counts[s], s))
  if not ranked:
    raise InputError(f'{empty.kind}: found no symbol that occurs {min_count} times, expected sentences to learn from.')
  return dataclasses.replace(empty, symbols=tuple(ranked[: None if max_size is None else max_size - len(SPECIAL)]))


def bpe(sentences: Iterable[str], size: int, *, lower: bool = False) -> BPE:
  """A tokeniser of parts of words, merged pair by pair in the order of their frequency.

  Args:
    sentences: to learn the merges from.
    size: number of ids, the four special ones included.
    lower: whether text is lower-cased (sentencepiece's nmt_nfkc_cf); it is NFKC-normalised anyway, and runs of blanks
      are one.

  Raises:
    InputError: no sentence; a size that the sentences are too few for, or smaller than their number of characters.

  >>> pairs = bpe(['low lower lowest', 'new newer newest'] * 5, 25)
  >>> pairs.size, pairs.decode(pairs.encode('newest lower'))
  (25, 'newest lower')

  References: Sennrich, Haddow & Birch, Neural Machine Translation of Rare Words with Subword Units (2016),
  https://arxiv.org/abs/1508.07909; Kudo & Richardson, SentencePiece (2018), https://arxiv.org/abs/1808.06226.
  """
  import sentencepiece

  sentences = [line for sentence in _checked('bpe', sentences) for line in sentence.splitlines() if line.strip()]
  if not sentences:
    raise InputError('bpe: found no sentence, expected some to learn from.')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=model,
      model_type='bpe',
      vocab_size=size,
      character_coverage=1.0,
      normalization_rule_name='nmt_nfkc_cf' if lower else 'nmt_nfkc',
      # Longer ones are dropped, and less than 10 is refused.
      max_sentence_length=max(10, *(1 + len(sentence.encode()) for sentence in sentences)),
      num_threads=1,
      minloglevel=2,
      **dict(pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK, unk_surface=SPECIAL[UNK]),
    )
  except (RuntimeError, OSError, TypeError) as error:
    said = str(error).rpartition('] ')[2].rstrip('. \n')
    raise InputError(f'bpe: size is {size!r}, which does not fit {len(sentences)} sentences: {said}.') from error
  return BPE(model.getvalue())


def from_json(text: str) -> Tokenizer:
  """The tokeniser that `to_json` wrote.

  >>> from_json(characters(['ab']).to_json()).symbols
  ('a', 'b')

  Raises:
    InputError: text of another kind.
  """
  kinds = {cls.kind: cls for cls in (Words, Characters, BPE)}
  try:
    values = json.loads(text)
    cls = kinds[values.pop('kind')]
    if cls is BPE:
      return BPE(base64.b64decode(values['model'], validate=True))
    return cls(**{**values, 'symbols': tuple(values['symbols'])})
  except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
    raise InputError(f'from_json: found {str(text)[:60]!r}, expected what to_json of a tokeniser gives.') from error


def pad(
  sequences: Iterable[Sequence[int]], max_length: int | None = None, *, cut: bool = False, where: str = 'sentence'
) -> Mapping[str, np.ndarray]:
  """Sequences of ids as one array, with `PAD` behind the short ones, and where it is not padding.

  >>> padded = pad([[5, 6, 7], [8]])
  >>> padded['x'].tolist(), padded['mask'].tolist()
  ([[5, 6, 7], [8, 0, 0]], [[True, True, True], [True, False, False]])

  Args:
    sequences: N of them, ids.
    max_length: L; None takes the longest.
    cut: whether longer ones lose what is beyond; else they are an error.
    where: what a sequence is called in messages, with its place behind it.

  Returns:
    {'x': int32[N, L], 'mask': bool[N, L]}, the inputs of trunks for sequences.

  Raises:
    InputError: no sequence, one that is longer than `max_length`.
  """
  rows = [np.asarray(ids, np.int32).reshape(-1) for ids in sequences]
  if not rows:
    raise InputError(f'pad: found no {where}, expected at least one.')
  length = max(1, *(len(row) for row in rows)) if max_length is None else max_length
  if isinstance(length, bool) or not isinstance(length, int) or length < 1:
    raise InputError(f'pad: max_length is {length!r}, expected a positive whole number.')
  x, mask = np.full((len(rows), length), PAD, np.int32), np.zeros((len(rows), length), bool)
  for place, row in enumerate(rows):
    if len(row) > length and not cut:
      raise InputError(f'pad: {where} {place} has {len(row)} tokens, expected at most {length}; or cut=True.')
    row = row[:length]
    x[place, : len(row)], mask[place, : len(row)] = row, True
  return {'x': x, 'mask': mask}


def _check_count(kind: str, name: str, value, least: int) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise InputError(f'{kind}: {name} is {value!r}, expected a whole number of at least {least}.')


def _checked(kind: str, sentences: Iterable[str]):
  if isinstance(sentences, str):
    raise InputError(f'{kind}: found one str, expected an iterable of sentences.')
  for place, sentence in enumerate(sentences):
    if not isinstance(sentence, str):
      raise InputError(f'{kind}: sentence {place} is a {type(sentence).__name__}, expected a str.')
    yield sentence
