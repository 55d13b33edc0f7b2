"""Tables: what csv files say, what is fitted on training rows, and what is refused with file, line and column."""

import gzip

import numpy as np
import pytest

from mtljax.base import InputError
from mtljax.data import tables

HOUSES = """area, town,price,sold
50,a,100,yes
70,b,,no
,a,300,yes
90,,200,
"""


def write(path, text=HOUSES):
  path.write_text(text)
  return path


def table(**columns):
  array = lambda values: np.array(values, object if isinstance(values[0], str) else float)
  return tables.Table({name: array(values) for name, values in columns.items()}, 'x.csv')


def test_read_csv(tmp_path):
  found = tables.read_csv(write(tmp_path / 'a.csv'))
  np.testing.assert_array_equal(found['area'], [50, 70, np.nan, 90])
  assert found['area'].dtype == float and found['town'].tolist() == ['a', 'b', 'a', '']
  assert found.lines.tolist() == [2, 3, 4, 5] and list(found.columns) == ['area', 'town', 'price', 'sold']
  np.testing.assert_array_equal(found.missing('sold'), [False, False, False, True])
  packed = tmp_path / 'a.csv.gz'
  packed.write_bytes(gzip.compress(HOUSES.encode()))
  assert tables.read_csv(packed)['sold'].tolist() == found['sold'].tolist()


def test_read_csv_options(tmp_path):
  path = write(tmp_path / 'a.csv', '01;?;"x;y"\n02;3;z\n')
  found = tables.read_csv(path, text=['code'], names=['code', 'n', 'name'], delimiter=';', missing=('?',))
  assert found['code'].tolist() == ['01', '02'] and found['name'].tolist() == ['x;y', 'z']
  np.testing.assert_array_equal(found['n'], [np.nan, 3])


BAD = {
  'another value among numbers': ('a,b\n1,2\n1,2\n1,two\n', r"a.csv, line 4: column 'b' is 'two', expected a number"),
  'infinity': ('a,b\n1,2\n1,inf\n', r"line 3: column 'b' is 'inf', expected a number"),
  'too few values': ('a,b\n1,2\n1\n', r'line 3: found 1 values, expected 2'),
  'no row': ('a,b\n', 'found no row'),
  'a name twice': ('a,a\n1,2\n', 'expected different names'),
  'no name': ('a,\n1,2\n', 'expected different names'),
  'a quotation without an end': ('a,b\n1,"2\n', 'cannot be read, expected a csv file'),
}


@pytest.mark.parametrize('case', BAD)
def test_read_csv_refuses(tmp_path, case):
  text, message = BAD[case]
  with pytest.raises(InputError, match=message):
    tables.read_csv(write(tmp_path / 'a.csv', text))


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(InputError, match='none.csv: found no such file'):
    tables.read_csv(tmp_path / 'none.csv')
  (tmp_path / 'cut.csv.gz').write_bytes(gzip.compress(HOUSES.encode())[:-12])
  (tmp_path / 'latin.csv').write_bytes('a\nDürer\n'.encode('latin-1'))
  for name in ('cut.csv.gz', 'latin.csv'):
    with pytest.raises(InputError, match=f'{name}: cannot be read'):
      tables.read_csv(tmp_path / name)
  with pytest.raises(InputError, match="no column 'code'"):
    tables.read_csv(write(tmp_path / 'a.csv'), text=['code'])


def test_a_missing_column_is_named(tmp_path):
  found = tables.read_csv(write(tmp_path / 'a.csv'))
  calls = [
    lambda: found['rooms'],
    lambda: found.without('rooms'),
    lambda: tables.encode({'train': found}, {'price': 'rooms'}, ['area']),
    lambda: tables.encode({'train': found}, {'price': 'price'}, ['area', 'rooms']),
    lambda: tables.by_group({'train': found}, 'rooms', 'price'),
  ]
  for call in calls:
    with pytest.raises(InputError, match=r"a\.csv: found no column 'rooms', expected one of \['area', 'town'"):
      call()


def test_splits():
  found = table(x=range(100), kind=['a', 'b'] * 50, part=[1, 0, 0, 0] * 25)
  parts = found.split_by('part', {'train': 0, 'test': 1})
  assert (len(parts['train']), len(parts['test'])) == (75, 25) and 'part' not in parts['test'].columns
  parts = found.split({'train': 0.8, 'val': 0.2}, within='kind')
  rows = [set(part['x']) for part in parts.values()]
  assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(100))
  assert [(part['kind'] == 'a').sum() for part in parts.values()] == [40, 10]
  assert parts['val'].where(0) == f'x.csv, line {int(parts["val"]["x"][0]) + 1}'
  with pytest.raises(InputError, match=r"x\.csv, line 1: column 'part' is 1, expected one of \[0, 2\]"):
    found.split_by('part', {'train': 0, 'test': 2})
  with pytest.raises(InputError, match="no row with 'part' = 2"):
    found.split_by('part', {'train': 0, 'val': 1, 'test': 2})


def test_inputs_are_fitted_on_the_training_part():
  train = table(x=[1, 3, np.nan], town=['b', 'a', ''], y=[0, 1, 1])
  test = table(x=[5, np.nan], town=['b', ''], y=[1, 0])
  made = tables.encode({'train': train, 'test': test}, {'y': tables.number('y', standardise=False)})
  assert made.inputs.names == ('x', 'x missing', 'town=', 'town=a', 'town=b')
  np.testing.assert_array_equal(made.splits['train']['inputs'], [[-1, 0, 0, 0, 1], [1, 0, 0, 1, 0], [0, 1, 1, 0, 0]])
  np.testing.assert_array_equal(made.splits['test']['inputs'], [[3, 0, 0, 0, 1], [0, 1, 1, 0, 0]])
  assert made.splits['test']['inputs'].dtype == np.float32


def test_category_that_training_did_not_have():
  train, test = table(town=['a', 'b'], y=[0, 1]), table(town=['a', 'c'], y=[0, 1])
  with pytest.raises(InputError, match=r"x\.csv, line 2: column 'town' is 'c', expected one of those in the training"):
    tables.encode({'train': train, 'test': test}, {'y': 'y'})
  made = tables.encode({'train': train, 'test': test}, {'y': 'y'}, unseen='zeros')
  np.testing.assert_array_equal(made.splits['test']['inputs'], [[1, 0], [0, 0]])


def test_labels_of_every_kind():
  train = table(x=[1, 2, 3, 4], price=[10, np.nan, 30, 20], kind=['b', 'a', '', 'b'], sold=['yes', 'no', '', 'no'])
  labels = {
    'price': 'price',
    'kind': tables.classes('kind'),
    'sold': tables.yes_no('sold', 'yes'),
    'both': lambda table: np.stack([table['x'], table['price']], axis=1),
  }
  made = tables.encode({'train': train}, labels, ['x'])
  found, mask = (made.splits['train'][name] for name in ('labels', 'mask'))
  scaler = made.targets['price'].scaler
  np.testing.assert_allclose(scaler.inverse(found['price'])[[0, 2, 3]], [10, 30, 20], rtol=1e-6)
  np.testing.assert_allclose([found['price'][[0, 2, 3]].mean(), found['price'][[0, 2, 3]].std()], [0, 1], atol=1e-6)
  assert mask['price'].tolist() == [True, False, True, True]
  assert found['kind'].tolist() == [1, 0, 0, 1] and found['kind'].dtype == np.int32
  assert mask['kind'].tolist() == [True, True, False, True] and made.targets['kind'].classes == ('a', 'b')
  assert found['sold'][mask['sold']].tolist() == [1, 0, 0] and made.targets['sold'].classes == ('not yes', 'yes')
  assert mask['both'].shape == (4, 2) and mask['both'].sum() == 7 and 'both' not in made.targets
  assert np.isfinite(found['both']).all()


def test_labels_that_are_refused():
  train = table(x=[1, 2], kind=['a', 'b'], one=['a', 'a'], gap=[np.nan, np.nan])
  refused = {
    "task 'k'.*line 1: column 'kind' is 'a', expected a number": tables.number('kind'),
    "task 'k'.*'one' is always 'a'": tables.classes('one'),
    "task 'k'.*'kind' is .*expected 'c' and other values": tables.yes_no('kind', 'c'),
    "task 'k'.*'gap' has no value in the training part": 'gap',
    "task 'k' has no label in the training part": lambda table: table['gap'],
  }
  for message, label in refused.items():
    with pytest.raises(InputError, match=message):
      tables.encode({'train': train}, {'k': label}, ['x'])
  with pytest.raises(InputError, match="expected 'train' among them"):
    tables.encode({'test': train}, {'k': 'x'})
  test = table(x=[1, 2], kind=['a', 'c'])
  with pytest.raises(InputError, match="line 2: column 'kind' is 'c', expected one of those in the training part: 'a'"):
    tables.encode({'train': train, 'test': test}, {'k': 'kind'}, ['x'])


def test_scaler_and_its_inverse():
  x = np.array([3.0, np.nan, 7.0, -1.0])
  scaler = tables.Scaler.fit(x)
  assert scaler.mean == 3 and scaler.std == pytest.approx(np.std([3, 7, -1]))
  np.testing.assert_allclose(scaler.inverse(scaler(x)), x)
  assert tables.Scaler.fit(np.full(5, 0.1)) == tables.Scaler(pytest.approx(0.1), 1.0)  # a constant, not 0 / 0


def schools(**columns):
  return table(x=[1, 2, 3, 4, 5, 6], y=[1, 3, 100, 300, np.nan, 500], school=[7, 7, 12, 12, 7, 12], **columns)


def test_by_group():
  train, test = schools(), table(x=[1, 2], y=[2, 300], school=[7, 12])
  made = tables.by_group({'train': train, 'test': test}, 'school', tables.number('y', standardise=False))
  assert list(made.splits['train']['labels']) == ['7', '12'] and made.inputs.names == ('x',)
  assert made.splits['train']['mask']['7'].tolist() == [True, True, False, False, False, False]
  assert made.splits['train']['mask']['12'].tolist() == [False, False, True, True, False, True]
  assert made.splits['test']['labels']['12'][1] == 300 and len(made.splits['test']['inputs']) == 2
  with pytest.raises(InputError, match=r"x\.csv, line 1: column 'school' is 9, expected one of .* 7, 12"):
    tables.by_group({'train': train, 'test': table(x=[1], y=[2], school=[9])}, 'school', 'y')
  with pytest.raises(InputError, match=r"line 3: column 'y' has no value in any training row of task '8'"):
    tables.by_group({'train': table(x=[1, 2, 3], y=[1, 2, np.nan], school=[7, 7, 8])}, 'school', 'y')


def test_by_group_with_a_scale_for_each():
  train, test = schools(), table(x=[1, 2], y=[2, 300], school=[7, 12])
  made = tables.by_group({'train': train, 'test': test}, 'school', 'y', each=True)
  labels, mask = made.splits['train']['labels'], made.splits['train']['mask']
  assert made.targets['7'].scaler == tables.Scaler(2, 1)
  assert made.targets['12'].scaler == tables.Scaler(300, pytest.approx(np.std([100, 300, 500])))
  for task in ('7', '12'):
    np.testing.assert_allclose([labels[task][mask[task]].mean(), labels[task][mask[task]].std()], [0, 1], atol=1e-6)
  assert made.splits['test']['labels']['7'][0] == 0 and made.splits['test']['labels']['12'][1] == 0
  own = tables.by_group({'train': schools(kind=['a', 'b', 'b', 'c', 'a', 'c'])}, 'school', 'kind', ['x'], each=True)
  assert {task: target.classes for task, target in own.targets.items()} == {'7': ('a', 'b'), '12': ('b', 'c')}
  assert own.splits['train']['labels']['12'][[2, 3, 5]].tolist() == [0, 1, 1]


def test_apart():
  made = tables.by_group({'train': schools()}, 'school', tables.number('y', standardise=False))
  found = tables.apart(made.splits['train'])
  assert found['12']['labels'].tolist() == [100, 300, 500] and found['7']['labels'].tolist() == [1, 3]
  np.testing.assert_array_equal(found['7']['inputs'], made.splits['train']['inputs'][:2])


def test_from_matrix():
  y = np.array([[1, np.nan], [0, 1], [np.nan, np.nan]])
  examples = tables.from_matrix(np.zeros((3, 2)), y, ('a', 'b'))
  assert examples['mask']['a'].tolist() == [True, True, False] and examples['mask']['b'].tolist() == [
    False,
    True,
    False,
  ]
  assert examples['labels']['a'][:2].tolist() == [1, 0] and np.isfinite(examples['labels']['b']).all()
  whole = tables.from_matrix(np.zeros((2, 2)), np.array([[1, -1], [0, 2]]), ('a', 'b'))
  assert whole['mask']['a'].all() and whole['mask']['b'].tolist() == [False, True]
  for names, rows in ((('a',), 3), (('a', 'a'), 3), (('a', 'b'), 4)):
    with pytest.raises(InputError):
      tables.from_matrix(np.zeros((rows, 2)), y, names)


def test_positive_weights():
  labels = {'a': np.array([1, 0, 0, 0, 1, 1]), 'b': np.array([1, 1, 0, 1, 1, 1])}
  mask = {'a': np.array([True, True, True, True, False, False])}
  examples = {'inputs': np.zeros(6), 'labels': labels, 'mask': mask}
  assert tables.positive_weights(examples) == {'a': 3, 'b': 0.2}
  assert tables.positive_weights(tables.apart(examples)) == {'a': 3, 'b': 0.2}
  for values, message in (([1, 1], 'has 2 positive and 0 negative'), ([0.5, 1], 'has labels other than 0 and 1')):
    with pytest.raises(InputError, match=f"task 'a' {message}"):
      tables.positive_weights({'inputs': np.zeros(2), 'labels': {'a': np.array(values)}})
