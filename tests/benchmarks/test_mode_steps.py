"""The benchmark of online and self steps runs, and compares equal work; its times are no test's business."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("mode_steps")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("mode_steps", "step_overhead"):
            sys.modules.pop(name, None)


def test_peers_run_beside_single_steps_and_shares_are_judged(script: ModuleType) -> None:
    found = script.online(2, batch=2, blocks=2, steps=1)
    assert found["case"] == "DML of 2"
    assert min(found["milliseconds"].values()) > 0
    assert found["low"] <= found["median"] <= found["high"]
    text = script.table([{**found, "median": 1.04, "low": 1.03, "high": 1.06}, script.bookkeeping(2, 1)])
    assert "1.040 (1.030–1.060) | 1.05 | yes |" in text
    assert "| PS-KD's table |" in text
    assert "| no |" in script.table([{**found, "low": 1.06}])
