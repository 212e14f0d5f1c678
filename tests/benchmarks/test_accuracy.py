"""The accuracy benchmarks: every shipped method has its row, differences are paired, finished runs are kept."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy import stats

from kdlightning.commands.shipped import read_header, shipped

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as their own folder sees them."""
    names = ("paired", "tracers", "quickstart")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def result(seed: int, acc: float, name: str = "a/b") -> dict[str, Any]:
    return {
        "seed": seed,
        "module": "DistillModule",
        "config": {"name": name, "hash": "0" * 12, "student_hash": "1", "files": ["/somewhere/else.yaml"]},
        "monitor": {"name": "val/acc", "mode": "max"},
        "metrics": {"test": {"last": {"acc": acc, "agreement": None}, "best": {"acc": 0.0}}},
        "history": {"val/acc": [[0.0, 1.0, 0.5]]},
        "seconds": 3.0,
        "epochs": 2,
        "steps": 4,
        "student": {"class": "Net", "parameters": 10, "latency_ms": 0.1, "bytes": 40},
        "versions": {"torch": "2"},
        "notes": [],
    }


def test_difference_is_paired_by_seed_and_its_interval_is_students(scripts: dict[str, Any]) -> None:
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.95, 7: 0.1}, {0: 0.85, 1: 0.79, 2: 0.88, 9: 0.99}
    found = scripts["paired"].paired_difference(ours, theirs)
    test = stats.ttest_rel([0.9, 0.8, 0.95], [0.85, 0.79, 0.88])
    interval = test.confidence_interval(0.95)
    assert found.pairs == 3
    assert found.mean == pytest.approx((0.05 + 0.01 + 0.07) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean / found.standard_error == pytest.approx(test.statistic)
    assert scripts["paired"].paired_difference({0: 1.0}, {0: 0.5}) is None


def test_a_record_keeps_numbers_and_no_places(scripts: dict[str, Any]) -> None:
    kept = scripts["paired"].record(result(3, 0.9))
    assert "somewhere" not in json.dumps(kept)
    assert "history" not in kept
    assert scripts["paired"].score(kept, "acc") == 0.9
    assert scripts["paired"].by_seed([kept], "acc") == {3: 0.9}


def test_every_shipped_method_is_measured_beside_a_baseline(scripts: dict[str, Any]) -> None:
    headers = {name: read_header(path) for name, path in shipped().items()}
    groups = scripts["tracers"].GROUPS.values()
    measured = {method for group in groups for method in group.methods}
    assert measured == {name for name, header in headers.items() if "kind" not in header}
    for group in groups:
        assert headers[group.baseline]["kind"] == "baseline"
        assert group.teacher is None or headers[group.teacher]["kind"] == "baseline"
        assert group.seeds >= 3


def test_table_shows_differences_and_what_is_missing(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracers = scripts["tracers"]
    monkeypatch.setattr(tracers, "RESULTS", tmp_path / "tracers")
    for seed in range(5):
        for config, acc in (("supervised/digits", 0.9), ("offline/response/kd", 0.92 + 0.001 * seed)):
            tracers.write(tracers.place(config, seed), scripts["paired"].record(result(seed, acc, config)))
    rows = {row.split("`")[1]: row for row in tracers.table().splitlines() if row.startswith("| `")}
    assert "0.9220 ± 0.0016 | +0.0220 (+0.0200 to +0.0240)" in rows["offline/response/kd"]
    assert "5 of 5" in rows["offline/response/kd"]
    assert "0 of 5" in rows["offline/response/dkd"]
    tracers.draw(tmp_path / "tracers.png")
    assert (tmp_path / "tracers.png").stat().st_size > 1000


def test_finished_runs_are_skipped_and_failed_ones_name_their_log(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracers = scripts["tracers"]
    monkeypatch.setattr(tracers, "RESULTS", tmp_path / "tracers")
    options = argparse.Namespace(work=tmp_path, data=tmp_path, threads=1)
    commands = []

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(tracers.subprocess, "run", fail)
    tracers.write(tracers.place("online/dml", 1), scripts["paired"].record(result(1, 0.9)))
    tracers.run("online/dml", 1, None, options)
    assert commands == []
    with pytest.raises(SystemExit, match=r"online/dml seed 2 failed; its log is .*online.dml-2.log"):
        tracers.run("online/dml", 2, "data.npz", options)
    assert "--seed_everything=2" in commands[0]
    assert f"--data.path={tmp_path}/data.npz" in commands[0]


def test_quickstart_table_pairs_the_students(scripts: dict[str, Any]) -> None:
    records = [
        {"stage": stage, **scripts["paired"].record(result(seed, acc + 0.01 * seed))}
        for seed in range(3)
        for stage, acc in (("teacher", 0.95), ("alone", 0.8), ("distilled", 0.85))
    ]
    text = scripts["quickstart"].table(records)
    assert "| student, distilled | 0.8600 ± 0.0100 | +0.0500 (+0.0500 to +0.0500) | 10 |" in text
