"""Every row of the table holds to what it promises; the assertions are in `balancing_asserts.py`."""

import balancing_asserts as asserts
import pytest
from balancing_cases import CASES

from mtljax import balancing

pytestmark = pytest.mark.usefixtures('x64')


def rows(promise=lambda case: True):
  return pytest.mark.parametrize('name', [name for name, case in CASES.items() if promise(case)])


def test_every_method_has_a_row():
  assert {name.split('-')[0] for name in CASES} == set(balancing.METHODS)


@rows()
def test_finite(name):
  asserts.assert_finite(name)


@rows(lambda case: case.scale is not None)
def test_scale_rule(name):
  asserts.assert_scale_rule(name)


@rows(lambda case: case.row_scale)
def test_row_scale_rule(name):
  asserts.assert_row_scale_rule(name)


@rows(lambda case: case.symmetric)
def test_permutation_equivariant(name):
  asserts.assert_permutation_equivariant(name)


@rows(lambda case: case.simplex)
def test_simplex(name):
  asserts.assert_simplex(name)


@rows(lambda case: case.non_conflict is not None)
def test_non_conflicting(name):
  asserts.assert_non_conflicting(name)


@rows()
def test_absent_is_deleted(name):
  asserts.assert_absent_is_deleted(name)


@rows()
def test_rests_when_all_are_absent(name):
  asserts.assert_rests_when_all_are_absent(name)
