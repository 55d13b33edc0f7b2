"""Performance-informed variance reduction."""

from typing import Any

import jax.numpy as jnp

from mtljax import linalg
from mtljax.balancing import _base
from mtljax.base import Balancer


def pivrg(bound: float = 2.0, min_temperature: float = 10.0) -> Balancer:
  """Alpha-fair gains (alpha = 2) weighted by how far each task is behind its single-task model.

  p = T softmax(scores / temperature), temperature = max((max scores - min scores) / log bound, min_temperature);
  w > 0 with (G w)_t = (p_t / w_t)^(1 / 2).

  Args:
    bound: > 1, the largest ratio of two p.
    min_temperature: > 0, in the unit of the scores.

  Returns:
    A balancer of level gramian. Extra: `scores` f[T], the loss of performance against single-task training in
    percent (larger: worse), as of the last evaluation; without it all are 0, as before the authors' first evaluation.

  Departure: Newton for the authors' least squares; the direction is neither multiplied by T nor clipped.

  Needs: `scores`: how far behind single-task runs, from evaluations.
  Helps: tasks that stay behind their single-task models.
  Breaks: without scores it is fairgrad(2); the direction grows as gradients vanish: clip it.

  References: Qin et al., Revisiting Fairness in Multitask Learning: A Performance-Driven Approach for Variance
  Reduction, 2025, https://openaccess.thecvf.com/content/CVPR2025/papers/Qin_Revisiting_Fairness_in_Multitask_Learning_A_Performance-Driven_Approach_for_Variance_CVPR_2025_paper.pdf

  >>> from mtljax import balancing
  >>> J = jnp.array([[8.0, 0.0], [0.0, 1.0]])
  >>> print(balancing.aggregate(balancing.pivrg(), J).weights.round(4))
  [0.0625 1.    ]
  """
  _base.check_number('pivrg', 'bound', bound, 'a number > 1', lambda x: x > 1)
  _base.check_number('pivrg', 'min_temperature', min_temperature, 'a number > 0', lambda x: x > 0)

  def update(G, state, *, present, scores: Any = None, **_):
    scores = jnp.zeros(len(G), G.dtype) if scores is None else jnp.asarray(scores, G.dtype)
    _base.check_length('scores', scores, len(G))
    scores = jnp.where(present, scores, 0)
    spread = jnp.max(jnp.where(present, scores, -jnp.inf)) - jnp.min(jnp.where(present, scores, jnp.inf))
    temperature = jnp.maximum(jnp.where(jnp.isfinite(spread), spread, 0) / jnp.log(bound), min_temperature)
    p = jnp.sum(present) * _base.softmax(scores / temperature, present)
    return linalg.power_fair(G, jnp.full((), 2, G.dtype), present, p), state

  return _base.make('gramian', update)
