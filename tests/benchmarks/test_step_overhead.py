"""The benchmark of the training step runs, and finds what it is there to find; its times are no test's business."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_overhead.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("step_overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["step_overhead"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["step_overhead"]


def test_quick_run_compares_equal_steps_and_writes_no_file(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "step_overhead.json")
    sizes = ["--blocks", "3", "--steps", "2", "--batch", "4", "--warmup", "2"]
    plain, tapped = script.main(["--quick", "--cases", "small", "small_feature", *sizes])
    assert plain["hooks"] == {"student": 0, "teacher": 0}
    assert tapped["hooks"] == {"student": 1, "teacher": 1}
    for result in (plain, tapped):
        assert result["first_loss"]["ours"] == pytest.approx(result["first_loss"]["hand"], rel=1e-5)
        assert len(result["blocks"]) == 3
        assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert tapped["first_loss"]["ours"] > plain["first_loss"]["ours"]
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert not (tmp_path / "step_overhead.json").exists()


def test_both_variants_stay_equal_while_they_train(script: ModuleType) -> None:
    watch = script.train(script.CASES["small"], batch=4, blocks=2, steps=1, warmup=4)
    assert len(watch.losses) == 4
    for by_hand, ours in watch.losses:
        assert ours == pytest.approx(by_hand, rel=1e-3)
    assert len({by_hand for by_hand, _ in watch.losses}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hooks": (0, 1)}, "hooks"),
        ({"losses": [(1.0, 1.1)]}, "losses"),
        ({"wall": {"hand": [1.0], "ours": []}}, "blocks"),
    ],
)
def test_check_refuses_runs_that_do_not_compare(script: ModuleType, change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "hooks": (0, 0),
        "losses": [(1.0, 1.0)],
        "wall": {"hand": [1.0], "ours": [1.0]},
        "blocks": 1,
    }
    script.check(script.CASES["small"], SimpleNamespace(**good))
    with pytest.raises(AssertionError, match=message):
        script.check(script.CASES["small"], SimpleNamespace(**{**good, **change}))


def test_interval_encloses_the_median(script: ModuleType) -> None:
    median, low, high = script.median_interval([0.9, 1.0, 1.1, 1.0, 0.95])
    assert median == 1.0
    assert 0.9 <= low <= median <= high <= 1.1
