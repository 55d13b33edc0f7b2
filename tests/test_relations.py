"""Trees and graphs of tasks: what they hold, print, are made of and refuse."""

import dataclasses

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from mtljax.base import InputError
from mtljax.relations import TaskGraph, TaskTree

UNEVEN = TaskTree((('a', ('b', 'c')), ['d', 'e', 'f'], 'g'))


def test_a_tree_knows_its_tasks_nodes_and_partitions():
  assert UNEVEN.leaves == tuple('abcdefg') and UNEVEN.depth == 3
  assert UNEVEN.groups(0) == (tuple('abcdefg'),)
  assert UNEVEN.groups(1) == (('a', 'b', 'c'), ('d', 'e', 'f'), ('g',))
  assert UNEVEN.groups(2) == (('a',), ('b', 'c'), ('d',), ('e',), ('f',), ('g',))
  assert UNEVEN.groups(3) == UNEVEN.groups(7) == tuple((task,) for task in 'abcdefg')
  inner = {node.label: ''.join(node.tasks) for node in UNEVEN.nodes if len(node.tasks) > 1}
  assert inner == {'root': 'abcdefg', 'root.0': 'abc', 'root.0.1': 'bc', 'root.1': 'def'}
  assert [node.path for node in UNEVEN.lineage('c')] == [(), (0,), (0, 1), (0, 1, 1)]
  assert UNEVEN.limited(2).literal() == '((a, b, c), (d, e, f), g)'
  assert UNEVEN.limited(1) == TaskTree(tuple('abcdefg')) and UNEVEN.limited(3) == UNEVEN


def test_a_tree_is_printed_for_people():
  lines = [
    'root',
    '├── root.0',
    '│   ├── a',
    '│   └── root.0.1',
    '│       ├── b',
    '│       └── c',
    '├── root.1',
    '│   ├── d',
    '│   ├── e',
    '│   └── f',
    '└── g',
  ]
  assert str(UNEVEN).splitlines() == lines
  assert str(TaskTree('a')) == 'a'


def test_children_have_no_order_and_a_node_with_one_child_is_that_child():
  tree = TaskTree((('a', 'b'), 'c'))
  assert tree == TaskTree(['c', ('b', 'a')]) == TaskTree(((('a',), ('b',)), ('c',)))
  assert len({tree, TaskTree(('c', ('b', 'a')))}) == 1
  assert tree != TaskTree(('a', ('b', 'c'))) and tree != TaskTree(('a', 'b', 'c'))
  assert TaskTree((('a',),)) == TaskTree('a') and TaskTree('a').depth == 0
  assert [node.label for node in TaskTree('a').nodes] == ['root']
  with pytest.raises(dataclasses.FrozenInstanceError):
    tree.nested = 'a'


@pytest.mark.parametrize(
  'text, nested',
  [
    ('((a, b), c)', (('a', 'b'), 'c')),
    ("(('a', 'b'), 'c')", (('a', 'b'), 'c')),
    ('( ( a,b ),c, )', (('a', 'b'), 'c')),
    ('a', 'a'),
    ('(5_o_Clock Shadow, wears-hat)', ('5_o_Clock Shadow', 'wears-hat')),
    ("('top(5)', (\"a, b\", it's))", ('top(5)', ('a, b', "it's"))),
  ],
)
def test_literals_are_parsed_and_written(text, nested):
  tree = TaskTree.parse(text)
  assert tree == TaskTree(nested)
  assert TaskTree.parse(tree.literal()) == tree


@pytest.mark.parametrize(
  'text, message',
  [
    ('((a, b), c', r"expected a tree such as '\(\(a, b\), c\)': '\)' instead of 'the end'"),
    ('(a, b))', r"nothing after it instead of '\)'"),
    ('(a b, (c d) e)', r"'\)' instead of 'e'"),
    ('', "'a task' instead of 'the end'"),
    ('(, a)', r"""a task or "\(" instead of ','"""),
    ('()', r"""a task or "\(" instead of '\)'"""),
  ],
)
def test_text_that_is_no_tree_is_named(text, message):
  with pytest.raises(InputError, match=message):
    TaskTree.parse(text)


@pytest.mark.parametrize(
  'nested, message',
  [
    ((), r'^TaskTree: found \(\) in \(\), expected names'),
    ((('a', 'b'), []), r"^TaskTree: found \[\] in \(\('a', 'b'\), \[\]\), expected names"),
    (('a', 1), r"^TaskTree: found 1 in \('a', 1\)"),
    (('a', ''), "^TaskTree: found '' in"),
    ((('a', 'b'), ('b', 'c'), 'a'), r"^TaskTree: found \['a', 'b'\] more than once in"),
  ],
)
def test_bad_trees_are_named(nested, message):
  with pytest.raises(InputError, match=message):
    TaskTree(nested)


def test_average_linkage_is_that_of_scipy_and_finds_the_blocks():
  names = tuple('abcdefg')
  for seed in range(5):
    points = np.random.default_rng(seed).normal(size=(7, 20))
    correlation = np.corrcoef(points)
    merges = linkage(squareform(1 - correlation, checks=False), 'average')[:, :2].astype(int)
    assert TaskTree.from_covariance(np.cov(points), names) == TaskTree.from_merges(merges, names)
  blocks = np.kron(np.eye(3), np.ones((2, 2))) + 0.1 * np.eye(6)
  scale = np.diag([1.0, 9.0, 0.1, 1.0, 5.0, 1.0])
  tree = TaskTree.from_covariance(scale @ blocks @ scale, names[:6], groups=3)
  assert tree.groups(1) == (('a', 'b'), ('c', 'd'), ('e', 'f'))


def test_average_linkage_by_hand():
  # a and c join at 0.9; then {a, c} with b has (0.1 + 0.5) / 2 = 0.3 and with d (0.6 + 0.2) / 2 = 0.4, b with d 0.35.
  similarity = [[0, 0.1, 0.9, 0.6], [0.1, 0, 0.5, 0.35], [0.9, 0.5, 0, 0.2], [0.6, 0.35, 0.2, 0]]
  assert TaskTree.from_similarity(similarity, 'abcd').literal() == '(((a, c), d), b)'
  assert TaskTree.from_similarity(similarity, 'abcd', groups=3).literal() == '((a, c), b, d)'
  assert TaskTree.from_similarity(similarity, 'abcd', groups=4) == TaskTree(tuple('abcd'))
  assert TaskTree.from_similarity([[2.0]], ['a']) == TaskTree('a')
  assert TaskTree.from_merges([(0, 2), (4, 3), (1, 5)], 'abcd').literal() == '(((a, c), d), b)'


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: TaskTree.from_merges([(0, 1)], 'abc'), '^merges: found 1 for 3 tasks, expected 2'),
    (lambda: TaskTree.from_merges([(0, 1), (0, 2)], 'abc'), r'^merges: row 1 joins 0 and 2, .* clusters \[2, 3\]'),
    (lambda: TaskTree.from_merges([(0, 0)], 'ab'), '^merges: row 0 joins 0 and 0'),
    (lambda: TaskTree.from_similarity(np.eye(3), 'ab'), r'^similarity: found shape \(3, 3\)'),
    (lambda: TaskTree.from_similarity([[1, np.nan], [np.nan, 1]], 'ab'), '^similarity: .* non-finite'),
    (lambda: TaskTree.from_similarity([[1, 2], [3, 1]], 'ab'), '^similarity: found a matrix that is not symmetric'),
    (lambda: TaskTree.from_similarity(np.eye(3), 'abc', groups=4), '^groups: found 4, .* from 2 to 3'),
    (lambda: TaskTree.from_similarity(np.eye(3), 'abc', groups=True), '^groups: found True'),
    (lambda: TaskTree.from_covariance(np.diag([1.0, 0.0]), 'ab'), r'^covariance: found the diagonal \[1.0, 0.0\]'),
    (lambda: UNEVEN.groups(-1), '^level: found -1, expected a whole number of at least 0'),
    (lambda: UNEVEN.limited(0), '^depth: found 0, expected a whole number of at least 1'),
    (lambda: UNEVEN.lineage('z'), r"^task: found \['z'\]"),
  ],
)
def test_bad_clusterings_and_levels_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()


# Graphs.


def test_matrices_of_an_undirected_graph_by_hand():
  graph = TaskGraph(('b', 'a', 'c'), {('b', 'a'): 2, ('c', 'a'): 0.5, ('b', 'c'): 0.0})
  assert graph.edges == (('a', 'b', 2.0), ('a', 'c', 0.5))
  np.testing.assert_array_equal(graph.adjacency(), [[0, 2, 0], [2, 0, 0.5], [0, 0.5, 0]])
  np.testing.assert_array_equal(graph.laplacian(), [[2, -2, 0], [-2, 2.5, -0.5], [0, -0.5, 0.5]])
  assert graph.sources('a') == {'b': 2.0, 'c': 0.5} and graph.sources('c') == {'a': 0.5}
  assert str(graph).splitlines() == ['3 tasks (b, a, c), 2 edges', 'a -- b  2', 'a -- c  0.5']


def test_matrices_of_a_directed_graph_by_hand():
  graph = TaskGraph(['a', 'b', 'c'], {('a', 'b'): 2, ('b', 'a'): 1, ('c', 'b'): 4}, directed=True)
  np.testing.assert_array_equal(graph.adjacency(), [[0, 2, 0], [1, 0, 0], [0, 4, 0]])
  np.testing.assert_array_equal(graph.laplacian(), [[1.5, -1.5, 0], [-1.5, 3.5, -2], [0, -2, 2]])
  assert graph.sources('b') == {'a': 2.0, 'c': 4.0} and graph.sources('c') == {}
  x = np.array([1.0, 3.0, -2.0])
  assert x @ graph.laplacian() @ x == 0.5 * (2 * 4 + 1 * 4 + 4 * 25)
  assert 'c -> b  4' in str(graph)


def test_graphs_are_values():
  graph = TaskGraph(('a', 'b'), {('b', 'a'): 1})
  assert graph == TaskGraph(['a', 'b'], [('a', 'b', np.float32(1))]) and len({graph, TaskGraph(('a', 'b'), {})}) == 2
  assert dataclasses.replace(graph, directed=True).adjacency()[0, 1] == 1
  assert graph != TaskGraph(('a', 'b'), {('a', 'b'): 1}, directed=True)


def test_entries_above_a_threshold_make_a_graph():
  matrix = [[9.0, 0.5, -0.8], [0.5, 9.0, 0.2], [-0.8, 0.2, 9.0]]
  assert TaskGraph.from_adjacency(matrix, 'abc', 0.2) == TaskGraph(('a', 'b', 'c'), {('a', 'b'): 0.5})
  assert len(TaskGraph.from_adjacency(matrix, 'abc', 0).edges) == 2
  directed = [[0, 0.7, 0], [0.1, 0, 0.3], [0, 0, 0]]
  graph = TaskGraph.from_adjacency(directed, 'abc', 0.0, directed=True)
  np.testing.assert_array_equal(graph.adjacency(), directed)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: TaskGraph((), {}), r'^TaskGraph nodes: found \(\), expected names'),
    (lambda: TaskGraph(('a', 'a'), {}), r"^TaskGraph nodes: found \('a', 'a'\)"),
    (lambda: TaskGraph(('a', 1), {}), r"^TaskGraph nodes: found \('a', 1\)"),
    (
      lambda: TaskGraph(('a', 'b'), {('a', 'z'): 1}),
      r"the unknown node 'z' in \('a', 'z'\), expected \('a', 'b'",
    ),
    (lambda: TaskGraph(('a', 'b'), {('b', 'b'): 1}), r"found \('b', 'b'\), expected no edge from a task to itself"),
    (lambda: TaskGraph(('a', 'b'), {('a', 'b'): -0.1}), r"found the weight -0.1 of \('a', 'b'\), expected .* >= 0"),
    (lambda: TaskGraph(('a', 'b'), {('a', 'b'): float('nan')}), 'found the weight nan'),
    (lambda: TaskGraph(('a', 'b'), {('a', 'b'): '1'}), r"found \('a', 'b', '1'\), expected \{\(task, task\): weight\}"),
    (lambda: TaskGraph(('a', 'b'), [('a', 'b')]), r"found \('a', 'b'\), expected \{\(task, task\): weight\}"),
    (lambda: TaskGraph(('a', 'b'), {('a', 'b'): 1, ('b', 'a'): 1}), r"found \('a', 'b'\) twice"),
    (lambda: TaskGraph.from_adjacency(np.eye(2), 'ab', -1), '^threshold: found -1'),
    (lambda: TaskGraph.from_adjacency(np.eye(3), 'ab', 0), r'^matrix: found shape \(3, 3\)'),
    (lambda: TaskGraph.from_adjacency([[0, 1], [0, 0]], 'ab', 0), '^matrix: found a matrix that is not symmetric'),
    (lambda: TaskGraph(('a', 'b'), {}).sources('c'), r"^task: found \['c'\]"),
  ],
)
def test_bad_graphs_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
