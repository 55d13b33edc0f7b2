"""The version, where packaging and checkpoints read it."""

__version__ = '0.1.0'
