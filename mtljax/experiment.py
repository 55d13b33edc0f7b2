"""An experiment: a model, its tasks, their data and an optimiser, made by the `build` of one Python file."""

import dataclasses
import hashlib
import importlib.util
import inspect
import math
import numbers
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import optax

from mtljax import arrays, data, inputs
from mtljax.base import Batch, InputError, Model, Penalty, Task


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All that training and comparing need.

  Attributes:
    name: folder of its runs.
    model, tasks: what is trained; the order of `tasks` is the order of the task axis.
    train: `data.batching.Batches`, a batch being a function of (seed, step).
    val, test: lists of batches; rates and checkpoints are chosen on `val`, `test` is read once, at the end.
    optimizer: `(learning_rate, task_names) -> optax transformation`; the learning rate may be traced, the names may be
      a single task of the experiment.
    penalties: beta_t R_t besides those of the model.
  """

  name: str
  model: Model
  tasks: Sequence[Task]
  train: Any
  val: Sequence[Batch]
  test: Sequence[Batch]
  optimizer: Callable[[Any, tuple[str, ...]], optax.GradientTransformation]
  penalties: Sequence[Penalty] = ()

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name or '/' in self.name:
      raise InputError(f'Experiment name: found {self.name!r}, expected a non-empty string without "/".')
    arrays.task_names(self.tasks)
    if not isinstance(self.model, Model):
      raise InputError(f'Experiment model: found {type(self.model).__name__}, expected an mtljax.Model.')
    if not callable(self.train) or not hasattr(self.train, 'gather'):
      raise InputError(f'Experiment train: found {type(self.train).__name__}, expected mtljax.data.Batches.')
    for name in ('val', 'test'):
      if isinstance(getattr(self, name), Mapping) or not isinstance(getattr(self, name), Sequence):
        found = type(getattr(self, name)).__name__
        raise InputError(f'Experiment {name}: found {found}, expected a list of batches.')
    if not self.test:
      raise InputError('Experiment test: found no batch, expected at least one.')
    if not callable(self.optimizer):
      raise InputError(f'Experiment optimizer: found {self.optimizer!r}, expected (learning_rate, tasks) -> optax.')


@dataclasses.dataclass(frozen=True)
class Options:
  """What a run of an experiment can choose; `config.json` holds it.

  Attributes:
    balancer: a balancing method, by name or as a call with literals such as 'cagrad(c=0.2)'.
    seed: of parameters, batches and all that is drawn.
    steps: how many batches are learned from.
    learning_rate: handed to the experiment's optimizer.
    eval_every: steps between evaluations on validation data.
    checkpoint_every: steps between checkpoints; the last two and the best on validation data stay.
    log_every: steps between lines of metrics.jsonl.
    at: where task gradients are balanced, on shared parameters or on shared features.
    mode: how the step is compiled; all but 'jit' use all devices.
    model_devices: over how many devices parameters and optimiser are split, in mode 'sharded'; rows of devices share
      the batch.
    objectives: what the balancer weighs, tasks or examples (methods of level gramian).
    on_nonfinite: a NaN or infinite loss ends the run, or the step is skipped, or its task is dropped from the step.
    steps_per_call: steps of one call of the compiled program (mode 'jit'), for models so small that calling them is
      what takes the time; 0 measures whether it pays and keeps to the answer.
    accumulate: in how many parts trunk and heads run over a batch, to need less memory; balancing sees all of it.
    remat: keeps less for the backward pass and computes it again.
    chunk_size: rows of the Jacobian that are computed at once; 0 is one on a CPU, and all elsewhere.
    on_save_error: a file that cannot be written, as on a full disk, ends the run, or the run goes on without it.
  """

  balancer: str = 'equal'
  seed: int = 0
  steps: int = 500
  learning_rate: float = 1e-3
  eval_every: int = 100
  checkpoint_every: int = 100
  log_every: int = 10
  at: Literal['params', 'features'] = 'params'
  mode: Literal['jit', 'pmap', 'shard_map', 'sharded'] = 'jit'
  model_devices: int = 1
  objectives: Literal['tasks', 'examples', 'examples_tasks'] = 'tasks'
  on_nonfinite: Literal['error', 'skip', 'drop'] = 'error'
  steps_per_call: int = 1
  accumulate: int = 1
  remat: bool = False
  chunk_size: int = 0
  on_save_error: Literal['stop', 'continue'] = 'stop'

  def __post_init__(self):
    for name in ('steps', 'eval_every', 'checkpoint_every', 'log_every'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise InputError(f'{name}: found {value!r}, expected a positive integer.')
    if not isinstance(self.model_devices, int) or self.model_devices < 1:
      raise InputError(f'model_devices: found {self.model_devices!r}, expected a positive integer.')
    if self.model_devices > 1 and self.mode != 'sharded':
      raise InputError(f"model_devices: found {self.model_devices} with mode={self.mode!r}, expected 'sharded'.")
    for name in ('steps_per_call', 'chunk_size'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 0:
        raise InputError(f'{name}: found {value!r}, expected an integer >= 0.')
    if self.mode != 'jit' and self.steps_per_call != 1:
      raise InputError(
        f"steps_per_call: found {self.steps_per_call} with mode={self.mode!r}, expected mode 'jit' or 1."
      )
    for name in ('at', 'mode', 'objectives', 'on_nonfinite', 'on_save_error'):
      allowed = get_args(get_type_hints(Options)[name])
      if getattr(self, name) not in allowed:
        raise InputError(f'{name}: found {getattr(self, name)!r}, expected one of {allowed}.')
    if not isinstance(self.balancer, str):
      raise InputError(f"balancer: found {self.balancer!r}, expected text such as 'cagrad(c=0.2)'.")
    if not isinstance(self.seed, numbers.Integral) or self.seed < 0:
      raise InputError(f'seed: found {self.seed!r}, expected an integer >= 0.')
    if not isinstance(self.learning_rate, numbers.Real) or not 0 < self.learning_rate < math.inf:
      raise InputError(f'learning_rate: found {self.learning_rate!r}, expected a positive number.')


def check_ranges(config, **ranges: float | tuple[float, float]) -> None:
  """Raises unless fields of a `Config` are in their ranges: finite and at least `low`, or in [low, high).

  Of a field that has several numbers, all have to be.

  >>> from types import SimpleNamespace
  >>> check_ranges(SimpleNamespace(depth=2, word_dropout=0.3), depth=1, word_dropout=(0, 1))

  Raises:
    InputError: a number out of its range.
  """
  for name, limits in ranges.items():
    low, high = limits if isinstance(limits, tuple) else (limits, math.inf)
    found = getattr(config, name)
    if not all(low <= number < high for number in (found if isinstance(found, tuple) else (found,))):
      expected = f'a number >= {low}' if high == math.inf else f'a number of at least {low} and below {high}'
      raise InputError(f'{name}: found {found!r}, expected {expected}.')


def score(tasks: Sequence[Task], values: Mapping[str, Mapping[str, float]]) -> float | None:
  """One number to choose a checkpoint by, higher is better: the mean over tasks of the first metric.

  A metric counts negatively where lower is better, and so does the loss of a task without metrics. None when there is
  nothing, or a NaN. Tasks of very different scale are better compared by Δm (`compare`).
  """
  parts = []
  for task in tasks if values else ():
    name = next(iter(task.metrics), 'loss')
    higher = task.metrics[name].higher_is_better if name in task.metrics else False
    parts.append(values[task.name][name] * (1 if higher else -1))
  return math.fsum(parts) / len(parts) if parts and all(map(math.isfinite, parts)) else None


def subset(experiment: Experiment, names: Sequence[str]) -> Experiment:
  """The experiment with some of its tasks: their heads, labels, metrics and penalties (single-task baselines).

  Args:
    experiment: of all tasks.
    names: tasks that stay, in the experiment's order.

  Raises:
    InputError: an unknown task.
  """
  arrays.check_names('subset names', names, arrays.task_names(experiment.tasks), all_of=False)
  names = tuple(task.name for task in experiment.tasks if task.name in names)
  stays = lambda penalties: tuple(p for p in penalties if p.task is None or p.task in names)
  return dataclasses.replace(
    experiment,
    model=experiment.model._replace(penalties=stays(experiment.model.penalties)),
    tasks=tuple(task for task in experiment.tasks if task.name in names),
    train=experiment.train.select(names),
    val=data.select_batches(experiment.val, names),
    test=data.select_batches(experiment.test, names),
    penalties=stays(experiment.penalties),
  )


def check_model(experiment: Experiment) -> None:
  """Traces the model's initialisation: raises an InputError where architecture, trunk, heads and data do not fit."""
  names = arrays.task_names(experiment.tasks)
  given = inputs.inputs_by_task(experiment.train.example(), names)
  jax.eval_shape(lambda key: experiment.model.init(key, given), jax.eval_shape(lambda: jax.random.key(0)))


def shipped() -> dict[str, pathlib.Path]:
  """{name: file} of the experiments that come with the library."""
  package = pathlib.Path(__file__).parent
  for folder in (package / 'experiments', package.parent / 'experiments'):  # a wheel, a checkout
    if folder.is_dir():
      return {path.stem: path for path in sorted(folder.glob('*.py')) if not path.stem.startswith('_')}
  return {}


def find(path_or_name: str) -> pathlib.Path:
  """The file of an experiment, given by path or by the name of one that comes with the library.

  Raises:
    InputError: there is none.
  """
  path = pathlib.Path(path_or_name)
  if path_or_name in shipped():
    return shipped()[path_or_name]
  if path.is_file() and path.suffix == '.py':
    return path.absolute()
  found = 'a folder' if path.is_dir() else 'no Python file' if path.is_file() else 'no such file'
  raise InputError(f'experiment {path_or_name}: found {found}, expected a .py file or one of {sorted(shipped())}.')


def load(path_or_name: str) -> ModuleType:
  """Imports an experiment file: a module with `Config`, a frozen dataclass with defaults, and `build(config)`.

  Raises:
    InputError: no such file, an import that fails (named), no `Config` or `build`, a `Config` that is not one.
  """
  path = find(path_or_name)
  # a name of its own for every file: two experiments of the same stem can be loaded in one process
  name = f'mtljax_experiment_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  sys.path.append(str(path.parent))  # a file may import its neighbours
  try:
    spec.loader.exec_module(module)
  except (ImportError, SyntaxError, InputError) as error:
    raise InputError(f'experiment {path}: cannot be imported, {type(error).__name__}: {error}.') from error
  finally:
    sys.path.remove(str(path.parent))
  for part in ('Config', 'build'):
    if not callable(getattr(module, part, None)):
      raise InputError(f'experiment {path}: found no `{part}`, expected a dataclass Config and build(config).')
  config = module.Config
  if not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:
    raise InputError(f'experiment {path}: Config is {config!r}, expected a frozen dataclass.')
  for field in dataclasses.fields(config):
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise InputError(f'experiment {path}: Config.{field.name} has no default, expected one for every field.')
  return module


def build(module: ModuleType, config: Any) -> Experiment:
  """`module.build(config)`, checked.

  Raises:
    InputError: it returns something else than an `Experiment`.
  """
  experiment = module.build(config)
  if not isinstance(experiment, Experiment):
    raise InputError(f'{module.__file__}: build returned {type(experiment).__name__}, expected an mtljax.Experiment.')
  return experiment


def config_from_json(config: type, values: Mapping[str, Any]) -> Any:
  """A `Config` from the JSON of `dataclasses.asdict`: lists become tuples and mappings dataclasses where they were.

  Raises:
    InputError: an unknown field, a value of another type.
  """
  if not isinstance(values, Mapping):
    raise InputError(f'config: found {values!r}, expected {{field: value}}.')
  names = [field.name for field in dataclasses.fields(config)]
  arrays.check_names('config', values, names, all_of=False)
  default, hints = config(), get_type_hints(config)

  def restored(name, value):
    was = getattr(default, name)
    if not _fits(value, hints[name]):
      raise InputError(f'config: {name} is {value!r}, expected a value such as {was!r}.')
    if isinstance(was, tuple) and isinstance(value, list):
      return tuple(value)
    return config_from_json(type(was), value) if dataclasses.is_dataclass(was) and value is not None else value

  return config(**{name: restored(name, value) for name, value in values.items()})


def _fits(value, hint) -> bool:
  """Whether a value of JSON is one of a type; null stands for an infinity, too."""
  kind, args = get_origin(hint) or hint, [arg for arg in get_args(hint) if arg is not ...]
  if kind is Literal:
    return value in args
  if kind is tuple and isinstance(value, list | tuple):
    return all(any(_fits(part, arg) for arg in args) or not args for part in value)
  kinds = {bool: bool, int: int, float: int | float, str: str, tuple: tuple}
  if kind not in kinds or (kind is float and value is None):
    return True
  return isinstance(value, kinds[kind]) and (kind is bool or not isinstance(value, bool))


def fields(cls: type) -> dict[str, tuple[Any, Any, str]]:
  """{field: (type, default, meaning)} of a dataclass and those it inherits from.

  The meaning is taken from 'Attributes:' of the docstring, or from a comment behind or above the field.
  """
  hints, texts, default = get_type_hints(cls, include_extras=True), {}, cls()
  for base in reversed(cls.__mro__[:-1]):
    texts |= _meanings(base)
  return {f.name: (hints[f.name], getattr(default, f.name), texts.get(f.name, '')) for f in dataclasses.fields(cls)}


def _meanings(cls) -> dict[str, str]:
  texts, above = {}, []
  for line in inspect.getsource(cls).splitlines():
    comment, field = re.match(r'\s*#\s*(.*)', line), re.match(r'\s+(\w+)\s*:[^#]*(?:#\s*(.*))?$', line)
    if comment:
      above.append(comment[1])
      continue
    if field and (field[2] or above):
      texts[field[1]] = ' '.join(above) or field[2]
    above = []
  name = None
  for line in inspect.getdoc(cls).partition('Attributes:\n')[2].splitlines():
    found = re.match(r'  (\w+): (.*)', line)
    if found:
      name, texts[found[1]] = found[1], found[2]
    elif name and line.startswith('    '):
      texts[name] += ' ' + line.strip()
  return texts
