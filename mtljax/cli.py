"""The command line: `mtljax train | compare | evaluate | list`.

Options come from dataclasses: those of a command, and the fields of the experiment's own `Config`. A field of the same
name as an option of the command gives that option its default and gets its value.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Literal

from mtljax import __version__, balancing, checkpoint, loop, rundir, sharing
from mtljax import experiment as experiment_lib
from mtljax.analysis import tables
from mtljax.base import InputError
from mtljax.compare import Plan, compare

MAY_CHANGE = ('steps', 'eval_every', 'checkpoint_every', 'log_every', 'mode', 'on_nonfinite', 'data_dir')  # on resuming
USAGE = """usage: mtljax COMMAND [EXPERIMENT | RUN_DIR] [OPTIONS]

{commands}

mtljax COMMAND --help          every option of a command, its meaning and its default
mtljax train EXPERIMENT --help the same with the options of the experiment
mtljax --version"""


@dataclasses.dataclass(frozen=True)
class TrainOptions(loop.Options):
  """Trains one method and prints the test metrics.

  Attributes:
    run_dir: where the run goes; empty is runs/<experiment>/<balancer>-seed<seed>.
    data_dir: folder of prepared data sets; empty is $MTLJAX_DATA_DIR or ~/.cache/mtljax.
    overwrite: replaces an earlier run in run_dir.
    resume: directory of a run to go on with from its last checkpoint; its options are kept, --steps may be raised.
  """

  run_dir: str = ''
  data_dir: str = ''
  overwrite: bool = False
  resume: str = ''


@dataclasses.dataclass(frozen=True)
class CompareOptions:
  """Trains single-task baselines and every balancer with one budget and prints a leaderboard.

  Attributes:
    balancers: methods, separated by commas: names or calls such as 'cagrad(c=0.2)'; equal is always there. 'all' stands
      for every method that needs no argument and is defined for the experiment's number of tasks.
    seeds: how many; every row runs seeds 0, 1, 2, ...
    learning_rates: tried for every row, separated by commas; the best on validation data counts.
    steps: budget of every run.
    at: where task gradients are balanced, on shared parameters or on shared features.
    run_dir: where the comparison goes; empty is runs/<experiment>/compare.
    data_dir: folder of prepared data sets; empty is $MTLJAX_DATA_DIR or ~/.cache/mtljax.
    overwrite: replaces an earlier comparison in run_dir.
  """

  balancers: str = 'equal,uncertainty,pcgrad,cagrad,nash_mtl,upgrad'
  seeds: int = 3
  learning_rates: str = '1e-3,3e-3,1e-2'
  steps: int = 500
  at: Literal['params', 'features'] = 'params'
  run_dir: str = ''
  data_dir: str = ''
  overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
  """Reloads a run and prints its test metrics.

  Attributes:
    checkpoint: the last one, or the best on validation data.
    data_dir: folder of prepared data sets; empty is where the run found its data.
  """

  checkpoint: Literal['last', 'best'] = 'last'
  data_dir: str = ''


@dataclasses.dataclass(frozen=True)
class ListOptions:
  """Names balancers, sharing architectures and experiments."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code: 0; 2 for a wrong input; 1 for a loss that became NaN; 130 for Ctrl-C."""
  argv = list(sys.argv[1:] if argv is None else argv)
  command = argv[0] if argv else '--help'
  if command == '--version':
    print(f'mtljax {__version__}')
    return 0
  if command in ('--help', '-h'):
    lines = [f'  {name:9} {cls.__doc__.splitlines()[0]}' for name, (cls, _) in COMMANDS.items()]
    print(USAGE.format(commands='\n'.join(lines)))
    return 0
  try:
    if command not in COMMANDS:
      raise InputError(f'command {command!r} is unknown{_hint(command, COMMANDS)}, expected one of {list(COMMANDS)}.')
    with warnings.catch_warnings():
      warnings.showwarning = lambda message, *_, **__: print(f'warning: {message}', file=sys.stderr)
      COMMANDS[command][1](argv[1:])
  except SystemExit as stop:  # tyro's: --help, or an option that is wrong, which it has said
    return stop.code or 0
  except (InputError, OSError, loop.NonFiniteError) as error:
    print(f'mtljax {command}: {" ".join(str(error).split())}', file=sys.stderr)
    return 1 if isinstance(error, loop.NonFiniteError) else 2
  except KeyboardInterrupt:
    print(f'mtljax {command}: stopped by Ctrl-C.', file=sys.stderr)
    return 130
  return 0


def _train(argv):
  name, argv = _split(argv)
  resume = _value_of('--resume', argv)
  stored = rundir.read_json(pathlib.Path(resume) / 'config.json') if resume else {}
  if resume and stored.keys().isdisjoint({'source', 'steps'}):
    raise InputError(f'run directory {resume}: its config.json is not one of `mtljax train`.')
  name = name or stored.get('source')
  asks = not {'-h', '--help'}.isdisjoint(argv)
  if name is None and not asks:
    raise InputError(f'experiment: found none, expected a .py file or one of {sorted(experiment_lib.shipped())}.')
  module = experiment_lib.load(name) if name else None
  values, config = _parse('train', TrainOptions, argv, module, stored)
  options = loop.Options(**{field.name: values[field.name] for field in dataclasses.fields(loop.Options)})
  if resume:
    _check_resumed(stored, {**values, 'config': dataclasses.asdict(config)}, resume)
  experiment = experiment_lib.build(module, config)
  if resume and experiment.name != stored['experiment']:
    raise InputError(f'--resume {resume}: found a run of {stored["experiment"]!r}, expected {experiment.name!r}.')
  if resume and options.steps != stored['steps']:
    print(f'steps: {stored["steps"]} becomes {options.steps}; a schedule that depends on steps changes with it.')
  label = re.sub(r'[^\w.-]+', '_', options.balancer).strip('_')
  place = resume or values['run_dir'] or pathlib.Path('runs') / experiment.name / f'{label}-seed{options.seed}'
  meta = _meta(name, values, config)
  loop.train(experiment, options, place, overwrite=values['overwrite'], resume=bool(resume), config=meta)


def _compare(argv):
  name, argv = _split(argv)
  asks = not {'-h', '--help'}.isdisjoint(argv)
  if name is None and not asks:
    raise InputError(f'experiment: found none, expected a .py file or one of {sorted(experiment_lib.shipped())}.')
  module = experiment_lib.load(name) if name else None
  values, config = _parse('compare', CompareOptions, argv, module)
  if values['seeds'] < 1:
    raise InputError(f'seeds: found {values["seeds"]}, expected a positive integer.')
  try:
    rates = tuple(float(text) for text in values['learning_rates'].split(','))
  except ValueError:
    found = values['learning_rates']
    raise InputError(f'learning_rates: found {found!r}, expected numbers separated by commas.') from None
  experiment = experiment_lib.build(module, config)
  methods, others = balancing.parse_names(
    values['balancers'], len(experiment.tasks), values['at'], steps_per_epoch=experiment.train.steps_per_epoch
  )
  for reason in others:
    print(f'left out, {reason}')
  plan = Plan(
    balancers=methods,
    seeds=tuple(range(values['seeds'])),
    learning_rates=rates,
    steps=values['steps'],
    at=values['at'],
  )
  place = values['run_dir'] or pathlib.Path('runs') / experiment.name / 'compare'
  meta = _meta(name, values, config)
  found = compare(experiment, plan, run_dir=place, overwrite=values['overwrite'], config=meta, report=print)
  print(f'{experiment.name}, {plan.steps} steps, {len(plan.seeds)} seeds, test data; written to {place}')
  print(found)


def _evaluate(argv):
  run_dir, argv = _split(argv)
  values, _ = _parse('evaluate', EvaluateOptions, argv, None, positional='RUN_DIR')
  if run_dir is None:
    raise InputError(
      'run directory: found none, expected the directory of a run, such as runs/multi_digits/equal-seed0.'
    )
  run_dir = pathlib.Path(run_dir)
  stored = rundir.read_json(run_dir / 'config.json')
  if not {'source', 'config', *(field.name for field in dataclasses.fields(loop.Options))} <= set(stored):
    raise InputError(f'run directory {run_dir}: its config.json is not one of `mtljax train`.')
  module = experiment_lib.load(stored['source'])
  config = dict(stored['config'])
  if 'data_dir' in config:
    config['data_dir'] = values['data_dir'] or config['data_dir']
  experiment = experiment_lib.build(module, experiment_lib.config_from_json(module.Config, config))
  run = experiment_lib.Run(
    experiment, loop.Options(**{f.name: stored[f.name] for f in dataclasses.fields(loop.Options)})
  )
  folder = run_dir / 'checkpoints'
  best = checkpoint.best_step(folder) if values['checkpoint'] == 'best' else None
  if best is not None:
    state, step = checkpoint.restore(folder / str(best), run.abstract)[0], best
  else:
    state, _, step = checkpoint.restore_latest(folder, run.abstract)
  print(f'{experiment.name}, {stored["balancer"]}, seed {stored["seed"]}: step {step} in {run_dir}')
  print(tables.metric_table(run.evaluate(state, experiment.test), 'test'))


def _list(argv):
  name, argv = _split(argv)
  _parse('list', ListOptions, argv, None, positional=None)
  if name is not None:
    raise InputError(f'argument {name!r} is unknown, expected none.')
  for title, factories in (('balancers', balancing.METHODS), ('sharing architectures', sharing.ARCHITECTURES)):
    print(f'{title}:')
    for name, factory in sorted(factories.items()):
      print(f'  {name:16} {_first_line(factory.__doc__)}')
  print('experiments:')
  for name, path in experiment_lib.shipped().items():
    found = re.match(r'\s*[rR]?"""(.*)', path.read_text())
    print(f'  {name:16} {_first_line(found[1].rstrip(chr(34))) if found else ""}')


COMMANDS = {
  'train': (TrainOptions, _train),
  'compare': (CompareOptions, _compare),
  'evaluate': (EvaluateOptions, _evaluate),
  'list': (ListOptions, _list),
}


def _meta(name, values, config):
  """What config.json needs so that a run can be made again from its directory alone."""
  path = experiment_lib.find(name)
  source = path.stem if experiment_lib.shipped().get(path.stem) == path else str(path)
  return {'mtljax': __version__, 'source': source, 'data_dir': values['data_dir'], 'config': dataclasses.asdict(config)}


def _check_resumed(stored, values, resume):
  """What a run was started with stays; said without being asked for, it was a default and is no conflict."""
  if values['overwrite']:
    raise InputError('--overwrite: found together with --resume, expected one of them.')
  if values['run_dir'] and pathlib.Path(values['run_dir']).absolute() != pathlib.Path(resume).absolute():
    raise InputError(f'--run_dir: found {values["run_dir"]}, expected {resume}, the run that is resumed.')
  pairs = [(name, values[name], stored[name]) for name in values if name in stored and name != 'config']
  pairs += [(name, value, stored['config'].get(name, value)) for name, value in values['config'].items()]
  for name, found, was in pairs:
    if name not in MAY_CHANGE and rundir.finite(found) != was:
      raise InputError(f'--{name}: found {found}, expected {was}, as the run in {resume} was started.')


def _parse(command, cls, argv, module, stored=None, positional='EXPERIMENT'):
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
  hidden = {field.name for field in dataclasses.fields(loop.Options)} - set(options)  # of `train`, not of `compare`
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
  summary = _first_line(module.__doc__ or '') if module else cls.__doc__.splitlines()[0]
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      parsed, unknown = tyro.cli(
        made, prog=f'mtljax {command}', description=summary, args=argv, use_underscores=True, return_unknown_args=True
      )
  except SystemExit as stop:
    if not stop.code:
      raise
    # tyro says it in a box: the lines between its head and its first rule are the sentence
    lines = [line.strip('│╭╰╮╯ ') for line in said.getvalue().splitlines()]
    rules = [i for i, line in enumerate(lines) if line.startswith('──')] + [len(lines)]
    raise InputError(f'{" ".join(lines[1 : rules[0]] or lines)}; see mtljax {command} --help.') from None
  unknown += [parsed.positional] if positional and parsed.positional else []
  if unknown:
    what = 'option' if unknown[0].startswith('-') else 'argument'
    found = unknown[0].split('=')[0]
    hint = _hint('--' + found.strip('-').replace('-', '_'), [f'--{name}' for name in options])
    raise InputError(f'{what} {found!r} is unknown{hint}; see mtljax {command} --help.')
  values = {name: getattr(parsed, name) for name in options}
  if 'data_dir' in values:
    values['data_dir'] = os.path.expanduser(values['data_dir'])
  config = module.Config(**{name: values.get(name, field[1]) for name, field in own.items()}) if module else None
  return values, config


def _split(argv) -> tuple[str | None, list[str]]:
  """The positional argument, wherever it stands, and the rest."""
  flags = ('-h', '--help', '--overwrite', '--no_overwrite', '--no-overwrite')

  def free(i):  # no option, and not the value of one
    before = argv[i - 1] if i else ''
    return not argv[i].startswith('-') and (not before.startswith('--') or '=' in before or before in flags)

  found = [i for i in range(len(argv)) if free(i)]
  files = [i for i in found if argv[i].endswith('.py') or argv[i] in experiment_lib.shipped()]
  place = next(iter(files or found), None)
  return (None, argv) if place is None else (argv[place], argv[:place] + argv[place + 1 :])


def _value_of(option, argv):
  for i, text in enumerate(argv):
    if text == option and i + 1 < len(argv):
      return argv[i + 1]
    if text.startswith(option + '='):
      return text.partition('=')[2]
  return ''


def _hint(found, names) -> str:
  close = difflib.get_close_matches(found, list(names), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def _first_line(doc: str | None) -> str:
  return (doc or '').strip().partition('\n')[0]
