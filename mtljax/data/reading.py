"""What loaders of many lines or files say of one that is wrong: an error that names it, or a count where asked."""

import os
import warnings
from typing import Literal

from mtljax.base import InputError

OnBad = Literal['error', 'skip']


class Reading:
  """The bad lines or files of one source.

  >>> reading = Reading('train.tsv', 'skip')
  >>> for line, text in enumerate(['a b', '', 'c d'], 1):
  ...   reading.item()
  ...   if not text: reading.bad(f'line {line}', 'found nothing, expected a sentence')
  >>> reading.count, reading.skipped
  (3, ['line 2: found nothing, expected a sentence'])

  Args:
    source: the file or folder, for messages.
    on_bad: 'error' raises at the first bad item; 'skip' goes on, and `close` says how many there were.

  Attributes:
    count: items seen.
    skipped: what was wrong with each that was left out.

  Raises:
    InputError: another `on_bad`.
  """

  def __init__(self, source: str | os.PathLike, on_bad: OnBad = 'error'):
    if on_bad not in ('error', 'skip'):
      raise InputError(f"on_bad: found {on_bad!r}, expected 'error' or 'skip'.")
    self.source, self.on_bad, self.count, self.skipped = str(source), on_bad, 0, []

  def item(self) -> None:
    """Counts an item, good or bad."""
    self.count += 1

  def bad(self, where: str, message: str) -> None:
    """Raises an InputError '<source>, <where>: <message>.', or notes that the item is left out."""
    if self.on_bad == 'error':
      raise InputError(f'{self.source}, {where}: {message}.')
    self.skipped.append(f'{where}: {message}')

  def close(self) -> None:
    """Warns once, with the number of items left out and the first of them.

    Raises:
      InputError: nothing is left.
    """
    if self.skipped:
      said = f'{self.source}: skipped {len(self.skipped)} of {self.count}, the first: {self.skipped[0]}.'
      if len(self.skipped) == self.count:
        raise InputError(f'{said} Nothing is left.')
      warnings.warn(said, stacklevel=3)
