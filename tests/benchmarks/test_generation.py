"""The benchmark of the engine runs, and writes no file when it is quick; its times are no test's business."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    pytest.importorskip("openai")
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("generation")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("generation", "generation_kills", "generation_worker", "loopback", "paired"):
            sys.modules.pop(name, None)


def test_quick_run_prints_a_table_and_writes_no_file(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    script.main(["--quick", "--cases", "cpu", "store"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| CPU time a request at 64 at a time, above a bare client",
        "| a look-up among 10,000 answers",
        "| resuming a run of 10,000 stored answers",
    ]
    assert not (tmp_path / "results").exists()


def test_kept_results_have_their_rows(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--table"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == sum({"cpu": 1, "store": 2, "kills": 3}[path.stem] for path in script.RESULTS.glob("*.json"))
    assert all(line in (FOLDER / "README.md").read_text() for line in lines)


def test_a_broken_promise_is_an_error(script: ModuleType) -> None:
    kills: Any = importlib.import_module("generation_kills")
    found = kills.Kills(repeated=[0], asked_again=1, equal=True)
    with pytest.raises(AssertionError, match="1 committed answers were asked for again"):
        found.check()
    with pytest.raises(AssertionError, match="more than 16 repeated"):
        kills.Kills(repeated=[17, 0], equal=True).check()
    with pytest.raises(AssertionError, match="not that of the undisturbed run"):
        kills.Kills(repeated=[0]).check()
