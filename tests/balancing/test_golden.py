"""Numbers worked out by hand: one row for each method and for what its name does not tell."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from balancing_asserts import aggregate

from mtljax import balancing as b

DIAGONAL = ((3.0, 0.0), (0.0, 1.0))
CONFLICT = ((1.0, 0.0), (-1.0, 1.0))
EYE = ((1.0, 0.0), (0.0, 1.0))
TWICE = ((2.0, 0.0), (0.0, 2.0))
SIGMOID = 1 / (1 + np.exp(-1.0))

WEIGHTS = {  # balancer, J, losses, extras, weights
  'equal': (b.equal(), EYE, (1.0, 5.0), {}, (1, 1)),
  'constant': (b.constant((0.5, 2.0)), EYE, (1.0, 5.0), {}, (0.5, 2)),
  'constant-schedule': (b.constant(lambda step: jnp.array([1.0, 2.0]) * step), EYE, (1.0, 1.0), {'step': 3}, (3, 6)),
  'rlw': (b.rlw(), EYE, (1.0, 1.0), {'normal': np.log([1.0, 3.0])}, (0.25, 0.75)),
  'geometric': (b.geometric(), EYE, (1.0, 4.0), {}, (1, 0.25)),
  'scale_invariant': (b.scale_invariant(), EYE, (0.5, 4.0), {}, (2, 0.25)),
  'stch': (b.stch(mu=0.5), EYE, (1.0, 3.0), {}, 0.5 * np.exp([1, 3]) / np.exp([1, 3]).sum()),
  'stch-reference': (b.stch(mu=0.5, reference=(0.5, 2.5)), EYE, (1.0, 3.0), {}, (0.25, 0.25)),
  'cosmos': (b.cosmos((1.0, 0.0)), EYE, (1.0, 1.0), {}, (1 - 8**-0.5, 8**-0.5)),
  'pbi': (b.pbi((2.0, 0.0)), EYE, (1.0, 2.0), {}, (1, 5)),
  'go4align': (b.go4align(groups=1, step_size=0.0), EYE, (1.0, 3.0), {}, (4 / 3, 4 / 3)),
  'ldc_mtl': (b.ldc_mtl(penalty=1.0), EYE, (1.0, 2.0), {}, (0.5 - SIGMOID, 0.5 + SIGMOID)),
  'famo': (b.famo(), EYE, (1.0, 4.0), {}, (0.8, 0.2)),
  'mgda': (b.mgda(), DIAGONAL, (1.0, 2.0), {}, (0.1, 0.9)),
  'mgda-l2': (b.mgda('l2'), DIAGONAL, (1.0, 2.0), {}, (0.5, 0.5)),
  'mgda-loss': (b.mgda('loss'), TWICE, (1.0, 2.0), {}, (0.2, 0.8)),
  'mgda-loss+': (b.mgda('loss+'), DIAGONAL, (1.0, 2.0), {}, (0.2, 0.8)),
  'mgda-vertex': (b.mgda(), ((1.0, 0.0), (2.0, 1.0)), (1.0, 1.0), {}, (1, 0)),
  'nash_mtl': (b.nash_mtl(max_norm=None), DIAGONAL, (1.0, 1.0), {}, (1 / 3, 1)),
  'nash_mtl-clipped': (b.nash_mtl(), EYE, (1.0, 1.0), {}, (0.5**0.5, 0.5**0.5)),
  'fairgrad': (b.fairgrad(alpha=2.0), ((8.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (1 / 16, 1)),
  'pivrg': (b.pivrg(), EYE, (1.0, 1.0), {'scores': (0.0, 100.0)}, np.array([2 / 3, 4 / 3]) ** (1 / 3)),
  'imtl_g': (b.imtl_g(), ((2.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (1 / 3, 2 / 3)),
  'krum': (b.krum(), ((1.0,), (1.1,), (0.9,), (-9.0,)), (1.0,) * 4, {}, (1, 0, 0, 0)),
  'krum-2': (b.krum(0, 2), ((1.0,), (1.1,), (0.8,), (-9.0,)), (1.0,) * 4, {}, (0.5, 0.5, 0, 0)),
  'log_losses': (b.log_losses(b.mgda()), TWICE, (1.0, 2.0), {}, (0.2, 0.4)),
  'normalized': (b.normalized(b.mgda()), ((4.0, 0.0), (0.0, 2.0)), (1.0, 1.0), {}, (1 / 8, 1 / 4)),
}

_S = 1 / (1 + np.exp(-(0.5**0.5)))  # both rows of the upper level are along (-1, 1): logits +-0.5 / sqrt 2
DIRECTIONS = {  # balancer, J, losses, extras, direction
  'pcgrad': (b.pcgrad(), CONFLICT, (1.0, 1.0), {}, (0.5, 1.5)),
  'pcgrad-order': (
    b.pcgrad(),
    ((1.0, 0.0), (-1.0, 1.0), (-1.0, -1.0)),
    (1.0, 1.0, 1.0),
    {'order': ((1, 2, 0), (0, 2, 1), (0, 1, 2))},
    # g_0: (1/2, 1/2) after g_1, then (0, 0) after g_2; g_1: (0, 1), then (-1/2, 1/2); g_2: (0, -1), then (-1/2, -1/2)
    (-1.0, 0.0),
  ),
  'gradvac': (b.gradvac(), CONFLICT, (1.0, 1.0), {}, (0.5, 1.5)),
  'cagrad': (b.cagrad(c=0.5, rescale=0), TWICE, (1.0, 1.0), {}, (1.5, 1.5)),
  'cagrad-rescale-1': (b.cagrad(c=0.5), TWICE, (1.0, 1.0), {}, (1.2, 1.2)),
  'cagrad-rescale-2': (b.cagrad(c=0.5, rescale=2), TWICE, (1.0, 1.0), {}, (1, 1)),
  'cagrad-opposed': (b.cagrad(c=0.25, rescale=0), ((1.0, 0.0), (-3.0, 0.0)), (1.0, 1.0), {}, (-0.75, 0)),
  'cagrad-c0': (b.cagrad(c=0.0), CONFLICT, (1.0, 1.0), {}, (0, 0.5)),
  'aligned_mtl': (b.aligned_mtl(), ((4.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (0.5, 0.5)),
  'aligned_mtl-rmse': (b.aligned_mtl(scale_mode='rmse'), ((1.0, 0.0), (0.0, 7.0)), (1.0, 1.0), {}, (2.5, 2.5)),
  'upgrad': (b.upgrad(regularization=1e-7), CONFLICT, (1.0, 1.0), {}, (0.25, 0.75)),
  'dualproj': (b.dualproj(regularization=1e-7), ((1.0, 0.0), (-2.0, 1.0)), (1.0, 1.0), {}, (0, 0.5)),
  'config': (b.config(), DIAGONAL, (1.0, 1.0), {}, (2, 2)),
  'config-preference': (b.config((1.0, 0.0)), DIAGONAL, (1.0, 1.0), {}, (3, 0)),
  'pcd': (b.pcd(tau=0.0), ((0.0, 2.0), (1.0, -1.0)), (1.0, 1.0), {}, (2**0.5, 2**0.5)),
  'pcd-primary': (b.pcd(primary=1, tau=0.0), ((0.0, 2.0), (1.0, -1.0)), (1.0, 1.0), {}, (2**0.5, 0)),
  'imtl': (b.imtl(), ((4.0, 0.0), (0.0, 4.0)), (1.0, 3.0), {}, (2, 2)),
  'gradnorm': (b.gradnorm(), DIAGONAL, (1.0, 2.0), {}, (3, 1)),
  'graddrop': (b.graddrop(), ((3.0, 1.0), (-1.0, 1.0)), (1.0, 1.0), {'uniform': (0.9, 0.5)}, (-1, 2)),
  'graddrop-leak': (b.graddrop((0.5, 0.0)), ((3.0, 0.0), (-1.0, 0.0)), (1.0, 1.0), {'uniform': (0.9, 0.5)}, (0.5, 0)),
  'moco': (b.moco(), ((2.0, 0.0), (0.0, 8.0)), (1.0, 3.0), {'step': 3}, None),
  'db_mtl': (b.db_mtl(), ((2.0, 0.0), (0.0, 8.0)), (1.0, 1.0), {}, (0.8, 0.8)),
  'excess_mtl': (b.excess_mtl(), ((2.0, 0.0), (0.0, 8.0)), (1.0, 1.0), {}, (1, 4)),
  'trimmed_mean': (b.trimmed_mean(), ((0.0,), (9.0,), (1.0,), (3.0,)), (1.0,) * 4, {}, (2,)),
  'config_momentum': (b.config_momentum(), DIAGONAL, (1.0, 1.0), {'step': 1}, (0, 1)),
  'conicgrad': (b.conicgrad(c=0.8), DIAGONAL, (1.0, 1.0), {}, (0.9, 1.3)),  # (1.5, 0.5) turned by arccos 0.8
  'conicgrad-mgda': (b.conicgrad(c=0.5), DIAGONAL, (1.0, 1.0), {}, (0.5, 1.5)),
  'conicgrad-mean': (b.conicgrad(c=1.0), DIAGONAL, (1.0, 1.0), {}, (1.5, 0.5)),
  'modo': (b.modo(gamma=0.125, rho=0.0), ((2.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (0.8125, 0.59375)),
  'modo-corner': (b.modo(gamma=1.0), ((2.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (0, 1)),
  # A = diag(4, 1) / 1.5^2, w = (1 - 0.1 A) / 2 projected: (7, 8) / 15
  'sdmgrad': (b.sdmgrad(0.0, 1, 0.1, 0.0), ((2.0, 0.0), (0.0, 1.0)), (1.0, 1.0), {}, (14 / 15, 8 / 15)),
  'sdmgrad-mean': (b.sdmgrad(1e6), DIAGONAL, (1.0, 1.0), {}, (1.5, 0.5)),
  'auto_lambda': (b.auto_lambda((1.0, 0.0), optimizer=optax.sgd(1.0)), DIAGONAL, (1.0, 1.0), {}, (3.0, 0.1)),
  'moml': (b.moml(optimizer=optax.sgd(0.5)), ((2.0, 0.0), (1.0, 0.5)), (1.0, 1.0), {}, (1 + _S, 0.5 - 0.5 * _S)),
  'forum': (b.forum(), ((3.0, 0.0), (0.0, 4.0)), (1.0, 1.0), {}, (0.5, 0.5)),
  'forum-binding': (b.forum(rho=1.0), ((3.0, 4.0),), (1.0,), {}, (3, 4)),  # nu = 1 - 5 / 25
  'bloop': (b.bloop(strength=0.5), ((2.0, 0.0), (-7.0, 8.0)), (1.0, 1.0), {}, (2, 4)),
}
# one call: y = unit rows (1 - beta k^-.5 = .75 of 0 stays), so y_t = l_t / 4 and the push is y_t^2 / 2
_Y = np.array([0.25, 0.75])
_W = np.exp(0.5 - 0.05 * _Y**2 / 2)
DIRECTIONS['moco'] = (*DIRECTIONS['moco'][:4], _Y * _W / _W.sum())


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights(name):
  balancer, J, losses, extras, want = WEIGHTS[name]
  result = aggregate(balancer, jnp.array(J), jnp.array(losses), **extras)
  np.testing.assert_allclose(result.weights, want, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(result.direction, result.weights @ jnp.array(J), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', DIRECTIONS)
def test_direction(name):
  balancer, J, losses, extras, want = DIRECTIONS[name]
  result = aggregate(balancer, jnp.array(J), jnp.array(losses), **extras)
  np.testing.assert_allclose(result.direction, want, rtol=1e-4, atol=1e-4)


def sequence(balancer, losses, J=None, after=None, present=None):
  """The results of a run of calls, each with the state of the one before."""
  state, results = None, []
  for step, l in enumerate(losses):
    rows = jnp.eye(len(l)) if J is None else jnp.array(J[step])
    later = None if after is None else jnp.array(after[step])
    here = None if present is None else jnp.array(present[step])
    result = b.aggregate(balancer, rows, jnp.array(l), state, step=step, losses_after=later, present=here)
    state = result.state
    results.append(result)
  return results


def test_uncertainty_steps_after_use():
  first, second = sequence(b.uncertainty(optax.sgd(0.1)), [(1.0, 3.0)] * 2)
  np.testing.assert_allclose(first.weights, (0.5, 0.5))
  np.testing.assert_allclose(second.weights, (0.5, 0.5 * np.exp(-0.1)), rtol=1e-6)


def test_imtl_l_steps_after_use():
  first, second = sequence(b.imtl_l(optax.sgd(0.25)), [(1.0, 3.0)] * 2)
  np.testing.assert_allclose(first.weights, (1, 1))
  np.testing.assert_allclose(second.weights, (1, np.exp(-0.5)), rtol=1e-6)


def test_dwa_compares_the_last_two_epochs():
  losses = [(6.0, 1.0), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0), (9.0, 9.0)]  # epochs of two steps: means (4, 1), (2, 1)
  results = sequence(b.dwa(steps_per_epoch=2, temperature=1.0), losses)
  for result in results[:4]:
    np.testing.assert_allclose(result.weights, (1, 1), rtol=1e-6)
  want = 2 * np.exp([0.5, 1.0]) / np.exp([0.5, 1.0]).sum()
  np.testing.assert_allclose(results[4].weights, want, rtol=1e-6)


def test_dwa_skips_epochs_that_a_task_missed():
  losses = [(4.0, 1.0), (2.0, 1.0), (2.0, 7.0), (1.0, 1.0)]
  present = [(True, True), (True, True), (True, False), (True, True)]
  last = sequence(b.dwa(steps_per_epoch=1, temperature=1.0), losses, present=present)[-1]
  np.testing.assert_allclose(last.weights, (1, 1), rtol=1e-6)  # both ratios are 1: (2 / 2, 1 / 1)


def test_famo_favours_the_task_that_improved_less():
  results = sequence(b.famo(weight_decay=0.0), [(1.0, 4.0)] * 2, after=[(0.5, 4.0)] * 2)
  np.testing.assert_allclose(results[0].state.logits, (-0.025, 0.025), rtol=1e-4)  # Adam's first step is its rate
  z = np.exp([-0.025, 0.025])
  ratio = z / np.array([1.0, 4.0])
  np.testing.assert_allclose(results[1].weights, ratio / ratio.sum(), rtol=1e-5)


def test_famo_decay_is_in_the_gradient():
  """Unchanged losses leave only the decay, whose size Adam normalises away: a step of the full rate towards 0."""
  first, second, third = sequence(b.famo(), [(1.0, 1.0)] * 3, after=[(0.5, 1.0), (1.0, 1.0), (1.0, 1.0)])
  assert abs(first.state.logits[0]) == pytest.approx(0.025, rel=1e-4)
  decoupled = 0.025 * (1 - 0.025 * 1e-3)
  assert abs(third.state.logits[0] - second.state.logits[0]) > 100 * (0.025 - decoupled)


def test_stch_nadir_after_the_warm_up():
  first, second = sequence(b.stch_nadir(warmup_steps=1), [(1.0, 4.0), (1.0, 2.0)])
  np.testing.assert_allclose(first.weights, (1, 0.25))
  np.testing.assert_allclose(second.weights, (4 / 3, 1 / 3), rtol=1e-6)


def test_go4align_groups_and_shares():
  result = aggregate(b.go4align(groups=2, step_size=1.0), jnp.eye(3), jnp.array([1.0, 2.0, 2.2]))
  share = np.exp([-1.0, -2.0, -2.2])
  v = share / share.sum() * 5.2 / np.array([1.0, 2.0, 2.2])
  np.testing.assert_allclose(result.weights, (v[0], v[1:].mean(), v[1:].mean()), rtol=1e-5)


def test_gradvac_targets_move_after_use():
  first, second = sequence(b.gradvac(beta=0.5), [(1.0, 1.0)] * 2, J=[CONFLICT] * 2)
  target = -0.5 * 0.5**0.5
  np.testing.assert_allclose(first.state, ((0, target), (target, 0)), rtol=1e-6)
  turned = np.array(first.direction) - np.array(second.direction)
  assert np.linalg.norm(turned) > 0.1  # cosines of -0.35 are now allowed


def test_nash_mtl_uses_unclipped_weights_again():
  J = [EYE, TWICE, TWICE]
  results = sequence(b.nash_mtl(max_norm=1.0, update_every=2), [(1.0, 1.0)] * 3, J=J)
  np.testing.assert_allclose(results[1].state, (1, 1), rtol=1e-5)
  np.testing.assert_allclose(results[1].weights, (8**-0.5, 8**-0.5), rtol=1e-5)
  np.testing.assert_allclose(results[2].state, (0.5, 0.5), rtol=1e-5)


def test_pcd_norms_are_debiased_averages():
  """|g_1|^2 is 1, then 9: with beta = 1/2 the debiased mean is (1/4 + 9/2) / (3/4) = 19/3."""
  balancer = b.pcd(tau=0.5, beta=0.5)
  J = [((1.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (0.0, 3.0))]
  second = sequence(balancer, [(1.0, 1.0)] * 2, J=J)[1].direction
  unit = 3 / np.sqrt(19 / 3)  # the second row, normalised
  want = np.array([1.0, 0.5 * unit])  # least second coordinate with unit * d >= unit^2 / 2
  np.testing.assert_allclose(second, want / np.linalg.norm(want), rtol=1e-5)


def test_gradnorm_favours_the_task_that_lags():
  """Equal norms: the task whose loss fell less gets more weight."""
  results = sequence(b.gradnorm(alpha=1.0, optimizer=optax.sgd(0.1)), [(1.0, 1.0), (1.0, 0.5), (1.0, 0.5)])
  np.testing.assert_allclose(results[1].weights, (1, 1), rtol=1e-5)
  assert results[2].weights[0] > 1 > results[2].weights[1]


def test_moco_second_step():
  results = sequence(b.moco(gamma=0.0), [(1.0, 1.0)] * 2, J=[((2.0, 0.0), (0.0, 8.0))] * 2)
  np.testing.assert_allclose(results[0].direction, (0.25, 0.25), rtol=1e-5)
  tracked = 0.5 + 0.5 * 2**-0.5 * 0.5
  np.testing.assert_allclose(results[1].direction, (tracked / 2, tracked / 2), rtol=1e-5)


def test_excess_mtl_second_step():
  J = [((2.0, 0.0), (0.0, 8.0)), ((4.0, 0.0), (0.0, 8.0))]
  second = sequence(b.excess_mtl(step_size=1.0), [(1.0, 1.0)] * 2, J=J)[1]
  growth = np.array([16 / 20**0.5 / 2, 64 / 128**0.5 / 8])
  w = np.exp(growth) / np.exp(growth).sum()
  np.testing.assert_allclose(second.direction, w * np.array([4.0, 8.0]), rtol=1e-5)


def test_config_momentum_visits_one_task_a_step():
  J = [DIAGONAL, ((99.0, 99.0), (0.0, 1.0))]
  results = sequence(b.config_momentum(beta=0.5), [(1.0, 1.0)] * 2, J=J)
  np.testing.assert_allclose(results[0].direction, (3, 0), atol=1e-5)
  np.testing.assert_allclose(results[1].direction, (2, 2), rtol=1e-5)  # the first row is still (3, 0)


def test_bloop_projects_on_the_average_before_today():
  J = [((2.0, 0.0), (0.0, 0.0)), ((0.0, 4.0), (3.0, 5.0))]
  results = sequence(b.bloop(strength=1.0, rho=0.5), [(1.0, 1.0)] * 2, J=J)
  np.testing.assert_allclose(results[1].direction, (0, 9), atol=1e-5)  # (3, 5) loses what is along (2, 0)
  np.testing.assert_allclose(results[1].state.average[0], (1, 2), rtol=1e-6)


def test_ema_starts_at_the_inner_weights():
  inner = b.constant(lambda step: jnp.array([1.0, 10.0]) * (step + 1))
  first, second = sequence(b.ema(inner, decay=0.9), [(1.0, 1.0)] * 2)
  np.testing.assert_allclose(first.weights, (1, 10))
  np.testing.assert_allclose(second.weights, (1.1, 11), rtol=1e-6)


def test_every_renews_when_due_and_for_a_new_task():
  inner = b.constant(lambda step: jnp.ones(2) * (step + 1))
  present = [(True, False), (True, False), (True, True), (True, True), (True, True)]
  results = sequence(b.every(inner, k=4), [(1.0, 1.0)] * 5, present=present)
  found = [tuple(np.asarray(result.weights)) for result in results]
  assert found == [(1, 0), (1, 0), (3, 3), (3, 3), (5, 5)]


def test_every_shows_losses_only_to_an_update_of_the_same_step():
  """Step 1 is not due and misses a task: what is seen after it belongs to no weights."""
  everybody, one = (True, True), (True, False)
  balancer = b.every(b.famo(), k=2)
  after = [(0.5, 1.0), (0.1, np.nan)]
  first, second = sequence(balancer, [(1.0, 1.0)] * 2, after=after, present=[everybody, one])
  assert float(first.state.inner.logits[0]) != 0
  np.testing.assert_array_equal(first.state.inner.logits, second.state.inner.logits)


def test_warmup_then_a_fresh_start():
  first, second = sequence(b.warmup(b.mgda(), steps=1), [(1.0, 1.0)] * 2, J=[DIAGONAL] * 2)
  np.testing.assert_allclose(first.weights, (1, 1))
  np.testing.assert_allclose(second.weights, (0.1, 0.9), rtol=1e-5)
