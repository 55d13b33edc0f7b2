"""Every mode gives the numbers of one device, to rounding: the table is in `parity_cases.py`.

By default each mode meets each (level, at) once, with architectures, methods, kinds of batch and dtypes in turn. The
whole product: `MTLJAX_TEST_DEVICES=8 pytest -m full tests/test_parity.py`, on 2, 4 (the default) or 8 virtual devices.
"""

import itertools

import pytest
from parity_cases import (
  ARCHITECTURES,
  MEMORY,
  METHODS,
  MODES,
  MULTI,
  NOISY,
  OPTIONS,
  PAIRS,
  ROTATION,
  SINGLE,
  Case,
  check_same,
  kinds,
  reference,
  train,
)

import mtljax as mtl

PAIR_OF = {method: pair for pair, methods in PAIRS.items() for method in methods}
FIRST = [methods[0] for methods in PAIRS.values()]
# (method, kind, what is found)
REFUSED = [
  ('graddrop-refused', 'rows', "balancer of level 'jacobian', expected 'losses' or 'gramian'"),
  ('modo-refused', 'rows', "balancer of level 'oracle', expected 'losses' or 'gramian'"),
  ('equal-features', 'multi', 'multi-input batch'),
]


def check(mode, case):
  if case.refused:
    with pytest.raises(mtl.InputError, match=f'^{case.refused}'):
      train(mode, case)
  else:
    check_same(train(mode, case), reference(case), case.tolerance)


@pytest.mark.parametrize('mode, case', [pytest.param(*row, id='-'.join((row[0], *row[1]))) for row in ROTATION])
def test_parity(mode, case):
  check(mode, case)


def test_everything_takes_part():
  met, cases = {(mode, PAIR_OF[case.method]) for mode, case in ROTATION}, [case for _, case in ROTATION]
  assert met == set(itertools.product(MODES, PAIRS))
  assert {case.method for case in cases} == set(METHODS)
  assert {case.kind for case in cases} == {*SINGLE, *MULTI}
  assert {case.option for case in cases} == {*OPTIONS} - {'examples'}
  assert {case.dtype for case in cases} == {'float32', 'float64'}
  assert {case.architecture for case in cases} == set(ARCHITECTURES) >= set(mtl.sharing.ARCHITECTURES)
  for method, (make, at) in METHODS.items():
    assert PAIR_OF[method] == (make().level, at)


@pytest.mark.full
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('method', FIRST)
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_architectures(architecture, method, mode):
  """Kinds of batch in turn."""
  some = kinds(architecture, method)
  turn = [*ARCHITECTURES].index(architecture) + [*METHODS].index(method)
  check(mode, Case(architecture, method, some[turn % len(some)], 'float64'))


@pytest.mark.full
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', (*SINGLE, *MULTI))
@pytest.mark.parametrize('method', METHODS)
def test_methods(method, kind, mode):
  check(mode, Case('hard', method, kind))


@pytest.mark.full
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('method', FIRST)
@pytest.mark.parametrize('option', [option for option in OPTIONS if option not in ('plain', 'examples')])
def test_options(option, method, mode):
  """Those that save memory give the numbers of the step without them, on one device."""
  case = Case('hard-plain' if option in MEMORY else 'hard', method, 'rows', 'float64', option)
  plain = case._replace(option='plain') if option in MEMORY else case
  check_same(train(mode, case), reference(plain), case.tolerance)


@pytest.mark.parametrize('mode', [*MODES[:2], *(pytest.param(mode, marks=pytest.mark.full) for mode in MODES[2:])])
def test_objectives_of_examples(mode):
  """The compiler deals them out; on slices of the batch they are refused."""
  case = Case('hard-plain', 'mgda', 'rows', 'float64', 'examples')
  if mode in ('sharded', 'model'):
    check_same(train(mode, case), reference(case), case.tolerance)
  else:
    with pytest.raises(mtl.InputError, match="expected mode 'jit' or 'sharded'"):
      train(mode, case)


@pytest.mark.full
@pytest.mark.parametrize('mode', ['sharded', 'model'])
@pytest.mark.parametrize('architecture', NOISY)
def test_noise_that_the_compiler_deals_out(architecture, mode):
  """It is that of one device; with pmap and shard_map every device draws its own."""
  case = Case(architecture, 'pcgrad', 'rows', 'float64')
  check_same(train(mode, case), reference(case), case.tolerance)


@pytest.mark.parametrize('mode', ['jit', *MODES])
@pytest.mark.parametrize('method, kind, found', REFUSED, ids=['jacobian', 'oracle', 'multi-input'])
def test_pairs_that_are_refused(method, kind, found, mode):
  with pytest.raises(mtl.InputError, match=f"^at='features': found a {found}"):
    train(mode, Case('hard', method, kind))


def test_nothing_shared_has_no_direction():
  for method in ('graddrop', 'auto_lambda'):
    check('jit', Case('soft', method))
