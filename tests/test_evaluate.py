"""Evaluation: how often the trunk is traced, and decoders that run outside of jit on compiled features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtljax as mtl
from mtljax import evaluate

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
LABELS = {'a': np.array([0, 1, 1, 0]), 'b': np.array([1, 1, 0, 0])}
SINGLE = {'inputs': X, 'labels': LABELS}
MULTI = {task: {'inputs': X, 'labels': labels} for task, labels in LABELS.items()}


def decode(head, inputs):
  assert not isinstance(inputs, jax.core.Tracer)
  return head(2 * inputs).argmax(axis=-1)


def problem(traced):
  """A model that notes every trace of its trunk, and tasks of which both are decoded."""

  def apply(params, state, x, *, train, key):
    traced.append(isinstance(x, jax.core.Tracer))
    return jnp.tanh(x @ params['w']), state

  trunk = mtl.sharing.Module(lambda key, x: ({'w': jnp.eye(3)}, {}), apply)
  gated = lambda params, state, z, *, train, key, inputs: ((z * inputs) @ params['v'], state)
  head = lambda sign: mtl.sharing.Module(lambda key, z, *, inputs: ({'v': sign * jnp.eye(3)[:, :2]}, {}), gated)
  model = mtl.sharing.hard(trunk, {'a': head(1), 'b': head(-1)})
  right = {'right': mtl.metrics.accuracy()}
  tasks = tuple(mtl.Task(t, mtl.losses.softmax_cross_entropy, metrics=right, decode=decode) for t in LABELS)
  return model, tasks, *model.init(jax.random.key(0), dict.fromkeys(LABELS, X))


@pytest.mark.parametrize('batch, passes', [(SINGLE, 1), (MULTI, 2)], ids=['single', 'multi'])
def test_decoders_run_on_features_that_are_compiled_once(batch, passes):
  traced = []
  model, tasks, params, state = problem(traced)
  traced.clear()
  eval_step = jax.jit(evaluate.make_eval_step(model, tasks))
  first = evaluate.evaluate(model, tasks, params, state, [batch, batch], eval_step)
  outputs = (np.tanh(X) * 2 * X)[:, :2]
  assert first['a']['right'] == (outputs.argmax(axis=1) == LABELS['a']).mean()
  assert first['b']['right'] == (outputs.argmin(axis=1) == LABELS['b']).mean()
  assert first == evaluate.evaluate(model, tasks, params, state, [batch], eval_step)
  assert traced == [True] * 2 * passes  # the losses and the features; one input goes through the trunk once for both
