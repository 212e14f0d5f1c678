"""What a long run shows where there is no terminal."""

from __future__ import annotations

import io
import sys

import pytest

from kdlightning.generation.progress import ProgressDisplay
from kdlightning.generation.usage import Usage


def test_lines_tell_what_came_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("Rationales", 4, interval=0.0) as display:
        display.advance(reused=2)
        display.advance(done=1)
        display.advance(failed=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Rationales: 2/4, 2 from the store"
    assert lines[-1] == "Rationales: 4/4, 2 from the store, 1 failed"


def test_short_runs_and_switched_off_ones_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (True, False):
        with ProgressDisplay("Rationales", 4, enabled=enabled, interval=0.0 if not enabled else 60.0) as display:
            display.advance(done=4)
    assert capsys.readouterr().err == ""


def test_rate_cost_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("kdlightning.generation.progress.time.monotonic", lambda: now[0])
    with ProgressDisplay("Rationales", 10_000, interval=15.0) as display:
        display.advance(reused=4000)
        for _ in range(2):
            now[0] += 10
            display.spent(Usage(50, 30_000, 2_000, 0.0123))
            display.advance(done=50)
    line = capsys.readouterr().err.splitlines()[0]
    assert line == ("Rationales: 4100/10000, 4000 from the store, 5 answers/s, 19:40 left, 64,000 tokens, $0.0246")


def test_a_terminal_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressDisplay("Rationales", 4) as display:
        display.spent(Usage(1, 7, 3, 0.5))
        display.advance(done=3, failed=1)
    shown = stream.getvalue()
    assert "Rationales" in shown
    assert "4/4" in shown
    assert "1 failed, 10 tokens, $0.5" in shown
