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


def seeds(*values):
  return {'mean': sum(values) / len(values), 'interval': 9.0, 'values': list(values)}


def test_leaderboard_of_many_tasks_has_a_column_for_each_metric():
  """The interval is over the seeds' means of the tasks: seeds that differ the other way round in two tasks cancel."""
  tasks = {'a': 'auc', 'b': 'auc', 'c': 'rmse', 'd': 'auc', 'e': 'rmse', 'f': 'iou'}
  test = {'a': {'auc': seeds(0.5, 0.7)}, 'b': {'auc': seeds(0.7, 0.5)}, 'd': {'auc': seeds(0.9, 0.9)}}
  test |= {'c': {'rmse': seeds(1.0, 1.0)}, 'e': {'rmse': seeds(2.0, 2.0)}, 'f': {'iou': seeds(0.25, 0.25)}}
  value = {'mean': 0.0, 'interval': None}
  row = dict(method='equal', test=test, delta_m=value, mean_rank=1.0, step_time=1.0, steps=10, learning_rate=0.1)
  header, _, line = leaderboard([row], tasks).splitlines()
  assert header.split('  ')[0] == 'method' and 'auc, 3 tasks' in header
  assert header.index('auc, 3 tasks') < header.index('rmse, 2 tasks') < header.index('f iou') < header.index('Δm')
  assert line.split()[1:10] == '0.7000 ± 0.0000 1.5000 ± 0.0000 0.2500 ± 0.0000'.split()
  test['a']['auc']['values'][1] = None
  assert leaderboard([row], tasks).splitlines()[2].split()[1] == '–'
  four = dict(list(tasks.items())[:4])
  assert [f'{task} {metric}' in leaderboard([row], four) for task, metric in four.items()] == [True] * 4
