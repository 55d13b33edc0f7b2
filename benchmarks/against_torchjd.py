"""Whole training steps against TorchJD: forward, backward, aggregation, Adam, the same nets from the same weights.

  pip install -e '.[bench]'                                        (a CPU build of torch, where one is wanted, first)
  python benchmarks/against_torchjd.py --workloads s8
  python benchmarks/against_torchjd.py --workloads b8 --methods equal mgda upgrad nash_mtl
  python benchmarks/against_torchjd.py --memory b40                peak memory of a step of upgrad, one process each
  python benchmarks/against_torchjd.py --device cuda --workloads b8   torch on the GPU that JAX uses, too

TorchJD's ways: `autojac` (mtl_backward and jac_to_grad, rows together by vmap), `rows` (the same with
parallel_chunk_size=1) and `autogram` (the Engine's Gramian, then one weighted backward pass); loss methods have its
scalarizers and `backward`, shown under autojac. torch's Adam is the fused one, its fastest, unless `--plain_adam` is
given. All are called in turn in one run; a ratio is TorchJD's time / ours, so above 1 we are faster: the median over
rounds, ± half the interquartile range, and in brackets that of the fastest rounds, which other jobs on the machine
disturb least, and that of processor time. `fastest` is the smallest median.

torch has as many threads as there are cores. They sleep while they wait (OMP_WAIT_POLICY=PASSIVE unless it is set):
waiting busily, as by default, they were up to a hundred times slower on cores that other jobs used too. For nets as
small as s8 one thread is its fastest in any case (`--threads 1`). On a GPU both multiply float32 as float32 unless
`--tf32` is given, which lets both use the tensor cores.

Before timing, at the same parameters and the same batch: losses and Gramian of both sides agree, and both solvers are
given the same Gramian; `direction` is |d - d'| / |d| of what they make of it (d = w J, from G). TorchJD's mgda stops
early, so there the difference is its own.
"""

import argparse
import ctypes
import os
import resource
import subprocess
import sys

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # torch reads it when it is imported

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_nets import load_head, load_trunk
from torchjd import aggregation, autogram, autojac, scalarization
from workloads import WORKLOADS, Stepper, about, in_turn

import mtljax as mtl

LOSSES = {  # ours, and TorchJD's
  'equal': (lambda: mtl.balancing.equal(), lambda T: scalarization.Sum()),
  'uncertainty': (lambda: mtl.balancing.uncertainty(), scalarization.UW),
  'dwa': (lambda: mtl.balancing.dwa(steps_per_epoch=100), lambda T: scalarization.DWA()),
  'famo': (lambda: mtl.balancing.famo(), scalarization.FAMO),
}
GRAMIANS = {
  'mgda': (lambda: mtl.balancing.mgda(), lambda T: aggregation.MGDA()),
  'upgrad': (lambda: mtl.balancing.upgrad(), lambda T: aggregation.UPGrad()),
  'dualproj': (lambda: mtl.balancing.dualproj(), lambda T: aggregation.DualProj()),
  'cagrad': (lambda: mtl.balancing.cagrad(c=0.5, rescale=0), lambda T: aggregation.CAGrad(c=0.5)),
  'pcgrad': (lambda: mtl.balancing.pcgrad(), lambda T: aggregation.PCGrad()),
  'imtl_g': (lambda: mtl.balancing.imtl_g(), lambda T: aggregation.IMTLG()),
  'aligned_mtl': (lambda: mtl.balancing.aligned_mtl(), lambda T: aggregation.AlignedMTL()),
  'nash_mtl': (lambda: mtl.balancing.nash_mtl(), aggregation.NashMTL),
}
METHODS = {**LOSSES, **GRAMIANS}
WAYS = ('autojac', 'rows', 'autogram')


class Torch:
  """A training step of TorchJD's; calling it makes one."""

  def __init__(self, name: str, params, method: str, way: str, fused: bool = True, device: str = 'cpu'):
    workload = WORKLOADS[name]
    batch, params = workload.data(), jax.tree.map(np.asarray, params)
    x = np.array(batch['inputs'])
    self.x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim > 2 else x).to(device)
    self.labels = [torch.from_numpy(np.array(batch['labels'][t])).long().to(device) for t in workload.names]
    self.trunk = load_trunk(name, params['shared']).to(device)
    self.heads = [load_head(params['tasks'][t]).to(device) for t in workload.names]
    self.shared = list(self.trunk.parameters())
    self.own = [list(head.parameters()) for head in self.heads]
    self.way, self.method = way, METHODS[method][1](workload.tasks).to(device)
    learned = list(self.method.parameters()) if method == 'uncertainty' else []
    every = [*self.shared, *sum(self.own, []), *learned]
    self.optimizer = torch.optim.Adam(every, lr=1e-3, fused=fused)
    self.engine = autogram.Engine(self.trunk, batch_dim=None) if way == 'autogram' else None

  def losses(self):
    self.features = self.trunk(self.x)
    cross_entropy = torch.nn.functional.cross_entropy
    return [cross_entropy(head(self.features), y) for head, y in zip(self.heads, self.labels)]

  def __call__(self):
    losses = self.losses()
    if self.way == 'backward':
      self.method(torch.stack(losses)).backward()
    elif self.way == 'autogram':
      losses = torch.stack(losses)
      losses.backward(self.method.weighting(self.engine.compute_gramian(losses)))
    else:
      autojac.mtl_backward(
        losses,
        features=self.features,
        tasks_params=self.own,
        shared_params=self.shared,
        parallel_chunk_size=1 if self.way == 'rows' else None,
      )
      autojac.jac_to_grad(self.shared, self.method)
    self.optimizer.step()
    self.optimizer.zero_grad()
    if isinstance(self.method, scalarization.FAMO):
      with torch.no_grad():
        self.method.update(torch.stack(self.losses()))
    return Finished() if self.x.is_cuda else None


def ways_of(method: str) -> tuple[str, ...]:
  if method in LOSSES:
    return ('backward',)
  return tuple(way for way in WAYS if way != 'autogram' or method != 'nash_mtl')  # it wants the Jacobian


class Finished:
  """What torch has been asked to compute; `jax.block_until_ready` waits for it."""

  def block_until_ready(self):
    torch.cuda.synchronize()
    return self


def direction_error(name: str, method: str, ours: Stepper) -> float:
  """Of the weights that both sides give, at the first step; asserts that losses and Gramians agree."""
  T = WORKLOADS[name].tasks
  theirs = Torch(name, ours.params, method, 'backward')
  losses = torch.stack(theirs.losses())
  ours()  # the first step
  info = jax.device_get(ours.info)
  rough = 50 if jax.config.jax_default_matmul_precision == 'tensorfloat32' else 1
  np.testing.assert_allclose(losses.detach().numpy(), info.losses, rtol=2e-4 * rough)
  if method in LOSSES:
    weights = torch.autograd.grad(theirs.method(losses), losses)[0].numpy()
    return float(np.abs(weights - info.weights).max() / np.abs(info.weights).max())
  rows = [torch.autograd.grad(loss, theirs.shared, retain_graph=True) for loss in losses]
  J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
  np.testing.assert_allclose((J @ J.T).numpy(), info.gramian, rtol=0, atol=2e-3 * rough * np.abs(info.gramian).max())
  G = np.float64(info.gramian)
  root = np.linalg.cholesky(G + 1e-12 * np.trace(G) * np.eye(T))  # rows with these products
  torch.manual_seed(0)
  order = np.stack([torch.randperm(T).numpy() for _ in range(T)])
  torch.manual_seed(0)
  with torch.no_grad():
    found = theirs.method.weighting(torch.from_numpy(root).float()) if method == 'nash_mtl' else None
    if found is None:
      found = theirs.method.gramian_weighting(torch.from_numpy(G).float())
  balancer = METHODS[method][0]()
  rest = dict(losses=jnp.asarray(info.losses), present=jnp.ones(T, bool), key=jax.random.key(0), step=0)
  G32 = jnp.asarray(G, jnp.float32)
  weights, _ = balancer.update(G32, balancer.init(G32), order=jnp.asarray(order), **rest)
  length = lambda w: np.sqrt(max(w @ G @ w, 0.0))
  weights, found = np.float64(weights), np.float64(found.numpy())
  return length(weights - found) / length(weights)


def compare(name: str, methods, rounds: int, limit: float, **torchs):
  """One table of a workload."""
  print(f'\n{name:<13}{"ours ms":>9}{"direction":>11}' + ''.join(f'{way:>30}' for way in WAYS) + f'{"fastest":>9}')
  for method in methods:
    ours = Stepper(WORKLOADS[name], METHODS[method][0]())
    error = direction_error(name, method, ours)
    runs = {way: Torch(name, ours.params, method, way, **torchs) for way in ways_of(method)}
    seconds, ratio = in_turn({'ours': ours, **runs}, rounds, limit=limit)
    found = {way: ratio(way, 'ours') for way in runs}
    if method in LOSSES:
      found = {'autojac': found['backward']}
    cells = [f'{found.get(way, "–")!s:>30}' for way in WAYS]
    fastest = min(ratio.median for ratio in found.values())
    print(f'{method:<13}{1e3 * seconds["ours"]:>9.2f}{error:>11.0e}' + ''.join(cells) + f'{fastest:>9.2f}', flush=True)


def peak(name: str, side: str, device: str, method: str = 'upgrad'):
  """MB: resident after a step, at most in three more, and at most since the start; on a GPU, what is allocated."""
  step = Stepper(WORKLOADS[name], METHODS[method][0]())
  if side != 'ours':
    params, step = step.params, None
    step = Torch(name, params, method, side, device=device)
  for _ in range(2):
    jax.block_until_ready(step())
  if device != 'cpu':
    print(*(f'{value / 2**20:.0f}' for value in _allocated(step, side)))
    return
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # the high-water mark starts afresh
  before = _status('VmRSS')
  for _ in range(3):
    jax.block_until_ready(step())
  whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f'{before:.0f} {_status("VmHWM"):.0f} {whole:.0f}')


def _allocated(step, side: str) -> tuple[int, int, int]:
  """Bytes on the GPU; JAX does not start its high-water mark afresh, and it counts what compilation tried out."""
  if side == 'ours':
    stats = jax.devices()[0].memory_stats()
    return stats['bytes_in_use'], stats['peak_bytes_in_use'], stats['peak_bytes_in_use']
  whole, before = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
  torch.cuda.reset_peak_memory_stats()
  for _ in range(3):
    jax.block_until_ready(step())
  return before, torch.cuda.max_memory_allocated(), whole


def _status(field: str) -> float:
  with open('/proc/self/status') as lines:
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def print_memory(name: str, device: str):
  where = 'resident' if device == 'cpu' else 'on GPU  '
  print(f'\n{name}, MB {where}{"before":>10}{"peak":>9}{"added":>9}{"with compilation":>19}')
  for side in ('ours', *WAYS):
    command = [sys.executable, __file__, '--peak', name, side, '--device', device]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout.split()
    before, high, whole = map(float, found)
    print(f'{side:<17}{before:>10.0f}{high:>9.0f}{high - before:>9.0f}{whole:>19.0f}', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workloads', nargs='+', default=['s8'], choices=WORKLOADS)
  parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
  parser.add_argument('--rounds', type=int, default=25)
  parser.add_argument('--limit', type=float, default=20, help='seconds for the rounds of a method (default 20)')
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)), help='of torch (default: cores)')
  parser.add_argument('--plain_adam', action='store_true', help="torch's Adam as it comes, not the fused one")
  parser.add_argument('--device', default='cpu', help="of torch: 'cpu' or 'cuda'; JAX has JAX_PLATFORMS")
  parser.add_argument('--tf32', action='store_true', help='float32 products on tensor cores, on both sides')
  parser.add_argument('--memory', choices=WORKLOADS)
  parser.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  torch.set_float32_matmul_precision('high' if args.tf32 else 'highest')
  torch.backends.cudnn.allow_tf32 = args.tf32
  jax.config.update('jax_default_matmul_precision', 'tensorfloat32' if args.tf32 else 'float32')
  if args.peak:
    peak(*args.peak, args.device)
    return
  print(about('torch', 'torchjd') + f', torch threads {torch.get_num_threads()}')
  if args.memory:
    print_memory(args.memory, args.device)
    return
  for name in args.workloads:
    compare(name, args.methods, args.rounds, args.limit, fused=not args.plain_adam, device=args.device)


if __name__ == '__main__':
  main()
