"""Tables: csv files, columns as inputs and labels, gaps in labels as masks, many small tasks in one table.

  table = tables.read_csv('houses.csv')
  parts = table.split({'train': 0.8, 'val': 0.1, 'test': 0.1})
  made = tables.encode(parts, {'price': 'price', 'sold': tables.yes_no('sold', 'yes')})
  train = mtljax.data.Batches(made.splits['train'], batch_size=64)

Reading, splitting and encoding are three steps. Whatever is fitted (means, deviations, categories, classes) is fitted
on the part 'train' and applied to all.
"""

from mtljax.data.tables._csv import Table, read_csv
from mtljax.data.tables._encode import Columns, Label, Scaler, Target, classes, number, yes_no
from mtljax.data.tables._examples import Encoded, apart, by_group, encode, from_matrix, positive_weights

__all__ = [
  'Columns',
  'Encoded',
  'Label',
  'Scaler',
  'Table',
  'Target',
  'apart',
  'by_group',
  'classes',
  'encode',
  'from_matrix',
  'number',
  'positive_weights',
  'read_csv',
  'yes_no',
]
