"""Every row of the table holds to what it promises; the assertions are in `balancing_asserts.py`."""

import balancing_asserts as asserts
import pytest
from balancing_cases import CASES

from mtljax import balancing


def promised(case):
  """The properties of a row."""
  yield 'finite'
  yield 'absent_is_deleted'
  yield 'rests_when_all_are_absent'
  yield from ['scale_rule'] * (case.scale is not None)
  yield from ['row_scale_rule'] * case.row_scale
  yield from ['permutation_equivariant'] * case.symmetric
  yield from ['simplex'] * case.simplex
  yield from ['non_conflicting'] * (case.non_conflict is not None)


# method by method, so that what is compiled for one is used while it is there
PAIRS = [(name, what) for name, case in CASES.items() for what in promised(case)]


@pytest.mark.parametrize(('name', 'what'), PAIRS)
def test_property(name, what, x64):
  getattr(asserts, f'assert_{what}')(name)


def test_every_method_has_a_row():
  assert {name.split('-')[0] for name in CASES} == set(balancing.METHODS)
