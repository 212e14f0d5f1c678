"""Shows how far a long run of requests is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from kdlightning.generation.usage import Usage, priced


class ProgressDisplay:
    """A bar on a terminal, and a line every few seconds elsewhere; on the error stream.

    It tells what came from the store and what failed, and after the first second the answers a second, tokens and
    cost so far, and the time that is left at this rate.

    Args:
        title: what is being done.
        total: number of samples.
        enabled: False shows nothing.
        interval: seconds between lines where there is no terminal.
        unit: what is counted.
    """

    def __init__(
        self, title: str, total: int, *, enabled: bool = True, interval: float = 15.0, unit: str = "answers"
    ) -> None:
        self.title = title
        self.total = total
        self.enabled = enabled and total > 0
        self.interval = interval
        self.unit = unit
        self.done = 0
        self.failed = 0
        self.reused = 0
        self.usage = Usage()
        self._bar: Any = None
        self._task: Any = None
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._started = self._shown = time.monotonic()
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        return self

    @property
    def finished(self) -> int:
        """Samples that need no more."""
        return self.done + self.reused + self.failed

    def advance(self, *, done: int = 0, reused: int = 0, failed: int = 0) -> None:
        """Counts samples that were answered, found in the store, or failed."""
        if not done + reused + failed:
            return
        self.done += done
        self.reused += reused
        self.failed += failed
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown >= 0.1 or self.finished == self.total:
                self._shown = now
                self._bar.update(self._task, completed=self.finished, note=self._note())
        elif self.enabled and now - self._shown >= self.interval:
            self._shown = now
            self._line()

    def spent(self, usage: Usage) -> None:
        """Adds what a call cost."""
        self.usage += usage

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.finished, note=self._note())
            self._bar.stop()
        elif self.enabled and self._shown > self._started:
            # Short runs say nothing; one that has shown a line also shows its end.
            self._line()

    def _line(self) -> None:
        print(f"{self.title}: {self.finished}/{self.total}{self._note(', ')}", file=sys.stderr, flush=True)

    def _note(self, before: str = "") -> str:
        parts = [f"{self.reused} from the store"] if self.reused else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += self._pace(time.monotonic() - self._started)
        parts += [f"{self.usage.tokens:,} tokens"] if self.usage.tokens else []
        parts += [priced(self.usage.money)] if self.usage.money else []
        return before + ", ".join(parts) if parts else ""

    def _pace(self, seconds: float) -> list[str]:
        """Answers a second and the time left, once there is something to go by."""
        if seconds < 1 or not self.done:
            return []
        rate = self.done / seconds
        left = (self.total - self.finished) / rate
        return [f"{rate:.3g} {self.unit}/s"] + ([f"{_clock(left)} left"] if left else [])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
