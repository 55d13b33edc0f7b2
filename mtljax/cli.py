"""The command line: `mtljax train | compare | evaluate | draw | list`.

Options come from dataclasses: those of a command, and the fields of the experiment's own `Config`. A field of the same
name as an option of the command gives that option its default and gets its value.
"""

import dataclasses
import pathlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Literal

from mtljax import balancing, calls, checkpoint, hosts, inputs, loop, options, rundir, runs, sharing, training
from mtljax import experiment as experiment_lib
from mtljax.analysis import draw, tables
from mtljax.base import InputError
from mtljax.compare import compare
from mtljax.lanes import Plan
from mtljax.version import __version__

OF_RUNS = tuple(field.name for field in dataclasses.fields(experiment_lib.Options))
OFTEN = ('eval_every', 'checkpoint_every', 'log_every')
MAY_CHANGE = ('steps', *OFTEN, 'mode', 'on_nonfinite', 'on_save_error', 'data_dir')  # on resuming
USAGE = """usage: mtljax COMMAND [EXPERIMENT | RUN_DIR] [OPTIONS]

{commands}

mtljax COMMAND --help          every option of a command, its meaning and its default
mtljax train EXPERIMENT --help the same with the options of the experiment
mtljax --version"""


@dataclasses.dataclass(frozen=True)
class TrainOptions(experiment_lib.Options, hosts.HostOptions):
  """Trains one method and prints the test metrics.

  Attributes:
    run_dir: where the run goes; empty is runs/<experiment>/<balancer>-seed<seed>.
    data_dir: folder of prepared data sets; empty is $MTLJAX_DATA_DIR or ~/.cache/mtljax.
    overwrite: replaces an earlier run in run_dir.
    resume: directory of a run to go on with from its last checkpoint; its options are kept, --steps may be raised. With
      an experiment, where there is no run yet, one is started there: the same command starts and restarts.
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
    architectures: sharing architectures, separated by commas: names or calls such as 'mmoe(num_experts=3)', for an
      experiment whose Config has a field `architecture`; every one is a row for every balancer. 'all' stands for
      those of `mtljax list` that the trunk can be made into. Empty is the experiment's own.
    run_dir: where the comparison goes; empty is runs/<experiment>/compare.
    data_dir: folder of prepared data sets; empty is $MTLJAX_DATA_DIR or ~/.cache/mtljax.
    overwrite: replaces an earlier comparison in run_dir.
  """

  balancers: str = 'equal,uncertainty,pcgrad,cagrad,nash_mtl,upgrad'
  seeds: int = 3
  learning_rates: str = '1e-3,3e-3,1e-2'
  steps: int = 500
  at: Literal['params', 'features'] = 'params'
  architectures: str = ''
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
class DrawOptions:
  """Draws the parts of an experiment's model and prints parameters and FLOPs per task.

  Attributes:
    out: the figure, a .png, .svg or .pdf file; empty is runs/<experiment>/structure.png.
    data_dir: folder of prepared data sets; empty is $MTLJAX_DATA_DIR or ~/.cache/mtljax.
  """

  out: str = ''
  data_dir: str = ''


@dataclasses.dataclass(frozen=True)
class ListOptions:
  """Names balancers, sharing architectures and experiments."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code: 0; 2 for a wrong input; 1 for a NaN or a full disk; 130 for Ctrl-C."""
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
      hint = options.hint(command, COMMANDS)
      raise InputError(f'command {command!r} is unknown{hint}, expected one of {list(COMMANDS)}.')
    with warnings.catch_warnings():
      warnings.showwarning = lambda message, *_, **__: print(f'warning: {message}', file=sys.stderr)
      COMMANDS[command][1](argv[1:])
  except SystemExit as stop:  # tyro's: --help, or an option that is wrong, which it has said
    return stop.code or 0
  except (InputError, OSError, loop.NonFiniteError) as error:
    lost = isinstance(error, TimeoutError) and hosts.is_lost(error)
    text = hosts.explain(error) if lost else ' '.join(str(error).split())
    print(f'mtljax {command}{hosts.label()}: {text}', file=sys.stderr)
    return hosts.leave(1 if isinstance(error, loop.NonFiniteError | checkpoint.SaveError) else 2)
  except KeyboardInterrupt:
    print(f'mtljax {command}: stopped by Ctrl-C.', file=sys.stderr)
    return hosts.leave(130)
  except Exception as error:
    if not hosts.label():
      raise
    print(f'mtljax {command}{hosts.label()}: {hosts.explain(error)}', file=sys.stderr)
    return hosts.leave(1)
  return 0


def _train(argv):
  if {'-h', '--help'}.isdisjoint(argv):
    hosts.start(options.early('train', hosts.HostOptions, argv))  # before anything touches a device
  with hosts.first_speaks():
    _train_here(argv)


def _train_here(argv):
  name, argv = options.split(argv)
  resume = options.value_of('--resume', argv)
  begun = bool(resume) and (name is None or (pathlib.Path(resume) / 'config.json').exists())
  stored = options.of_run(resume) if begun else {}
  name = name or (_source(stored, resume) if begun else None)
  asks = not {'-h', '--help'}.isdisjoint(argv)
  if name is None and not asks:
    raise InputError(f'experiment: found none, expected a .py file or one of {sorted(experiment_lib.shipped())}.')
  module = experiment_lib.load(name) if name else None
  values, config = options.parse('train', TrainOptions, argv, module, stored)
  chosen = experiment_lib.Options(**{name: values[name] for name in OF_RUNS})
  if resume:
    _check_resumed(stored, {**values, 'config': dataclasses.asdict(config)}, resume)
  experiment = experiment_lib.build(module, config)
  if begun and experiment.name != stored['experiment']:
    raise InputError(f'--resume {resume}: found a run of {stored["experiment"]!r}, expected {experiment.name!r}.')
  if begun and chosen.steps != stored['steps']:
    print(f'steps: {stored["steps"]} becomes {chosen.steps}; a schedule that depends on steps changes with it.')
  label = re.sub(r'[^\w.-]+', '_', chosen.balancer).strip('_')
  place = resume or values['run_dir'] or pathlib.Path('runs') / experiment.name / f'{label}-seed{chosen.seed}'
  meta = _meta(name, values, config)
  training.train(experiment, chosen, place, overwrite=values['overwrite'], resume=begun, config=meta)


def _compare(argv):
  name, module, argv = _experiment(argv)
  values, config = options.parse('compare', CompareOptions, argv, module)
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
  variants = _variants(values['architectures'], module, config, experiment)
  place = values['run_dir'] or pathlib.Path('runs') / experiment.name / ('architectures' if variants else 'compare')
  meta = _meta(name, values, config)
  found = compare(
    experiment, plan, variants=variants, run_dir=place, overwrite=values['overwrite'], config=meta, report=print
  )
  print(f'{experiment.name}, {plan.steps} steps, {len(plan.seeds)} seeds, test data; written to {place}')
  print(found)


def _variants(text, module, config, experiment):
  """{architecture: experiment}, or None when none is asked for."""
  names = calls.split_calls(text)
  if not names:
    return None
  if not hasattr(config, 'architecture'):
    raise InputError(
      f'architectures: the Config of {experiment.name} has no field `architecture`, which makes an experiment of each.'
    )
  place = names.index('all') if 'all' in names else len(names)
  every = [name for name in sharing.ARCHITECTURES if place < len(names) and name not in names]
  variants = {}
  for name in dict.fromkeys([*names[:place], *every, *names[place + 1 :]]):
    try:
      variant = experiment_lib.build(module, dataclasses.replace(config, architecture=name))
      experiment_lib.check_model(variant)
    except InputError as error:
      if name not in every:
        raise
      print(f'left out, {name}: {error}')
      continue
    variants[name] = dataclasses.replace(variant, train=experiment.train, val=experiment.val, test=experiment.test)
  return variants  # with one copy of the data


def _evaluate(argv):
  run_dir, argv = options.split(argv)
  values, _ = options.parse('evaluate', EvaluateOptions, argv, None, positional='RUN_DIR')
  if run_dir is None:
    raise InputError(
      'run directory: found none, expected the directory of a run, such as runs/multi_digits/equal-seed0.'
    )
  run_dir = pathlib.Path(run_dir)
  stored = options.of_run(run_dir)
  if not {'source', 'config'} <= set(stored):
    raise InputError(f'run directory {run_dir}: its config.json is not one of `mtljax train`.')
  module = experiment_lib.load(_source(stored, run_dir))
  config = dict(stored['config'])
  if 'data_dir' in config:
    config['data_dir'] = values['data_dir'] or config['data_dir']
  experiment = experiment_lib.build(module, experiment_lib.config_from_json(module.Config, config))
  run = runs.Run(experiment, experiment_lib.Options(**{name: stored[name] for name in OF_RUNS if name in stored}))
  folder = run_dir / 'checkpoints'
  best = checkpoint.best_step(folder) if values['checkpoint'] == 'best' else None
  if best is not None:
    state, step = checkpoint.restore(folder / str(best), run.abstract)[0], best
  else:
    state, _, step = checkpoint.restore_latest(folder, run.abstract)
  print(f'{experiment.name}, {run.options.balancer}, seed {run.options.seed}: step {step} in {run_dir}')
  print(tables.metric_table(run.evaluate(state, experiment.test), 'test'))


def _draw(argv):
  name, module, argv = _experiment(argv)
  values, config = options.parse('draw', DrawOptions, argv, module)
  experiment = experiment_lib.build(module, config)
  place = pathlib.Path(values['out'] or pathlib.Path('runs') / experiment.name / 'structure.png')
  given = inputs.inputs_by_task(experiment.train.example(), [task.name for task in experiment.tasks])
  found = draw.draw(experiment.model, given, place, experiment.name)
  print(f'{experiment.name}, forward pass of one example; drawn in {place}')
  print(found)


def _list(argv):
  name, argv = options.split(argv)
  options.parse('list', ListOptions, argv, None, positional=None)
  if name is not None:
    raise InputError(f'argument {name!r} is unknown, expected none.')
  groups = {
    title: {name: factory.__doc__ for name, factory in sorted(factories.items())}
    for title, factories in (('balancers', balancing.METHODS), ('sharing architectures', sharing.ARCHITECTURES))
  }
  heads = {name: re.match(r'\s*[rR]?"""(.*)', path.read_text()) for name, path in experiment_lib.shipped().items()}
  groups['experiments'] = {name: found[1].rstrip('"') if found else '' for name, found in heads.items()}
  width = max(len(name) for lines in groups.values() for name in lines)
  for title, lines in groups.items():
    print(f'{title}:')
    for name, text in lines.items():
      print(f'  {name:{width}} {options.first_line(text)}'.rstrip())


COMMANDS = {
  'train': (TrainOptions, _train),
  'compare': (CompareOptions, _compare),
  'evaluate': (EvaluateOptions, _evaluate),
  'draw': (DrawOptions, _draw),
  'list': (ListOptions, _list),
}


def _experiment(argv):
  """The experiment's name and module, both None where only help is asked for, and the other arguments."""
  name, argv = options.split(argv)
  if name is None and {'-h', '--help'}.isdisjoint(argv):
    raise InputError(f'experiment: found none, expected a .py file or one of {sorted(experiment_lib.shipped())}.')
  return name, experiment_lib.load(name) if name else None, argv


def _source(stored, run_dir):
  """The experiment of a run. Its file will be imported, so it must not be one that came with the directory."""
  source = str(stored.get('source'))
  if experiment_lib.find(source).resolve().is_relative_to(pathlib.Path(run_dir).resolve()):
    raise InputError(
      f'run directory {run_dir}: its config.json names the experiment {source}, a file within the directory, expected '
      'one outside: it would be executed.'
    )
  return source


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
  pairs += [(name, value, stored.get('config', {}).get(name, value)) for name, value in values['config'].items()]
  for name, found, was in pairs:
    if name not in MAY_CHANGE and rundir.finite(found) != rundir.finite(was):
      raise InputError(f'--{name}: found {found}, expected {was}, as the run in {resume} was started.')
