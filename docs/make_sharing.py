"""Writes docs/sharing.md and its figures: prose from sharing_template.md, the rest from the registry and the models.

python docs/make_sharing.py
"""

import inspect
import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtljax import sharing, trunks
from mtljax.analysis import cost, draw, structure
from mtljax.analysis.trace import trace

ROOT = pathlib.Path(__file__).parent.parent
TEMPLATE = ROOT / 'docs' / 'sharing_template.md'
PAGE = ROOT / 'docs' / 'sharing.md'
IMAGES = ROOT / 'docs' / 'images'
# What comparisons printed.
TABLES = ('multi_digits_architectures.txt', 'multi_digits_blocks.txt', 'multi_mnist_architectures.txt')

# {family: calls}; every architecture is in one of them.
FAMILIES = {
  'hard and soft': ('hard', 'soft'),
  'stitching': ('cross_stitch', 'sluice', 'nddr', 'cross_task_attention'),
  'attention masks': ('mtan',),
  'experts': ('mmoe', 'cgc', 'ple', 'dselect_k'),
  'branching and relations': ("tree(cuts=('conv_0',))", 'learning_to_branch', 'adashare', 'graph'),
  'own weights': (
    'lora',
    'residual_adapters',
    "layer_wise(shared='Conv_')",
    'connection_wise(density=0.5)',
  ),
  'knowledge': ('knowledge',),
}
# {file: (call, tasks)} of the figures.
TWO, FOUR = ('left', 'right'), ('left', 'right', 'sum', 'parity')
FIGURES = {
  'sharing_hard': ('hard', TWO),
  'sharing_soft': ('soft', TWO),
  'sharing_cross_stitch': ('cross_stitch', TWO),
  'sharing_mtan': ('mtan', TWO),
  'sharing_mmoe': ('mmoe', TWO),
  'sharing_ple': ('ple', TWO),
  'sharing_tree': ("tree(tree='((left, right), (sum, parity))')", FOUR),
  'sharing_learning_to_branch': ('learning_to_branch', TWO),
  'sharing_residual_adapters': ('residual_adapters', TWO),
  'sharing_knowledge': ('knowledge', TWO),
}


def name_of(call: str) -> str:
  return call.partition('(')[0]


def traced(call: str, tasks=TWO):
  """The architecture over the LeNet of the page, on images of 28x28."""
  trunk = trunks.LeNet((16, 32), hidden=64)
  if name_of(call) == 'adashare':  # which skips stages that keep the shape of what they read
    trunk = {**trunk.stages, 'block_0': trunks.MLP((64,)), 'block_1': trunks.MLP((64,))}
  model = sharing.parse(call)(trunk, {task: nn.Dense(10) for task in tasks})
  return trace(model, dict.fromkeys(tasks, jax.ShapeDtypeStruct((1, 28, 28), jnp.float32)))


def what(factory) -> str:
  """The first line of the architecture's module, without its name."""
  line = sys.modules[factory.__module__].__doc__.splitlines()[0]
  return line.partition(': ')[2].removesuffix('.') or line


def rule(factory) -> str:
  """The first line of the factory's docstring."""
  return inspect.getdoc(factory).splitlines()[0].removesuffix('.')


def paper(factory) -> str:
  """First author and year of the first reference, as a link."""
  match = re.search(r'^References?: (.*?)(https?://\S+)', inspect.getdoc(factory), flags=re.M | re.S)
  if match is None:
    raise ValueError(f'{factory.__name__}: found no line "Reference: ... https://..." in its docstring.')
  author = re.split(r',| et al| & ', match[1])[0].strip()
  return f'[{author} {re.findall(r"(?:19|20)[0-9]{2}", match[1])[-1]}]({match[2].rstrip(",.;:")})'


def row(call: str, hard: cost.Costs) -> str:
  """Of the table of costs."""
  found = cost.count(traced(call))
  (own,) = set(found.own.values())
  (alone,) = set(found.flops.values())
  (needed,) = set(found.needed.values())
  ratio = lambda flops: f'{cost.compact(flops)} ({flops / hard.flops_together:.1f}×)'
  counts = [cost.compact(count) for count in (found.shared, own, needed)]
  factory = sharing.ARCHITECTURES[name_of(call)]
  cells = [f'`{call}`', paper(factory), what(factory), *counts, ratio(alone), ratio(found.flops_together)]
  return '| ' + ' | '.join(cells) + ' |'


def costs_table() -> str:
  """All architectures, by family."""
  calls = [call for family in FAMILIES.values() for call in family]
  if sorted(map(name_of, calls)) != sorted(sharing.ARCHITECTURES):
    odd = set(map(name_of, calls)) ^ set(sharing.ARCHITECTURES)
    raise ValueError(f'FAMILIES: {sorted(odd)} of sharing.ARCHITECTURES are in no family, or the other way round.')
  hard = cost.count(traced('hard'))
  lines = ['| architecture | paper | what is shared | shared | own | needed | one task | both |']
  return '\n'.join([*lines, '|---|---|---|---|---|---|---|---|', *(row(call, hard) for call in calls)])


def rules_table(family: str) -> str:
  """The architectures of a family and what they do, in their docstrings' words."""
  lines = ['| architecture | rule |', '|---|---|']
  for call in FAMILIES[family]:
    text = re.sub(r'([*_<>|])', r'\\\1', rule(sharing.ARCHITECTURES[name_of(call)]))
    lines.append(f'| `{name_of(call)}` | {text} |')
  return '\n'.join(lines)


def printed(name: str) -> str:
  """A comparison, as it was printed."""
  return f'```\n{(ROOT / "docs" / name).read_text().rstrip()}\n```'


def make() -> str:
  """The page."""
  parts = {f'rules {family}': rules_table(family) for family in FAMILIES}
  parts |= {
    name: f'![{call} with the tasks {", ".join(tasks)}](images/{name}.png)' for name, (call, tasks) in FIGURES.items()
  }
  parts['costs'] = costs_table()
  parts['table'] = f'```\n{cost.count(traced("mtan"))}\n```'
  parts['count'] = str(len(sharing.ARCHITECTURES))
  parts |= {f'table {name}': printed(name) for name in TABLES}
  note = '<!-- Made by docs/make_sharing.py; edit sharing_template.md and the docstrings. -->\n\n'
  return note + re.sub(r'\{\{(.+?)\}\}', lambda match: parts[match[1]], TEMPLATE.read_text())


if __name__ == '__main__':
  PAGE.write_text(make())
  for name, (call, tasks) in FIGURES.items():
    draw.save(draw.diagram(structure.graph_of(traced(call, tasks)), call), IMAGES / f'{name}.png')
  print(f'wrote {PAGE.relative_to(ROOT)} and {len(FIGURES)} figures')
