"""Heads (flax linen modules): what a task adds to the shared features."""

from mtljax.heads.dense import Dense, classify, multilabel, regress

__all__ = ['Dense', 'classify', 'multilabel', 'regress']
