"""A traced function of which other values than its results can be asked: the factors of its products."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class Program:
  """A function traced on its arguments.

  Attributes:
    results: its results, flat, as variables of the program.
    shapes: what it returns, as ShapeDtypeStructs.
  """

  def __init__(self, function: Callable, *args: Any):
    self._closed, self.shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    self._args = jax.tree.leaves(args)
    self.results = self._closed.jaxpr.outvars
    self._made = {id(v): eqn for eqn in self._closed.jaxpr.eqns for v in eqn.outvars}

  def evaluate(self, variables: Sequence[Any]) -> list[jax.Array]:
    """Values of variables; what none of them needs is left to the compiler to drop."""
    jaxpr = self._closed.jaxpr
    jaxpr = jaxpr.replace(outvars=list(variables), debug_info=jaxpr.debug_info.with_unknown_names())
    return jax.core.eval_jaxpr(jaxpr, self._closed.consts, *self._args)

  def product(self, variable: Any) -> tuple[Any, tuple[int, ...]] | None:
    """The `dot_general` that a result ends in, and the axis of its output that every axis of the result is; or None.

    Transposes and casts behind the product are looked through.
    """
    axes = tuple(range(variable.aval.ndim))
    while (eqn := self._made.get(id(variable))) is not None:
      if eqn.primitive.name == 'transpose':
        axes = tuple(eqn.params['permutation'][axis] for axis in axes)
      elif eqn.primitive.name != 'convert_element_type':
        break
      variable = eqn.invars[0]
    return (eqn, axes) if eqn is not None and eqn.primitive.name == 'dot_general' else None
