import math

from mtljax.analysis import aligned, leaderboard, metric_table
from mtljax.analysis.tables import with_interval


def test_columns_are_aligned():
  lines = aligned(['method', 'x'], [['a', '1.25'], ['longer name', '–']]).splitlines()
  assert lines == ['method          x', '-----------  ----', 'a            1.25', 'longer name     –']


def test_metric_table_puts_the_loss_last_and_dashes_where_nothing_is():
  text = metric_table({'a': {'loss': 0.25, 'accuracy': 0.5}, 'b': {'rmse': math.nan, 'loss': None}}, 'test')
  assert text.splitlines()[0].split() == ['test', 'accuracy', 'rmse', 'loss']
  assert [line.split() for line in text.splitlines()[2:]] == [['a', '0.5000', '–', '0.2500'], ['b', '–', '–', '–']]


def test_interval_only_where_there_is_one():
  assert with_interval({'mean': 1.5, 'interval': 0.25}, '+.2f') == '+1.50 ± 0.25'
  assert with_interval({'mean': 1.5, 'interval': None}) == '1.5000'
  assert with_interval({'mean': 1.5, 'interval': math.nan}) == '1.5000'
  assert with_interval({'mean': None, 'interval': None}) == '–'


def test_leaderboard():
  value = {'mean': 0.5, 'interval': 0.1}
  row = dict(method='equal', test={'a': {'accuracy': value}}, delta_m=value, mean_rank=1.0, step_time=1.0, steps=10)
  single = row | dict(method='single-task', mean_rank=None, learning_rate={'a': 1e-3, 'b': 3e-4})
  lines = leaderboard([single, row | dict(learning_rate=3e-3)], {'a': 'accuracy'}).splitlines()
  assert lines[0].split() == ['method', 'a', 'accuracy', 'Δm', '[%]', 'rank', 'time/equal', 'steps', 'rate']
  assert lines[2].split() == 'single-task 0.5000 ± 0.1000 +0.50 ± 0.10 – 1.00 10 0.001/0.0003'.split()
  assert lines[3].endswith('0.003') and len({len(line) for line in lines}) == 1
