"""Tables and figures of runs and comparisons."""

from mtljax.analysis.plots import comparison, curves, save
from mtljax.analysis.tables import aligned, leaderboard, metric_table

__all__ = ['aligned', 'comparison', 'curves', 'leaderboard', 'metric_table', 'save']
