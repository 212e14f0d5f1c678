"""Runs against a server are killed at random moments; the server counts what it is asked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kills() -> Iterator[ModuleType]:
    """The functions of the benchmark, which kills a hundred times."""
    pytest.importorskip("openai")
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("generation_kills")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("generation_kills", "generation_worker", "loopback"):
            sys.modules.pop(name, None)


def test_five_kills_cost_no_more_than_what_was_in_flight(kills: ModuleType, tmp_path: Path) -> None:
    found = kills.kill_often(tmp_path, kills=5, count=150)
    found.check()
    assert found.kills >= 4, "the last may have finished before its moment"
    assert found.wanted.total() == 200
    assert len(found.repeated) == 6


def test_processes_that_share_a_store_ask_for_nothing_twice(kills: ModuleType, tmp_path: Path) -> None:
    asked, wanted, right = kills.share(tmp_path, processes=3, count=90)
    assert right
    assert asked == wanted == 120
