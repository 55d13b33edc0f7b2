import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data.transforms import text

SENTENCES = ['A man, riding a bike.', 'Two dogs play in the grass!', 'the man sat on the mat', 'Zwölf Boxkämpfer'] * 5
MAKE = {
  'words': lambda sentences: text.words(sentences),
  'characters': lambda sentences: text.characters(sentences),
  'bpe': lambda sentences: text.bpe(sentences, 50),
}


@pytest.fixture(params=MAKE)
def make(request):
  return MAKE[request.param]


def test_there_and_back(make):
  tokenizer = make(SENTENCES)
  sentence = 'the man play in the grass'
  ids = tokenizer.encode(sentence)
  assert min(ids) > text.UNK and max(ids) < tokenizer.size
  assert tokenizer.decode(ids) == sentence
  whole = tokenizer.encode(sentence, bos=True, eos=True)
  assert whole == [text.BOS, *ids, text.EOS]
  assert tokenizer.decode(np.array([*whole, text.PAD, ids[0]])) == sentence  # what follows the end is not read


def test_the_same_sentences_give_the_same_tokenizer(make):
  a, b = make(SENTENCES), make(iter(SENTENCES))
  assert a == b and a.to_json() == b.to_json()
  c = text.from_json(a.to_json())
  assert c == a and c.size == a.size and c.encode(SENTENCES[0]) == a.encode(SENTENCES[0])


def test_what_was_never_seen_is_unknown(make):
  tokenizer = make(SENTENCES)
  assert text.UNK in tokenizer.encode('漢字')
  assert '<unk>' in tokenizer.decode(tokenizer.encode('漢字'))


def test_frequent_words_stay():
  sentences = ['b b b a a c', 'a c d']
  assert text.words(sentences).symbols == ('a', 'b', 'c', 'd')  # 3, 3, 2, 1
  assert text.words(sentences, min_count=2).symbols == ('a', 'b', 'c')
  assert text.words(sentences, max_size=6).symbols == ('a', 'b')
  assert text.words(sentences, max_size=6).size == 6


def test_words_in_a_row():
  tokenizer = text.words(['not very good', 'very good indeed', 'not bad'], ngrams=2, min_count=2)
  assert tokenizer.symbols == ('good', 'not', 'very', 'very good')
  assert tokenizer.encode('bad , very good .') == [3, 3, 6, 4, 3, 7]  # 'bad ,' and the like are no ids
  assert tokenizer.decode(tokenizer.encode('not very good')) == 'not very good'
  assert text.from_json(tokenizer.to_json()) == tokenizer
  assert 'not very good' in text.words(['not very good'], ngrams=3).symbols


def test_case_and_patterns():
  assert text.words(["Don't stop"], pattern=text.BLANKS, lower=False).symbols == ("Don't", 'stop')
  assert set(text.words(["Don't stop"]).symbols) == {'don', "'", 't', 'stop'}
  assert text.bpe(SENTENCES, 45, lower=True).decode(text.bpe(SENTENCES, 45, lower=True).encode('THE MAN')) == 'the man'


def test_bpe_merges_what_is_frequent_and_leaves_no_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tokenizer = text.bpe(['low lower lowest'] * 20, 24)
  assert len(tokenizer.encode('low')) < len(tokenizer.encode('wol'))
  assert not list(tmp_path.iterdir())


def test_padding():
  padded = text.pad([[5, 6, 7], [], [8]], 4)
  assert padded['x'].dtype == np.int32 and padded['x'].tolist() == [[5, 6, 7, 0], [0, 0, 0, 0], [8, 0, 0, 0]]
  assert padded['mask'].sum(axis=1).tolist() == [3, 0, 1]
  assert text.pad([[5, 6, 7], [8]], 2, cut=True)['x'].tolist() == [[5, 6], [8, 0]]
  assert text.pad([[]])['x'].shape == (1, 1)
  with pytest.raises(InputError, match='pad: tweet 1 has 3 tokens, expected at most 2'):
    text.pad([[8], [5, 6, 7]], 2, where='tweet')
  with pytest.raises(InputError, match='found no sentence'):
    text.pad([])
  with pytest.raises(InputError, match='max_length is 0'):
    text.pad([[1]], 0)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: text.words('a sentence'), 'words: found one str'),
    (lambda: text.words([b'a']), 'words: sentence 0 is a bytes'),
    (lambda: text.words([]), 'words: found no symbol'),
    (lambda: text.words(['a'], min_count=2), 'occurs 2 times'),
    (lambda: text.words(['a'], pattern='('), 'words: pattern is'),
    (lambda: text.words(['a'], ngrams=0), 'words: ngrams is 0, expected a whole number of at least 1'),
    (lambda: text.words(['a'], max_size=4), 'max_size is 4, expected a whole number of at least 5'),
    (lambda: text.characters(['a'], min_count=0), 'characters: min_count is 0'),
    (lambda: text.bpe([' '], 20), 'bpe: found no sentence'),
    (lambda: text.bpe(['a b c'], 20_000), 'bpe: size is 20000, which does not fit 1 sentences: Vocabulary size too'),
    (lambda: text.bpe(['a b c'], 5), 'bpe: size is 5.*required_chars'),
    (lambda: text.characters(['ab']).decode([6]), 'characters.decode: found id 6, expected 0 to 5'),
    (lambda: text.characters(['ab']).encode(7), 'characters.encode: found int'),
    (lambda: text.from_json('{"kind": "bytes"}'), 'from_json: found'),
    (lambda: text.from_json('[]'), 'from_json: found'),
    (lambda: text.BPE(b'nothing').size, 'bpe: the model cannot be read'),
  ],
)
def test_refuses(call, message):
  with pytest.raises(InputError, match=message):
    call()
