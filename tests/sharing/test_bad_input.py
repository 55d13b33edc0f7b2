"""Arguments of architectures that are wrong: an InputError that names what was found and what is allowed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtljax import sharing, trunks
from mtljax.base import InputError
from mtljax.relations import TaskGraph

HEADS = {'a': nn.Dense(2), 'b': nn.Dense(3)}
TRUNK = trunks.MLP((8, 8, 8))
NAN = float('nan')
CUT = ('cross_stitch', 'cross_task_attention', 'graph', 'learning_to_branch', 'mtan', 'nddr', 'residual_adapters')
CUT = (*CUT, 'sluice')
NUMBER = 'expected a number >= 0 or a schedule'
WHOLE = 'expected a whole number'


def refused(message, build, *args, heads=None, **options):
  """The error comes from the call, or while initialising."""
  heads = HEADS if heads is None else heads
  with pytest.raises(InputError, match=message):
    model = build(*args, heads, **options)
    jax.eval_shape(model.init, jax.random.key(0), dict.fromkeys(heads, jnp.ones((4, 5))))


@pytest.mark.parametrize('count', [0, -1, 1.5, 2.0, NAN, True, False, '2', np.int64(0)], ids=repr)
def test_counts_are_whole_numbers_from_one(count):
  for build, experts, names in (
    (sharing.mmoe, (TRUNK,), ('num_experts',)),
    (sharing.cgc, (TRUNK, TRUNK), ('num_shared', 'num_own')),
    (sharing.ple, ([TRUNK] * 2, [TRUNK] * 2), ('num_shared', 'num_own')),
    (sharing.dselect_k, (TRUNK,), ('k', 'num_experts')),
    (sharing.lora, (TRUNK,), ('rank',)),
    (sharing.mtan, (TRUNK,), ('reduction',)),
    (sharing.sluice, (TRUNK,), ('subspaces',)),
    (sharing.knowledge, (TRUNK,), ('num_heads',)),
    (sharing.cross_task_attention, (TRUNK,), ('num_heads',)),
    (sharing.learning_to_branch, (TRUNK,), ('width',)),
  ):
    for name in names:
      refused(
        rf'{name}: found (np\.int64\()?{count!r}.*{WHOLE}'.replace('np.int64(0)', '0'), build, *experts, **{name: count}
      )


@pytest.mark.parametrize('beta', [-1, NAN, float('inf'), 'x', None, True], ids=repr)
def test_weights_of_penalties(beta):
  for name, argument in (('soft', 'beta'), ('sluice', 'beta'), ('adashare', 'sparsity'), ('adashare', 'sharing')):
    refused(f'{name} {argument}: found {beta!r}, {NUMBER}', getattr(sharing, name), TRUNK, **{argument: beta})
  with pytest.raises(InputError, match=f'^follow beta: found {beta!r}, {NUMBER}'):
    sharing.follow(beta, 'a', 'b')
  refused(f'entropy: found {beta!r}, {NUMBER}', sharing.dselect_k, TRUNK, entropy=beta)


@pytest.mark.parametrize('scale', [0, -1, NAN, float('inf'), 'x', None, True], ids=repr)
def test_numbers_above_zero(scale):
  refused(f'lora scale: found {scale!r}, expected a number > 0', sharing.lora, TRUNK, scale=scale)
  refused(f'gamma: found {scale!r}, expected a number > 0', sharing.dselect_k, TRUNK, gamma=scale)


@pytest.mark.parametrize('name', CUT)
def test_cut_points(name):
  build = getattr(sharing, name)
  allowed = r"expected .*\['layer_0', 'layer_1', 'layer_2'\], or their positions 0 to 2"
  for cut in ('layer_9', '', 3, -1, 1.0, True, None):
    refused(f'^cuts: found {cut!r}, which the trunk does not have, {allowed}', build, TRUNK, cuts=(cut,))
  for cuts in ((), 'layer_0', 3, np.array([0])):
    refused(f'^cuts: found .*{allowed}', build, TRUNK, cuts=cuts)
  refused("^cuts: found 'layer_2' twice in .*, expected every stage once", build, TRUNK, cuts=('layer_2', 0, 2))


@pytest.mark.parametrize(
  'name, flag',
  [
    ('cross_stitch', 'channelwise'),
    ('nddr', 'batch_norm'),
    ('mtan', 'batch_norm'),
    ('residual_adapters', 'batch_norm'),
    ('adashare', 'hard'),
    ('learning_to_branch', 'hard'),
  ],
)
def test_flags(name, flag):
  for value in ('no', None, 1):
    refused(f'^{name} {flag}: found {value!r}, expected True or False', getattr(sharing, name), TRUNK, **{flag: value})


@pytest.mark.parametrize('name', sharing.ARCHITECTURES)
def test_tasks_of_the_heads_have_names(name):
  for task in (1, '', 'a/b', None):
    heads = {'a': nn.Dense(2), task: nn.Dense(3)}
    refused(
      f'^heads: found the task {task!r}, expected a non-empty string without "/"',
      sharing.parse(name),
      TRUNK,
      heads=heads,
    )


@pytest.mark.parametrize('name', sharing.ARCHITECTURES)
def test_any_other_name_and_a_task_alone_are_fine(name):
  for tasks in (('ünïcode', 'x y', 'head'), ('trunk',)):
    heads = {task: nn.Dense(2) for task in tasks}
    model = sharing.parse(name)(TRUNK, heads)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), dict.fromkeys(tasks, jnp.ones((4, 5))))
    assert set(params['tasks']) == set(tasks)


@pytest.mark.parametrize(
  'edges, message',
  [
    ({('a', 'z'): 1.0}, r"the unknown node 'z' in \('a', 'z'\), expected \('a', 'b'\)"),
    ({('a', 'b'): -1}, 'the weight -1 of .* expected a number >= 0'),
    ({('a', 'b'): NAN}, 'the weight nan'),
    ({('a', 'b'): True}, r"\('a', 'b', True\), expected {\(task, task\): weight}"),
    ({('a', 'b'): '1'}, 'expected {'),
    ({('a', 'a'): 1.0}, 'no edge from a task to itself'),
    ({'ab': 1.0}, r"\('ab', 1.0\), expected {"),
    ({1: 2}, 'expected {'),
    ({('a', 'b'): 1.0, ('b', 'a'): 2.0}, 'twice, expected every pair once'),
    (5, 'found 5, expected {'),
    (None, 'found None'),
    ('ab', "found 'ab'"),
  ],
)
def test_edges(edges, message):
  with pytest.raises(InputError, match=f'^TaskGraph edges: .*{message}'):
    TaskGraph(('a', 'b'), edges)


def test_a_direction_is_a_flag():
  with pytest.raises(InputError, match="^TaskGraph directed: found 'yes', expected True or False"):
    TaskGraph(('a', 'b'), {}, directed='yes')


@pytest.mark.parametrize(
  'matrix',
  [
    [[1.0, 2.0], [3.0]],
    'x',
    [['a', 'b'], ['c', 'd']],
    np.ones((3, 4), int),
    np.full((3, 4), NAN),
    np.ones((1, 4)),
    5.0,
  ],
  ids=repr,
)
def test_matrices_of_knowledge(matrix):
  refused('^knowledge matrix: found .*, expected', sharing.knowledge, TRUNK, matrix=matrix)


def test_a_list_of_lists_is_a_matrix():
  model = sharing.knowledge(TRUNK, HEADS, matrix=[[1.0, 2.0], [3.0, 4.0]])
  _, state = jax.eval_shape(model.init, jax.random.key(0), dict.fromkeys(HEADS, jnp.ones((4, 5))))
  assert state['shared']['memory']['matrix'].shape == (2, 2)


def test_parameters_of_another_architecture_have_no_policies():
  for params in ({}, None, {'shared': {}}):
    with pytest.raises(InputError, match='^policies params: found .*, expected the parameters of `adashare`'):
      sharing.policies(params)
