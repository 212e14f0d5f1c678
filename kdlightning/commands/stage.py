"""Runs one stage of a recipe as a process, with its log and its line on the screen."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdlightning.errors import ConfigurationError
from kdlightning.recipe import Plan


class Screen:
    """Which stage of how many runs, for how long, and what it says: a line that moves, or lines in a plain log.

    Args:
        seconds: least time between two lines that a plain log takes over from a stage.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.live = sys.stdout.isatty()
        self.begun = time.monotonic()
        self.place = ""
        self._stage_begun = self._written = time.monotonic()
        self._last = ""

    def show(self, plan: Plan, number: int, count: int) -> None:
        """A stage begins, or is skipped."""
        self.place = f"[{number}/{count}] {plan.stage.name}"
        self._stage_begun = self._written = time.monotonic()
        self._last = "starting"
        rest = "with what its store lacks" if plan.stage.command == "generate" else "from its last checkpoint"
        words = {"skip": "finished before, skipped", "resume": f"goes on {rest}", "run": plan.reason}
        text = f"{self.place}: {words[plan.action]}" if plan.action != "run" else f"{self.place}: {plan.stage.command}"
        if plan.reason.startswith(("its settings", "/")) or plan.reason.endswith("changed"):
            text += f" ({plan.reason})"
        print(text, flush=True)

    def say(self, line: str) -> None:
        """The stage wrote a line."""
        self._last = line
        if not self.live and time.monotonic() - self._written >= self.seconds:
            self._written = time.monotonic()
            print(f"  {line}", flush=True)

    def tick(self) -> None:
        """Moves the line of a terminal."""
        if self.live:
            spent = time.monotonic() - self._stage_begun
            width = os.get_terminal_size().columns - 1
            print(f"\r\x1b[2K{f'{self.place} · {spent:.0f} s · {self._last}'[:width]}", end="", flush=True)

    def done(self, code: int) -> None:
        """The stage ended."""
        clear = "\r\x1b[2K" if self.live else ""
        spent = time.monotonic() - self._stage_begun
        how = "done" if code == 0 else "failed"
        print(
            f"{clear}{self.place}: {how} in {spent:.0f} s  {_scores(self._last) if code == 0 else ''}".rstrip(),
            flush=True,
        )


def _scores(line: str) -> str:
    parts = line.split(" · ")
    return parts[1] if line.startswith("done in") and len(parts) > 2 else ""


def run_stage(plan: Plan, command: list[str], screen: Screen, lock: IO[Any] | None = None) -> int:
    """Runs a stage; its output goes to its log, and its last line to the screen.

    Args:
        plan: the stage.
        command: what to start.
        screen: where progress is shown.
        lock: the recipe's lock; the process keeps it, so that no other run of the recipe starts while it lives.

    Returns:
        The exit code, 1 for a process that was killed.
    """
    with plan.log.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=() if lock is None else (lock.fileno(),),
        )
        try:
            with _ends(process):
                _follow(process, log, screen)
                code = process.wait()
        finally:
            _stop(process)
    code = code if code >= 0 else 1
    screen.done(code)
    return code


def _follow(process: subprocess.Popen[bytes], log: IO[bytes], screen: Screen) -> None:
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    rest = b""
    while True:
        screen.tick()
        if not selector.select(timeout=0.5):
            continue
        block = os.read(process.stdout.fileno(), 1 << 16)
        if not block:
            break
        log.write(block)
        log.flush()
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                screen.say(text)
    selector.close()


@contextmanager
def _ends(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A recipe that is asked to end takes its stage along."""

    def end(number: int, frame: Any) -> None:
        process.terminate()
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def locked(folder: Path, wait: float = 20.0) -> Iterator[IO[Any] | None]:
    """Only one run of a recipe at a time; a stage that a killed run left behind counts.

    Raises:
        ConfigurationError: another one is still running after `wait` seconds.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise ConfigurationError(f"another run of this recipe is going on in {folder}") from error
                time.sleep(0.2)
        yield file


def tail(log: Path, lines: int = 12) -> list[str]:
    """The last lines of a log that are not empty."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return [line for line in text.splitlines() if line.strip()][-lines:]
