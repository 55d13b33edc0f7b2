"""The nets of `workloads` in PyTorch, with the same weights."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
  """Modules by the names that flax gives them, called by `run`."""

  def __init__(self, modules: Mapping[str, nn.Module], run):
    super().__init__()
    for name, module in modules.items():
      self.add_module(name, module)
    self.run = run

  def forward(self, x):
    return self.run(self._modules, x)


def mlp(inputs: int, widths) -> Net:
  sizes = [inputs, *widths]
  layers = {f'Dense_{i}': nn.Linear(a, b) for i, (a, b) in enumerate(zip(sizes, sizes[1:]))}

  def run(layers, x):
    x = x.flatten(1)
    for layer in layers.values():
      x = torch.relu(layer(x))
    return x

  return Net(layers, run)


def lenet(side: int, features, hidden: int) -> Net:
  sizes = [1, *features]
  modules = {f'Conv_{i}': nn.Conv2d(a, b, 5, padding=2) for i, (a, b) in enumerate(zip(sizes, sizes[1:]))}
  modules['Dense_0'] = nn.Linear((side // 2 ** len(features)) ** 2 * features[-1], hidden)

  def run(modules, x):
    for name, module in modules.items():
      if name.startswith('Conv'):
        x = nn.functional.max_pool2d(torch.relu(module(x)), 2)
    return torch.relu(modules['Dense_0'](x.flatten(1)))

  return Net(modules, run)


def resnet18(width: int, groups: int) -> Net:
  def conv(a, b, size, stride=1):
    return nn.Conv2d(a, b, size, stride, size // 2, bias=False), nn.GroupNorm(groups, b, eps=1e-6)

  def block(a, b, stride):
    pairs = [conv(a, b, 3, stride), conv(b, b, 3)] + ([conv(a, b, 1, stride)] if stride > 1 else [])
    modules = {f'{kind}_{i}': m for i, pair in enumerate(pairs) for kind, m in zip(('Conv', 'GroupNorm'), pair)}

    def run(m, x):
      y = torch.relu(m['GroupNorm_0'](m['Conv_0'](x)))
      y = m['GroupNorm_1'](m['Conv_1'](y))
      return torch.relu(y + (m['GroupNorm_2'](m['Conv_2'](x)) if stride > 1 else x))

    return Net(modules, run)

  def chain(modules):
    def run(modules, x):
      for module in modules.values():
        x = module(x)
      return x

    return Net(modules, run)

  first = dict(zip(('Conv_0', 'GroupNorm_0'), conv(3, width, 3)))
  parts = {'stem': Net(first, lambda m, x: torch.relu(m['GroupNorm_0'](m['Conv_0'](x))))}
  for i in range(4):
    b = width * 2**i
    a, stride = (b // 2, 2) if i else (b, 1)
    parts[f'stage{i + 1}'] = chain({'block0': block(a, b, stride), 'block1': block(b, b, 1)})
  net = chain(parts)
  return Net({'net': net}, lambda m, x: m['net'](x).mean((2, 3)))


TRUNKS = {
  's8': lambda: mlp(32, (64, 64)),
  **dict.fromkeys(('b2', 'b8', 'b40'), lambda: mlp(128, (512,) * 4)),
  'lenet': lambda: lenet(36, (10, 20), 50),
  'resnet': lambda: resnet18(16, 8),
  'wide': lambda: mlp(1024, (4096,) * 4),
  'resnet64': lambda: resnet18(64, 8),
}


def load(module: nn.Module, params: Mapping) -> None:
  """Copies flax's parameters; images are [B, C, H, W] here and [B, H, W, C] there."""
  if isinstance(module, Net) and list(module._modules) == ['net']:
    module = module.net
  for name, value in params.items():
    if isinstance(value, Mapping):
      load(module._modules[name], value)
      continue
    value = np.asarray(value)
    target = module.bias if name == 'bias' else module.weight
    if name == 'kernel' and value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)
    elif name == 'kernel':
      value = value.T
    with torch.no_grad():
      target.copy_(torch.from_numpy(value.copy()))


def load_trunk(name: str, params: Mapping) -> nn.Module:
  """The trunk of a workload with flax's parameters."""
  trunk = TRUNKS[name]()
  params = dict(params)
  if name == 'lenet':  # its dense layer reads an image, flattened in the order of its axes
    kernel = np.asarray(params['Dense_0']['kernel'])
    side = round((kernel.shape[0] / 20) ** 0.5)
    kernel = kernel.reshape(side, side, 20, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    params['Dense_0'] = {**params['Dense_0'], 'kernel': kernel}
  load(trunk, params)
  return trunk


def load_head(params: Mapping) -> nn.Module:
  """A dense head with flax's parameters."""
  head = nn.Linear(*np.shape(params['kernel']))
  load(head, params)
  return head
