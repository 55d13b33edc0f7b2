"""Options of a command from dataclasses and the fields of an experiment's `Config`, read with tyro."""

import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
from typing import Annotated

from mtljax import experiment as experiment_lib
from mtljax import rundir
from mtljax.base import InputError


def parse(command, cls, argv, module, stored=None, positional='EXPERIMENT'):
  """Values of the command's options by name, and the experiment's `Config`."""
  import tyro

  stored = stored or {}
  own = experiment_lib.fields(module.Config) if module else {}
  if stored and module:
    before = experiment_lib.config_from_json(module.Config, stored.get('config', {}))
    own = {name: (type_, getattr(before, name), text) for name, (type_, _, text) in own.items()}
  options = {
    n: (t, stored.get(n, own[n][1] if n in own else d), text) for n, (t, d, text) in experiment_lib.fields(cls).items()
  }
  if 'data_dir' in options and command != 'evaluate':
    default = os.environ.get('MTLJAX_DATA_DIR') or options['data_dir'][1] or '~/.cache/mtljax'
    options['data_dir'] = (str, default, options['data_dir'][2])
  of_runs = {field.name for field in dataclasses.fields(experiment_lib.Options)}
  hidden = of_runs - set(options)  # of `train`, not of `compare`
  options |= {name: field for name, field in own.items() if name not in options and name not in hidden}
  fields = [
    (n, Annotated[t, tyro.conf.arg(help=text)], dataclasses.field(default_factory=lambda d=d: d))
    for n, (t, d, text) in options.items()
  ]
  if positional:
    text = {'EXPERIMENT': 'a .py file, or the name of an experiment of `mtljax list`', 'RUN_DIR': 'of `mtljax train`'}
    place = Annotated[
      tyro.conf.Positional[str], tyro.conf.arg(help=text[positional], metavar=positional, help_behavior_hint='')
    ]
    fields.append(('positional', place, ''))
  made = dataclasses.make_dataclass('options', fields)
  summary = first_line(module.__doc__ or '') if module else cls.__doc__.splitlines()[0]
  parsed, unknown = _read(command, made, argv, summary)
  unknown += [parsed.positional] if positional and parsed.positional else []
  if unknown:
    what = 'option' if unknown[0].startswith('-') else 'argument'
    found = unknown[0].split('=')[0]
    suggestion = hint('--' + found.strip('-').replace('-', '_'), [f'--{name}' for name in options])
    raise InputError(f'{what} {found!r} is unknown{suggestion}; see mtljax {command} --help.')
  values = {name: getattr(parsed, name) for name in options}
  for name, value in values.items():
    if any(x != x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, float)):
      raise InputError(f'{name}: found {value!r}, expected {"numbers" if isinstance(value, tuple) else "a number"}.')
  if 'data_dir' in values:
    values['data_dir'] = os.path.expanduser(values['data_dir'])
  config = module.Config(**{name: values.get(name, field[1]) for name, field in own.items()}) if module else None
  return values, config


def early(command, cls, argv):
  """The options of one dataclass, whatever else is given: what has to be known before the experiment is loaded."""
  return _read(command, cls, argv, '')[0]


def of_run(run_dir):
  """The config.json of a run of `mtljax train`: literals, each of its type."""
  stored = rundir.read_json(pathlib.Path(run_dir) / 'config.json')
  kinds = {'experiment': str, 'steps': int, 'source': str, 'data_dir': str, 'config': dict}
  what = f'run directory {run_dir}: its config.json is not one of `mtljax train`'
  for name, kind in kinds.items():
    if name in ('experiment', 'steps') and name not in stored:
      raise InputError(f'{what}: it has no {name!r}.')
    if not isinstance(stored.get(name, kind()), kind):
      raise InputError(f'{what}: {name} is {stored[name]!r}, expected a value of type {kind.__name__}.')
  try:
    names = {field.name for field in dataclasses.fields(experiment_lib.Options)}
    experiment_lib.Options(**{name: value for name, value in stored.items() if name in names})
  except InputError as error:
    raise InputError(f'{what}: {error}') from error
  return stored


def _read(command, cls, argv, summary):
  """An instance of the dataclass, and the arguments that it does not know."""
  import tyro

  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      return tyro.cli(
        cls, prog=f'mtljax {command}', description=summary, args=argv, use_underscores=True, return_unknown_args=True
      )
  except SystemExit as stop:
    if not stop.code:
      raise
    # tyro says it in a box: the lines between its head and its first rule are the sentence
    lines = [line.strip('│╭╰╮╯ ') for line in said.getvalue().splitlines()]
    rules = [i for i, line in enumerate(lines) if line.startswith('──')] + [len(lines)]
    raise InputError(f'{" ".join(lines[1 : rules[0]] or lines)}; see mtljax {command} --help.') from None


def split(argv) -> tuple[str | None, list[str]]:
  """The positional argument, wherever it stands, and the rest."""
  flags = ('-h', '--help', '--overwrite', '--no_overwrite', '--no-overwrite')

  def free(i):  # no option, and not the value of one
    before = argv[i - 1] if i else ''
    return not argv[i].startswith('-') and (not before.startswith('--') or '=' in before or before in flags)

  found = [i for i in range(len(argv)) if free(i)]
  files = [i for i in found if argv[i].endswith('.py') or argv[i] in experiment_lib.shipped()]
  place = next(iter(files or found), None)
  return (None, argv) if place is None else (argv[place], argv[:place] + argv[place + 1 :])


def value_of(option, argv):
  for i, text in enumerate(argv):
    if text == option and i + 1 < len(argv):
      return argv[i + 1]
    if text.startswith(option + '='):
      return text.partition('=')[2]
  return ''


def hint(found, names) -> str:
  close = difflib.get_close_matches(found, list(names), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def first_line(doc: str | None) -> str:
  return (doc or '').strip().partition('\n')[0]
