"""The benchmark of TinyBERT's step runs, and both variants compute the same loss; its times are no test's business."""

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
        yield importlib.import_module("tinybert_step")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("tinybert_step", "step_overhead"):
            sys.modules.pop(name, None)


def test_both_variants_learn_alike_and_are_judged(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(script.CASES, "tiny", script.Case((2, 8), (4, 16), 2, 2, 8))
    found = script.measure("tiny", blocks=2, steps=1)  # compares the losses of the first steps
    assert found["first_loss"]["hand"] == pytest.approx(found["first_loss"]["ours"], rel=1e-4)
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    row = {**found, "ratio": {"median": 1.04, "low": 1.03, "high": 1.06}, "holds": True}
    assert "| 1.040 (1.030–1.060) |" in script.table([row])
    assert "| 1.05 | yes |" in script.table([row])
