"""Deep multi-task learning in JAX: one trunk, many heads, every balancing method, one compiled step."""

from mtljax import (
  analysis,
  balancing,
  data,
  evaluate,
  gradients,
  heads,
  losses,
  metrics,
  parallel,
  penalties,
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
from mtljax.optim import task_optimizer
from mtljax.parallel import compile_step
from mtljax.train_step import init_state, make_diagnostics, make_train_step

__version__ = '0.1.0'

__all__ = [
  'Balancer',
  'InputError',
  'Metric',
  'Model',
  'Penalty',
  'StepInfo',
  'Task',
  'TaskGradients',
  'TrainState',
  'analysis',
  'balancing',
  'compile_step',
  'data',
  'evaluate',
  'gradients',
  'heads',
  'init_state',
  'losses',
  'make_diagnostics',
  'make_train_step',
  'metrics',
  'parallel',
  'penalties',
  'sharing',
  'task_optimizer',
  'trunks',
]
