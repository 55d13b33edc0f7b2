"""What orbax says of a failure besides raising it."""

import gc
import logging
import sys
import traceback
import warnings

LOGGERS = ('absl', 'asyncio')  # where orbax logs


def keep_quiet() -> None:
  """Failures are said once, by who catches them; for good, as what belongs to one may come after it."""
  for name in LOGGERS:
    logging.getLogger(name).addFilter(_not_of_orbax)
  if not hasattr(sys.unraisablehook, 'others'):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)


def clear(error: BaseException) -> None:
  """Ends now, and silently, what an error keeps alive: orbax's reads that were never begun or waited for."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    part = error
    while part is not None:
      traceback.clear_frames(part.__traceback__)
      part = part.__cause__ or part.__context__
    gc.collect()


def _not_of_orbax(record) -> bool:
  """Orbax logs with a traceback what it raises, once for every thread, and asyncio what orbax does not wait for."""
  if record.levelno < logging.ERROR:
    return True
  trace = ''.join(traceback.format_exception(*record.exc_info)) if record.exc_info else ''
  return 'orbax' not in f'{record.pathname} {record.getMessage()} {trace}'


class _Unraisable:
  """Ignores what comes of reads and writes that orbax leaves behind at the first that fails.

  Tensorstore's writes end after the event loop; reads that nobody waits for raise when they are closed.
  """

  def __init__(self, others):
    self.others = others

  def __call__(self, found):
    late = found.object is None and str(found.exc_value) == 'Event loop is closed'
    code = getattr(found.object, 'cr_code', None)
    closed = code is not None and 'orbax' in code.co_filename and isinstance(found.exc_value.__cause__, GeneratorExit)
    if not late and not closed:
      self.others(found)
