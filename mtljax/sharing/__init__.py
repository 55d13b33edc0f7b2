"""Sharing architectures: functions that make a `Model` of trunks and heads, one file per architecture."""

from mtljax.sharing.hard import hard
from mtljax.sharing.modules import Module, keeps_own_values

# Name -> factory, for `mtljax list`.
ARCHITECTURES = {'hard': hard}

__all__ = ['ARCHITECTURES', 'Module', 'hard', 'keeps_own_values']
