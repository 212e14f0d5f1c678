"""What a long run shows where there is no terminal."""

from __future__ import annotations

import pytest

from kdlightning.generation.progress import ProgressDisplay


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
