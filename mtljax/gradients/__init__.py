"""Gradients of many tasks: the only place with vjp, and the only branch on a balancer's level."""

from mtljax.gradients._engine import task_gradients, task_losses
from mtljax.gradients._examples import OBJECTIVES
from mtljax.gradients._examples import count as count_objectives
from mtljax.gradients._forward import task_weights
from mtljax.gradients._penalties import penalty_weight, scaled_penalty

__all__ = [
  'OBJECTIVES',
  'count_objectives',
  'penalty_weight',
  'scaled_penalty',
  'task_gradients',
  'task_losses',
  'task_weights',
]
