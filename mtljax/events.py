"""TensorBoard events of a run."""

import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from mtljax.rundir import Appending


class TensorBoard:
  """The records of metrics.jsonl as TensorBoard events, if tensorboardX is installed; else nothing.

  tensorboardX gives the format, not the writing: the thread of its SummaryWriter dies on a full disk, and the queue
  before it then blocks the run.

  Args:
    path: of the folder.
    start: what is there for later steps is overwritten in TensorBoard's view.

  Raises:
    OSError: the folder or its file cannot be made.
  """

  def __init__(self, path, start: int = 0):
    try:
      from tensorboardX.proto import event_pb2
    except ImportError:
      self._file = None
      return
    path = pathlib.Path(path)
    path.mkdir(exist_ok=True)
    self._file = Appending(path / f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}')
    head = [event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2')]
    if start:
      log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      head.append(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=log))
    self._file.write(*map(_framed, head))

  def write(self, record: Mapping) -> None:
    """One scalar for every number of the record, under its path.

    Raises:
      SaveError: there is no room; the event is tried again with the next.
    """
    if self._file is not None:
      from tensorboardX.proto import event_pb2
      from tensorboardX.summary import Summary, scalar

      parts = [scalar(name, value) for name, value in _numbers(record) if name != 'step']
      summary = Summary(value=[value for part in parts for value in part.value])
      self._file.write(_framed(event_pb2.Event(wall_time=time.time(), step=record['step'], summary=summary)))

  def close(self) -> None:
    """Ends the file; errors as those of `write`."""
    if self._file is not None:
      self._file.close()


def _framed(event) -> bytes:
  """A TFRecord: length, its checksum, the bytes, theirs."""
  from tensorboardX.record_writer import masked_crc32c

  data = event.SerializeToString()
  length = struct.pack('<Q', len(data))
  return b''.join((length, struct.pack('<I', masked_crc32c(length)), data, struct.pack('<I', masked_crc32c(data))))


def _numbers(value, name=''):
  if isinstance(value, Mapping):
    for key, part in value.items():
      yield from _numbers(part, f'{name}/{key}' if name else str(key))
  elif isinstance(value, int | float):
    yield name, float(value)
