"""The nets that are measured, and how: contestants taken in turn in one run, medians of the ratio within a round."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtljax as mtl

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Workload:
  """Random examples, a trunk, and a dense head of ten classes for each of `tasks` tasks."""

  shape: tuple[int, ...]  # of an example
  trunk: Callable[..., nn.Module]  # dtype=None, of the computation
  batch: int
  tasks: int

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(f't{i}' for i in range(self.tasks))

  def data(self) -> dict[str, Any]:
    """The batch that every step sees."""
    r = np.random.default_rng(0)
    x = r.normal(size=(self.batch, *self.shape))
    labels = {name: jnp.asarray(r.integers(0, CLASSES, self.batch)) for name in self.names}
    return {'inputs': jnp.asarray(x, jnp.float32), 'labels': labels}

  def heads(self, dtype=None) -> dict[str, nn.Module]:
    return {name: nn.Dense(CLASSES, dtype=dtype) for name in self.names}

  def problem(self, dtype=None) -> tuple[mtl.Model, tuple[mtl.Task, ...], optax.GradientTransformation]:
    """Model, tasks, and Adam for the trunk and for each head."""
    tasks = tuple(mtl.Task(name, loss=mtl.losses.softmax_cross_entropy) for name in self.names)
    adam = optax.adam(1e-3)
    optimizer = mtl.task_optimizer(shared=adam, tasks={name: adam for name in self.names})
    return mtl.sharing.hard(self.trunk(dtype=dtype), self.heads(dtype)), tasks, optimizer


def mlp(tasks: int) -> Workload:
  """128-4x512, batch 256: b2, b8, b40."""
  return Workload((128,), lambda dtype=None: mtl.trunks.MLP((512,) * 4, dtype=dtype), 256, tasks)


def resnet(width: int, batch: int) -> Workload:
  """ResNet-18 with GroupNorm on 32x32 pixels, three tasks."""
  trunk = lambda dtype=None: mtl.trunks.resnet18(width=width, groups=8, dtype=dtype)
  return Workload((32, 32, 3), trunk, batch, 3)


WORKLOADS = {
  's8': Workload((32,), lambda dtype=None: mtl.trunks.MLP((64, 64), dtype=dtype), 64, 8),
  'b2': mlp(2),
  'b8': mlp(8),
  'b40': mlp(40),
  'lenet': Workload((36, 36, 1), lambda dtype=None: mtl.trunks.LeNet((10, 20), 50, dtype=dtype), 256, 2),
  'resnet': resnet(16, 32),
  # what keeps an accelerator busy
  'wide': Workload((1024,), lambda dtype=None: mtl.trunks.MLP((4096,) * 4, dtype=dtype), 2048, 8),
  'resnet64': resnet(64, 256),
}


class Stepper:
  """A compiled step of ours with its state; calling it makes a step and returns what to wait for."""

  def __init__(self, workload: Workload, balancer, **options):
    model, tasks, optimizer = workload.problem()
    self.batch = workload.data()
    self.state = mtl.init_state(model, tasks, optimizer, balancer, self.batch, jax.random.key(0))
    self.params = jax.tree.map(np.array, self.state.params)  # the first ones
    self.step = mtl.compile_step(mtl.make_train_step(model, tasks, optimizer, balancer, **options))

  def __call__(self):
    self.state, self.info = self.step(self.state, self.batch)
    return self.state, self.info


class Ratio(NamedTuple):
  """Of two contestants: the median over rounds, half its interquartile range; of fastest rounds; of processor time.

  Other jobs on the machine disturb the last two least. Processor time counts threads that wait busily, too.
  """

  median: float
  spread: float
  best: float
  cpu: float

  def __str__(self):
    return f'{self.median:.2f} ± {self.spread:.2f} ({self.best:.2f}, {self.cpu:.2f})'


def seconds_of(call: Callable[[], Any], calls: int) -> tuple[float, float]:
  """Seconds a call, and seconds of the processor."""
  start, cpu = time.perf_counter(), time.process_time()
  for _ in range(calls):
    out = call()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls


def in_turn(
  contestants: Mapping[str, Callable[[], Any]], rounds: int, window: float = 0.05, limit: float = 60.0
) -> tuple[dict[str, float], Callable[[str, str], 'Ratio']]:
  """Calls all of them in turn, as often as fills `window` seconds each, `rounds` times or for `limit` seconds.

  Returns:
    Seconds a call (medians), and the ratio of two of them, `(name, to) -> Ratio`.
  """
  calls = {}
  for name, call in contestants.items():
    seconds_of(call, 2)  # compiled, warm
    calls[name] = int(np.clip(round(window / seconds_of(call, 1)[0]), 1, 1000))
  table, clock = [], time.perf_counter()
  while len(table) < rounds and (len(table) < 3 or time.perf_counter() - clock < limit):
    table.append([seconds_of(call, calls[name]) for name, call in contestants.items()])
  wall, cpu = (dict(zip(contestants, column)) for column in np.moveaxis(np.array(table), 0, -1).swapaxes(0, 1))

  def ratio(name, to):
    low, middle, high = np.percentile(wall[name] / wall[to], (25, 50, 75))
    processor = np.median(cpu[name] / cpu[to])
    return Ratio(float(middle), float(high - low) / 2, float(wall[name].min() / wall[to].min()), float(processor))

  return {name: float(np.median(column)) for name, column in wall.items()}, ratio


def about(*packages: str) -> str:
  """One line: versions, hardware, threads, load, date."""
  versions = [f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'flax', 'optax', *packages)]
  device = jax.devices()[0]
  cores = len(os.sched_getaffinity(0))
  return ', '.join(
    [
      *versions,
      f'Python {platform.python_version()}',
      f'{device.platform} ({_processor() if device.platform == "cpu" else device.device_kind}), {cores} cores',
      f'load {os.getloadavg()[0]:.1f}',
      datetime.date.today().isoformat(),
    ]
  )


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as lines:
      return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return platform.machine()
