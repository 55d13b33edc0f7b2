import gzip

import pytest

from mtljax.base import InputError
from mtljax.data import parallel_text


def write(folder, **texts):
  for name, text in texts.items():
    (folder / name).write_text(text) if isinstance(text, str) else (folder / name).write_bytes(text)
  return {name: folder / name for name in texts}


def test_lines(tmp_path):
  paths = write(tmp_path, en='\ufeffA dog.\r\nTwo\u2028cats.\n', de='Ein Hund.\n Zwei Katzen. ')
  assert parallel_text.read(paths) == {'en': ['A dog.', 'Two\u2028cats.'], 'de': ['Ein Hund.', 'Zwei Katzen.']}


def test_multi30k(tmp_path):
  (tmp_path / 'multi30k').mkdir()
  (tmp_path / 'multi30k' / 'val.en.gz').write_bytes(gzip.compress(b'A dog.\n'))
  (tmp_path / 'multi30k' / 'val.fr').write_text('Un chien.\n')
  for folder in (tmp_path, tmp_path / 'multi30k'):
    assert parallel_text.multi30k(folder, 'val', ('en', 'fr')) == {'en': ['A dog.'], 'fr': ['Un chien.']}
  with pytest.raises(InputError, match=r'has no val\.de or val\.de\.gz'):
    parallel_text.multi30k(tmp_path, 'val')


TAGS = '<url>http://x</url>\n<keywords>talks</keywords>\n<title>A {0} title</title>\n A {0} sentence.\n{0} < more\n'
XML = """<?xml version="1.0" encoding="UTF-8"?>
<mteval><refset setid="tst" srclang="german"><doc docid="1"><title>Not this</title>
<seg id="1"> Tom &amp; {0} </seg>
<seg id="2"> R&D {0}. </seg>
</doc></refset></mteval>
"""


def test_iwslt(tmp_path):
  for language in ('de', 'en'):
    (tmp_path / f'train.tags.de-en.{language}').write_text(TAGS.format(language))
    (tmp_path / f'IWSLT17.TED.dev2010.de-en.{language}.xml').write_text(XML.format(language))
  expected = {language: [f'A {language} sentence.', f'{language} < more'] for language in ('en', 'de')}
  assert parallel_text.iwslt(tmp_path, 'train', ('en', 'de')) == expected
  assert parallel_text.iwslt(tmp_path, 'dev2010')['de'] == ['Tom & de', 'R&D de.']
  with pytest.raises(InputError, match=r'has the files \[\], expected one called \*tst2010.de-en.de.xml'):
    parallel_text.iwslt(tmp_path, 'tst2010')
  path = tmp_path / 'IWSLT17.TED.dev2010.de-en.en.xml'
  path.write_text(path.read_text().replace('id="2"', 'id="3"'))
  with pytest.raises(InputError, match=r"dev2010.de-en.de.xml, line 4: found segment '2', expected one of \['3'\]"):
    parallel_text.iwslt(tmp_path, 'dev2010')


BAD = {
  'empty': ('a\n\nc\n', {}, 'en, line 2: found nothing, expected a sentence'),
  'bytes': (b'a\nb\xff\nc\n', {}, 'en, line 2: found byte 0xff at place 1, expected UTF-8'),
  'long': ('a\nb b b\nc\n', {'max_length': 2}, 'en, line 2: found 3 words, expected at most 2'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_lines_are_named_or_left_out_in_all_languages(tmp_path, case):
  content, options, message = BAD[case]
  paths = write(tmp_path, de='x\ny\nz\n', en=content)
  with pytest.raises(InputError, match=message):
    parallel_text.read(paths, **options)
  with pytest.warns(UserWarning, match='skipped 1 of 3, the first: en, line 2: found'):
    assert parallel_text.read(paths, **options, on_bad='skip') == {'de': ['x', 'z'], 'en': ['a', 'c']}


def test_other_numbers_of_lines(tmp_path):
  paths = write(tmp_path, de='x\ny\n', en='a\n')
  for on_bad in ('error', 'skip'):
    with pytest.raises(InputError, match='en: found 1 sentences, expected 2, as in .*de'):
      parallel_text.read(paths, on_bad=on_bad)


def test_damaged_files(tmp_path):
  (tmp_path / 'a.gz').write_bytes(gzip.compress(b'one\ntwo\n' * 1000)[:-20])
  for on_bad in ('error', 'skip'):
    with pytest.raises(InputError, match=r'a\.gz: cannot be read.*expected lines of text'):
      parallel_text.read({'a': tmp_path / 'a.gz'}, on_bad=on_bad)
  (tmp_path / 'b.gz').write_text('no gzip')
  with pytest.raises(InputError, match=r'b\.gz: cannot be read'):
    parallel_text.read({'b': tmp_path / 'b.gz'})
  with pytest.raises(InputError, match='found no such file'):
    parallel_text.read({'c': tmp_path / 'c'})


def test_nothing_left(tmp_path):
  paths = write(tmp_path, en='\n')
  with pytest.raises(InputError, match='Nothing is left'):
    parallel_text.read(paths, on_bad='skip')
  with pytest.raises(InputError, match='found no sentence'):
    parallel_text.read(write(tmp_path, en=''))


@pytest.mark.parametrize(
  ('paths', 'options', 'message'),
  [
    ({}, {}, 'paths: found'),
    ({'en': 'x'}, {'layout': 'csv'}, "layout: found 'csv'"),
    ({'en': 'x'}, {'on_bad': 'go'}, 'on_bad'),
  ],
)
def test_refuses(paths, options, message):
  with pytest.raises(InputError, match=message):
    parallel_text.read(paths, **options)


@pytest.mark.data
def test_multi30k_itself(data_dir):
  found = parallel_text.multi30k(data_dir, 'test_2016_flickr', ('en', 'de', 'fr'))
  assert {len(sentences) for sentences in found.values()} == {1000}
  assert found['en'][0] == 'A man in an orange hat starring at something.'
