"""The shared table of balancing methods: a row each with what it promises, 'method' or 'method-variant'."""

import dataclasses
from collections.abc import Callable

import numpy as np
import optax

from mtljax import balancing
from mtljax.base import Balancer


@dataclasses.dataclass(frozen=True)
class Case:
  """A row of the table.

  Attributes:
    factory: the balancer; called with the entries of `per_task` that belong to the tasks at hand.
    per_task: arguments with an entry for each of four tasks.
    scale: p where the direction of s J is s^p times that of J; None where there is no such rule.
    row_scale: the direction does not turn when rows are rescaled one by one.
    simplex: weights are non-negative and sum to 1.
    non_conflict: <g_t, d> >= 0 for independent rows, up to this share of |g_t| |d|; None where it is not promised.
    symmetric: no task is singled out by its place.
  """

  factory: Callable[..., Balancer]
  per_task: tuple = ()
  scale: float | None = 1.0
  row_scale: bool = False
  simplex: bool = False
  non_conflict: float | None = None
  symmetric: bool = True

  def make(self, tasks=(0, 1, 2, 3)) -> Balancer:
    """The balancer of these tasks, by number."""
    return self.factory(*(np.asarray(values)[list(tasks)] for values in self.per_task))


b = balancing
SGD = optax.sgd(0.1)
FOUR = (0.5, 2.0, 1.0, 3.0)
CASES = {
  # level losses
  'equal': Case(b.equal),
  'constant': Case(b.constant, per_task=(FOUR,)),
  'rlw': Case(b.rlw, simplex=True),
  'uncertainty': Case(lambda: b.uncertainty(SGD)),
  'dwa': Case(lambda: b.dwa(steps_per_epoch=1)),
  'geometric': Case(b.geometric),
  'scale_invariant': Case(b.scale_invariant),
  'imtl_l': Case(lambda: b.imtl_l(SGD)),
  'famo': Case(b.famo),
  'stch': Case(lambda reference: b.stch(mu=0.5, reference=reference), per_task=((0.1, 0.2, 0.3, 0.4),)),
  'stch_nadir': Case(lambda: b.stch_nadir(mu=0.5, warmup_steps=1)),
  'cosmos': Case(b.cosmos, per_task=(FOUR,)),
  'pbi': Case(b.pbi),
  'go4align': Case(lambda: b.go4align(groups=2, step_size=0.1)),
  'ldc_mtl': Case(lambda: b.ldc_mtl(optimizer=SGD), symmetric=False),
  # level gramian
  'mgda': Case(b.mgda, simplex=True, non_conflict=1e-6),
  'pcgrad': Case(b.pcgrad),
  'gradvac': Case(lambda: b.gradvac(beta=0.5)),
  'cagrad': Case(lambda: b.cagrad(c=0.4)),
  'imtl_g': Case(b.imtl_g, row_scale=True),
  'imtl': Case(lambda: b.imtl(SGD), row_scale=True),
  'nash_mtl': Case(lambda: b.nash_mtl(max_norm=None), scale=0.0, row_scale=True, non_conflict=1e-9),
  'fairgrad': Case(lambda: b.fairgrad(alpha=2.0), scale=-1 / 3, non_conflict=1e-9),
  'pivrg': Case(b.pivrg, scale=-1 / 3, non_conflict=1e-9),
  'aligned_mtl': Case(b.aligned_mtl),
  'upgrad': Case(lambda r: b.upgrad(r, regularization=1e-9), per_task=(FOUR,), non_conflict=1e-4),
  'dualproj': Case(lambda: b.dualproj(regularization=1e-9), non_conflict=1e-4),
  'config': Case(b.config, row_scale=True, non_conflict=1e-9),
  'config-preference': Case(b.config, per_task=(FOUR,), row_scale=True, non_conflict=1e-9),
  'pcd': Case(lambda: b.pcd(tau=0.01), non_conflict=1e-6, symmetric=False),
  'gradnorm': Case(lambda: b.gradnorm(optimizer=SGD)),
  'krum': Case(lambda: b.krum(n_byzantine=0), simplex=True),
  'conicgrad': Case(lambda: b.conicgrad(c=0.7)),
  # level jacobian
  'graddrop': Case(b.graddrop, per_task=((0.0, 0.2, 0.5, 1.0),)),
  'moco': Case(b.moco, scale=None),
  'excess_mtl': Case(b.excess_mtl, scale=None),
  'db_mtl': Case(b.db_mtl, scale=None),
  'trimmed_mean': Case(b.trimmed_mean),
  'config_momentum': Case(b.config_momentum, symmetric=False),
  'bloop': Case(b.bloop, symmetric=False),
  # level oracle
  'modo': Case(b.modo, scale=None),
  'sdmgrad': Case(b.sdmgrad),
  'auto_lambda': Case(b.auto_lambda, scale=None),
  'auto_lambda-primary': Case(lambda primary: b.auto_lambda(primary, optimizer=SGD), per_task=(FOUR,), scale=None),
  'moml': Case(b.moml),
  'forum': Case(b.forum, scale=None),
  # wrappers
  'log_losses': Case(lambda: b.log_losses(b.aligned_mtl())),
  'normalized': Case(lambda: b.normalized(b.aligned_mtl()), scale=0.0, row_scale=True),
  'ema': Case(lambda: b.ema(b.rlw(), decay=0.5), simplex=True),
  'every': Case(lambda: b.every(b.famo(), k=2)),
  'warmup': Case(lambda: b.warmup(b.graddrop(), steps=1)),
}
