"""Shows how far a long run of requests is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class ProgressDisplay:
    """A bar on a terminal, and a line every few seconds elsewhere; on the error stream.

    Args:
        title: what is being done.
        total: number of samples.
        enabled: False shows nothing.
        interval: seconds between lines where there is no terminal.
    """

    def __init__(self, title: str, total: int, *, enabled: bool = True, interval: float = 15.0) -> None:
        self.title = title
        self.total = total
        self.enabled = enabled and total > 0
        self.interval = interval
        self.done = 0
        self.failed = 0
        self.reused = 0
        self._bar: Any = None
        self._task: Any = None
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._started = self._shown = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        return self

    def advance(self, *, done: int = 0, reused: int = 0, failed: int = 0) -> None:
        """Counts samples that were answered, found in the store, or failed."""
        self.done += done
        self.reused += reused
        self.failed += failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + self.reused + self.failed, note=self._note())
        elif self.enabled and time.monotonic() - self._shown >= self.interval:
            self._shown = time.monotonic()
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.enabled and self._shown > self._started:
            # Short runs say nothing; one that has shown a line also shows its end.
            self._line()

    def _line(self) -> None:
        finished = self.done + self.reused + self.failed
        print(f"{self.title}: {finished}/{self.total}{self._note(', ')}", file=sys.stderr, flush=True)

    def _note(self, before: str = "") -> str:
        parts = [f"{self.reused} from the store"] if self.reused else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return before + ", ".join(parts) if parts else ""
