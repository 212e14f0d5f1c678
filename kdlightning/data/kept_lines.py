"""Results of long work, kept line by line as they come, so that a killed run loses none."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class KeptLines:
    """A file of JSON values, one a line, each behind its checksum; lines are only ever added.

    Opened, it holds what is whole: a line that was torn by a kill or damaged later, and all that follow it, are cut
    off, to be made again. Only one process has it open at a time; another one waits.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: list[Any] = []
        self._file: Any = None

    @contextmanager
    def open(self) -> Iterator[KeptLines]:
        """Reads the whole lines, and lets `add` put others behind them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as self._file:
            _lock(self._file)
            self._file.seek(0)
            end, self.values = 0, []
            for line in self._file:
                value = _read(line)
                if value is None:
                    break
                self.values.append(value[0])
                end += len(line)
            self._file.truncate(end)
            yield self

    def add(self, values: list[Any]) -> None:
        """Puts values behind the others; they are on the disk when it returns."""
        for value in values:
            text = json.dumps(value, ensure_ascii=False).encode()
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.values += values


def _read(line: bytes) -> tuple[Any] | None:
    mark, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or mark != b"%08x" % zlib.crc32(text):
        return None
    return (json.loads(text),)


def _lock(file: Any) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: two runs that begin together would both make it
        return
    fcntl.flock(file, fcntl.LOCK_EX)
