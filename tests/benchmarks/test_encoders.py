"""The benchmark of encoders: its students begin alike and see the texts equally often."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("encoders")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("encoders", "accuracy_workers", "paired"):
            sys.modules.pop(name, None)


@pytest.fixture
def options(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    return Namespace(
        work=tmp_path, tasks=["sst2"], methods=list(script.METHODS), encoder="folder", data=Path("data"), jobs=1
    )


def finish(work: Any, name: str, seed: int) -> None:
    version = work.run(name, seed) / "version_0"
    version.mkdir(parents=True)
    (version / "result.json").write_text("{}")


@pytest.mark.parametrize("row", ["alone", "kd", "patient_kd", "minilm_v2", "tinybert"])
def test_every_row_sees_the_texts_equally_often(script: ModuleType, options: Namespace, row: str) -> None:
    work = script.Work(options.work, "sst2", options.encoder, options.data)
    for name in ("teacher", f"{row}_1"):
        finish(work, name, 0)
    contents = [work.stage(row, number, 0) for number in range(len(script.METHODS[row]))]
    assert sum(content["trainer"]["max_epochs"] for content in contents) == 4
    first = contents[0]["model"]["init_args"]["student"]
    assert first == work.student()
    for content in contents[1:]:
        started = content["model"]["init_args"]["student"]
        assert started["class_path"] == "kdlightning.started_from"
        assert started["init_args"]["model"] == first
    assert len({json.dumps(content["data"]) for content in contents}) == 1


def test_a_second_stage_begins_when_the_first_is_there(script: ModuleType, options: Namespace) -> None:
    lists = script.stages(options)
    assert [job.title for job in next(lists)] == ["sst2 teacher seed 0"]
    work = script.Work(options.work, "sst2", options.encoder, options.data)
    finish(work, "teacher", 0)
    titles = [job.title for job in next(lists)]
    assert titles == [f"sst2 {name} seed 0" for name in ("alone", "kd", "patient_kd", "minilm_v2_1", "tinybert_1")]
    for name in ("minilm_v2_1", "tinybert_1"):
        finish(work, name, 0)
    assert [job.title for job in next(lists)] == ["sst2 minilm_v2 seed 0", "sst2 tinybert seed 0"]


def test_table_shows_what_is_missing_and_what_was_kept(script: ModuleType, options: Namespace) -> None:
    for row, values in {"teacher": (0.9,), "alone": (0.8, 0.82), "tinybert": (0.85, 0.86)}.items():
        for seed, value in enumerate(values):
            found = {"seed": seed, "student": {"parameters": 7}, "metrics": {"test": {"last": {"acc": value}}}}
            script.write(script.place("sst2", row, seed), found)
    rows = {row[1]: row for row in script.rows_of("sst2")}
    assert rows["TinyBERT's two task stages"][4] == "95.0 %"
    assert rows["TinyBERT's two task stages"][3].startswith("+0.0450")
    assert [row[-1] for row in rows.values()] == ["1 of 1", "2 of 3", "0 of 3", "0 of 3", "0 of 3", "2 of 3"]
