"""Writes docs/balancing.md: prose from balancing_template.md, tables from the registry, its docstrings and benchmarks.

python docs/make_balancing.py
"""

import inspect
import json
import pathlib
import re

from mtljax import balancing

ROOT = pathlib.Path(__file__).parent.parent
TEMPLATE = ROOT / 'docs' / 'balancing_template.md'
PAGE = ROOT / 'docs' / 'balancing.md'
COSTS = ROOT / 'benchmarks' / 'balancing_cost.json'
ACCURACY = ROOT / 'benchmarks' / 'solver_accuracy.txt'
COMPARISON = ROOT / 'docs' / 'multi_digits_methods.txt'
MULTI_MNIST = ROOT / 'docs' / 'multi_mnist_methods.txt'
LABELS = ('Needs', 'Helps', 'Breaks')
LEVELS = ('losses', 'gramian', 'jacobian', 'oracle', 'wrapper')
TASKS = ('2', '8', '40')


def facts(factory) -> dict[str, str]:
  """The labelled lines of a factory's docstring; raises where one is missing or more than a line."""
  doc, found = inspect.getdoc(factory), {}
  for label in LABELS:
    lines = re.findall(rf'^{label}: (\S.*\.)$', doc, flags=re.M)
    if len(lines) != 1:
      raise ValueError(f'{factory.__name__}: found {len(lines)} lines "{label}: ... ." in its docstring, expected one.')
    found[label] = lines[0].removesuffix('.')
  return found


def paper(factory) -> str:
  """The year of the first linked reference, as a link; a dash where there is none."""
  match = re.search(r'^References: (.*?)(https?://\S+)', inspect.getdoc(factory), flags=re.M | re.S)
  if match is None:
    return '–'
  return f'[{re.findall(r"(?:19|20)[0-9]{2}", match[1])[-1]}]({match[2]})'


def signature(factory) -> str:
  """With defaults, without types."""
  parts = []
  for parameter in inspect.signature(factory).parameters.values():
    if parameter.default is not parameter.empty:
      parts.append(f'{parameter.name}={parameter.default!r}')
    else:
      parts.append(parameter.name)
  return f'`{factory.__name__}({", ".join(parts)})`'


def level(factory) -> str:
  if 'inner' in inspect.signature(factory).parameters:
    return 'wrapper'
  return balancing.parse(factory.__name__, steps_per_epoch=1, weights=(1.0,)).level


def cost(row: dict[str, float] | None) -> str:
  """Relative to equal, at T = 2, 8, 40."""
  return ' / '.join(f'{row[T]:.1f}' if T in row else '–' for T in TASKS) if row else '–'


def table(which: str, costs: dict) -> str:
  """One level's methods."""
  lines = ['| method | paper | cost | needs | helps | breaks on |', '|---|---|---|---|---|---|']
  for name, factory in balancing.METHODS.items():
    if level(factory) == which:
      cells = (signature(factory), paper(factory), cost(costs.get(name, {}).get('params')), *facts(factory).values())
      lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
  return '\n'.join(lines)


def features_table(costs: dict) -> str:
  """The methods that were measured at both."""
  lines = ["| method | `at='params'` | `at='features'` |", '|---|---|---|']
  for name, row in costs.items():
    if 'features' in row:
      lines.append(f'| `{name}` | {cost(row["params"])} | {cost(row["features"])} |')
  return '\n'.join(lines)


def solver_table(solvers: dict) -> str:
  """The dearest solvers, in percent of the method's own step and of the equal step."""
  sizes = list(next(iter(solvers.values())))
  worst = {n: [max(kind['of_step'] for kind in row[T].values()) for T in sizes] for n, row in solvers.items()}
  over = {n: [max(kind['of_equal'] for kind in row[T].values()) for T in sizes] for n, row in solvers.items()}
  lines = ['| method | ' + ' | '.join(f'T = {T}' for T in sizes) + ' |', '|---|' + '---|' * len(sizes)]
  for name in sorted(worst, key=lambda n: -worst[n][-1])[:6]:
    cells = [f'{a:.2f} ({b:.1f})' for a, b in zip(worst[name], over[name])]
    lines.append(f'| `{name}` | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def block(path: pathlib.Path) -> str:
  return f'```\n{path.read_text().rstrip()}\n```' if path.exists() else ''


def make() -> str:
  """The page."""
  measured = json.loads(COSTS.read_text())
  parts = {f'table {which}': table(which, measured['cost']) for which in LEVELS}
  parts['features'] = features_table(measured['cost'])
  parts['solvers'] = solver_table(measured['solver'])
  parts['accuracy'] = block(ACCURACY)
  parts['comparison'] = f'<!-- comparison -->\n{block(COMPARISON)}'.rstrip()
  parts['multi_mnist'] = block(MULTI_MNIST)
  parts['count'] = str(sum(level(factory) != 'wrapper' for factory in balancing.METHODS.values()))
  parts['measured'] = f'{measured["date"]}, jax {measured["jax"]}, {measured["cpus"]} CPU cores'
  note = '<!-- Made by docs/make_balancing.py; edit balancing_template.md and the docstrings. -->\n\n'
  return note + re.sub(r'\{\{(.+?)\}\}', lambda match: parts[match[1]], TEMPLATE.read_text())


if __name__ == '__main__':
  PAGE.write_text(make())
  print(f'wrote {PAGE.relative_to(ROOT)}')
