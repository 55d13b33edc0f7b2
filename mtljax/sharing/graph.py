"""Message passing between tasks: one net per task, whose activations travel along the edges of a graph."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mtljax import arrays
from mtljax.base import InputError, Model
from mtljax.relations import TaskGraph
from mtljax.sharing.modules import Module, by_task
from mtljax.sharing.stages import as_stages, stack_streams, streams


def graph(
  stages: Any,
  heads: Mapping[str, Any],
  graph: TaskGraph | Mapping[tuple[str, str], float] | None = None,
  *,
  cuts: Sequence[str | int] | None = None,
  stems: Mapping[str, Any] | None = None,
) -> Model:
  """A stream of stages per task and, after every cut j, x_t <- x_t + sum_{s -> t} w_st / (1 + sum_r w_rt) M_j x_s.

  M_j f[C, C] is trained, one per cut and the same for every edge; it starts at 0, where the net is single-task nets.
  The norm counts the task itself with weight 1, so that weights matter absolutely: edges of small weight pass little. A
  task without edges into it is a single-task net, and in a directed graph nothing flows against an edge: after k cuts t
  depends on the tasks from which k edges lead to it.

  Streams and M are shared, as in `cross_stitch`: `shared/streams/<task>/<stage>/...`, `shared/units/<cut>/kernel`. So
  are streams that a directed graph lets one task only reach.

  Args:
    stages: a trunk with stages, or a list of modules, see `stages.as_stages`; every task gets a stream of its own.
    heads: {task: module}.
    graph: its nodes are the tasks; undirected edges pass in both directions. Also the edges of an undirected graph,
      {('depth', 'normals'): 0.5} on a command line; None joins every pair with weight 1.
    cuts: stages after which messages are passed; None is all of them.
    stems: {task: module}, for inputs of different modality, as in `hard`.

  Returns:
    A `Model` with features {task: z_t}. Subsets of the tasks and multi-input batches are those of `cross_stitch`.

  Raises:
    InputError: a trunk without stages, a cut that it does not have, nodes that are not the tasks of the heads, stage
      outputs that are no single array.

  >>> import flax.linen as nn, jax
  >>> from mtljax import trunks
  >>> relations = TaskGraph(('depth', 'normals'), {('depth', 'normals'): 1.0}, directed=True)
  >>> model = graph(trunks.MLP((8, 8)), {'depth': nn.Dense(1), 'normals': nn.Dense(3)}, relations, cuts=('layer_0',))
  >>> x = jnp.ones((4, 3))
  >>> params, _ = model.init(jax.random.key(0), {'depth': x, 'normals': x})
  >>> jax.tree.map(jnp.shape, params['shared']['units'])
  {'layer_0': {'kernel': (8, 8)}}

  References: Liu, Fu, Dong, Qiu & Cheung, Learning Multi-task Communication with Message Passing for Sequence Learning
  (AAAI 2019), https://arxiv.org/abs/1811.10211 (tasks that pass messages); Kipf & Welling, Semi-Supervised
  Classification with Graph Convolutional Networks (ICLR 2017), https://arxiv.org/abs/1609.02907 (one map per layer, a
  self-loop in the norm); Schlichtkrull et al., Modeling Relational Data with Graph Convolutional Networks (ESWC 2018),
  https://arxiv.org/abs/1703.06103 (a norm per receiver, for directed edges). Departs from them: weights of edges are
  given and not attention on the input, any trunk instead of LSTMs, x_t passes unchanged, nothing follows the sum.
  """
  heads = by_task(heads, 'heads')
  if graph is None:
    graph = dict.fromkeys(itertools.combinations(sorted(heads), 2), 1.0)
  if isinstance(graph, Mapping):
    graph = TaskGraph(tuple(sorted(heads)), graph)
  if not isinstance(graph, TaskGraph):
    raise InputError(f'graph: found {graph!r}, expected an mtljax.relations.TaskGraph or {{(task, task): weight}}.')
  arrays.check_names('graph nodes', graph.nodes, heads)
  return streams(as_stages(stages, cuts), heads, _unit(graph), stems=stems)


def _unit(graph: TaskGraph) -> Module:
  sources = {task: graph.sources(task) for task in graph.nodes}

  def init(key, xs):
    channels = stack_streams(xs).shape[-1]
    return {'kernel': jnp.zeros((channels, channels))} if graph.edges else {}, {}

  def apply(params, state, xs, *, train, key):
    senders = {source for weights in sources.values() for source in weights}
    # A sum over edges and not a product with the adjacency matrix: 0 times an overflow of another task's stream is NaN.
    messages = {task: xs[task] @ params['kernel'].astype(xs[task].dtype) for task in sorted(senders)}
    out = {}
    for task, x in xs.items():
      norm = 1 + sum(sources[task].values())
      out[task] = x + sum(weight / norm * messages[source] for source, weight in sources[task].items())
    return out, state

  return Module(init, apply)
