"""The benchmark of reasoning: its configurations are those of one student, and its table shows what is missing."""

from __future__ import annotations

import importlib
import json
import sys
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
        yield importlib.import_module("symbolic")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("symbolic", "accuracy_workers", "accuracy_groups", "paired"):
            sys.modules.pop(name, None)


@pytest.fixture
def work(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(script, "PARTS", {"test": 5, "student": 10, "teacher": 15})
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    made = script.Work(tmp_path, "arithmetic")
    made.write_records()
    for writes in script.WRITES:
        version = made.run(f"teacher_{writes}", 0) / "version_0"
        version.mkdir(parents=True)
        (version / "result.json").write_text("{}")
    return made


def test_no_question_is_in_two_parts(work: Any) -> None:
    parts = {
        name: {json.loads(line)["question"] for line in work.part(name).read_text().splitlines()}
        for name in ("test", "student", "teacher")
    }
    assert {name: len(questions) for name, questions in parts.items()} == {"test": 5, "student": 10, "teacher": 15}
    assert len(set().union(*parts.values())) == 30


def test_rows_differ_in_the_method_alone(script: ModuleType, work: Any) -> None:
    contents = {row: work.student(row) for row in script.METHODS}
    for content in contents.values():
        data = content["data"]["init_args"]
        for name in ("method", "generator", "store", "student"):
            data.pop(name, None)
    assert all(content == contents[script.BASELINE] for content in contents.values())
    assert contents[script.BASELINE]["data"]["init_args"]["test_path"] == str(work.part("test"))


def test_a_stage_waits_for_what_it_needs(script: ModuleType, work: Any) -> None:
    lists = script._of_seed(work, 0, list(script.METHODS))
    names = [next(lists)[0].title for _ in range(5)]
    assert names[-2:] == ["arithmetic mt_cot seed 0", "arithmetic decomposer seed 0"]
    with pytest.raises(ValueError, match="empty"):
        next(lists)  # the solver is tested with a decomposer that nobody has trained here


def test_table_shows_what_is_missing(script: ModuleType, work: Any) -> None:
    for row, values in {"answer_only": (0.5, 0.6), "fine_tune_cot": (0.7, 0.9), "fine_tune_cot_8": (0.8,)}.items():
        for seed, value in enumerate(values):
            script.write(
                script.place("arithmetic", row, seed), {"seed": seed, "metrics": {"test": {"last": {"acc": value}}}}
            )
    rows = {row[1]: row for row in script.rows_of("arithmetic")}
    assert rows["answers alone"][2].startswith("0.5500")
    assert rows["Fine-tune-CoT, D = 1"][3].startswith("+0.2500")
    assert [row[-1] for row in rows.values()] == ["2 of 3", "2 of 3", "1 of 3", "0 of 3", "0 of 3"]
