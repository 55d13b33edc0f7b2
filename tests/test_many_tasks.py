"""The compiled step grows about as the number of tasks: 139 regressions have to compile."""

import jax
import numpy as np
import optax

import mtljax as mtl


def lines(count):
  """Of the compiled program of a step of so many regressions that share one input."""
  draw, names = np.random.default_rng(0), [f't{i}' for i in range(count)]
  batch = {
    'inputs': draw.normal(size=(6, 3)).astype(np.float32),
    'labels': {name: draw.normal(size=6).astype(np.float32) for name in names},
    'mask': {name: np.arange(6) % count != i for i, name in enumerate(names)},
  }
  tasks = tuple(mtl.Task(name, mtl.losses.squared_error) for name in names)
  model = mtl.sharing.hard(mtl.trunks.MLP((4,)), {name: mtl.heads.regress() for name in names})
  optimizer = mtl.task_optimizer(optax.adam(1e-3), {name: optax.adam(1e-3) for name in names})
  balancer = mtl.balancing.equal()
  state = jax.eval_shape(lambda key: mtl.init_state(model, tasks, optimizer, balancer, batch, key), jax.random.key(0))
  step = jax.jit(mtl.make_train_step(model, tasks, optimizer, balancer))
  return step.lower(state, batch).compile().as_text().count('\n')


def test_the_program_grows_as_the_tasks():
  few, more, most = map(lines, (4, 8, 12))
  # 1.06; where each of T readers has a copy of what T tasks say it is 1.27
  assert most - more < 1.1 * (more - few)
