"""Lines of text files, plain or compressed with gzip; where such files are."""

import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from mtljax.base import InputError
from mtljax.data.reading import Reading


def read_lines(path: str | os.PathLike, reading: Reading) -> Iterator[tuple[int, str | None]]:
  """(number from 1, line) of a UTF-8 file; a line that is none is reported to `reading`, and None.

  A name that ends in .gz is decompressed. Lines end with a newline, and with nothing else that Unicode takes for one;
  a carriage return before it and a byte-order mark at the start are dropped.

  Args:
    path: the file.
    reading: counts the lines, and says what is to be done about bad ones.

  Raises:
    InputError: no such file, one that is damaged: then no line of it can be trusted, whatever `reading` says.
  """
  path = pathlib.Path(path)
  number = 0
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      for number, line in enumerate(file, 1):
        reading.item()
        line = line.removesuffix(b'\n').removesuffix(b'\r')
        try:
          text = line.decode()
        except UnicodeDecodeError as error:
          found = f'found byte 0x{line[error.start]:02x} at place {error.start}, expected UTF-8 text'
          reading.bad(f'line {number}', found)
          text = None
        yield number, text.removeprefix('\ufeff') if number == 1 and text else text
  except FileNotFoundError:
    raise InputError(f'{path}: found no such file, expected lines of text.') from None
  except (OSError, EOFError, zlib.error) as error:
    behind = f' behind line {number}' if number else ''
    raise InputError(f'{path}: cannot be read{behind}, expected lines of text: {error}.') from error


def read_objects(path: str | os.PathLike, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
  """(number from 1, object) of a file with a JSON object per line (jsonl), plain or .gz; arguments as for `read_lines`.

  Lines that hold nothing are left out; those that are no object are reported to `reading`.
  """
  for number, line in read_lines(path, reading):
    if line is None or not line.strip():
      continue
    try:
      found = json.loads(line)
    except ValueError as error:
      reading.bad(f'line {number}', f'found {line[:40]!r}, expected a JSON object ({error})')
      continue
    if isinstance(found, dict):
      yield number, found
    else:
      reading.bad(f'line {number}', f'found a JSON {type(found).__name__}, expected an object')


def locate(data_dir: str | os.PathLike, name: str, folder: str = '') -> pathlib.Path:
  """The file `name` or `name`.gz in `data_dir`, or in `folder` within it.

  Raises:
    InputError: there is none.
  """
  data_dir = pathlib.Path(os.path.expanduser(data_dir))
  places = [place / f'{name}{end}' for place in (data_dir, data_dir / folder) for end in ('.gz', '')]
  found = next((place for place in places if place.is_file()), None)
  if found is None:
    within = f', nor is it in {folder!r} within it' if folder else ''
    raise InputError(f'data_dir: {str(data_dir)!r} has no {name} or {name}.gz{within}.')
  return found
