"""Tables and figures of runs, comparisons and models."""

from mtljax.analysis.cost import costs
from mtljax.analysis.draw import diagram
from mtljax.analysis.pixel_plot import predictions
from mtljax.analysis.plots import comparison, curves, save
from mtljax.analysis.relations_plot import relation_graph, relation_matrices, relation_tree
from mtljax.analysis.structure import parts_graph
from mtljax.analysis.tables import aligned, leaderboard, metric_table

__all__ = [
  'aligned',
  'comparison',
  'costs',
  'curves',
  'diagram',
  'leaderboard',
  'metric_table',
  'parts_graph',
  'predictions',
  'relation_graph',
  'relation_matrices',
  'relation_tree',
  'save',
]
