"""Deep multi-task learning in JAX: one trunk, many heads, every balancing method, one compiled step."""

from mtljax import (
  analysis,
  balancing,
  checkpoint,
  data,
  evaluate,
  gradients,
  heads,
  learned_relations,
  losses,
  metrics,
  parallel,
  penalties,
  relations,
  sharing,
  trunks,
)
from mtljax.base import (
  Balancer,
  InputError,
  Metric,
  Model,
  Penalty,
  StepInfo,
  Task,
  TaskGradients,
  TrainState,
)
from mtljax.experiment import Experiment
from mtljax.loop import fit
from mtljax.optim import task_optimizer
from mtljax.parallel import compile_step
from mtljax.train_step import init_state, make_diagnostics, make_train_step
from mtljax.version import __version__

__all__ = [
  'Balancer',
  'Experiment',
  'InputError',
  'Metric',
  'Model',
  'Penalty',
  'StepInfo',
  'Task',
  'TaskGradients',
  'TrainState',
  '__version__',
  'analysis',
  'balancing',
  'checkpoint',
  'compile_step',
  'data',
  'evaluate',
  'fit',
  'gradients',
  'heads',
  'init_state',
  'learned_relations',
  'losses',
  'make_diagnostics',
  'make_train_step',
  'metrics',
  'parallel',
  'penalties',
  'relations',
  'sharing',
  'task_optimizer',
  'trunks',
]
