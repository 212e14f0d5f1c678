"""Runs the command in this process: each process of its own would pay seconds of imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdlightning.cli import main


@dataclass
class Outcome:
    """What a command left: exit code, both streams."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr, without the program's name."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("kdlightning: ")
        assert "Traceback" not in self.err
        return lines[0].removeprefix("kdlightning: ")


Command = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("fit", "-c", path)` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration: a tiny student on labels alone, changed by keyword."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        import yaml

        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny(**changes)), encoding="utf-8")
        return path

    return write


def tiny(
    *,
    student: dict[str, Any] | None = None,
    classes: int = 10,
    mode: str = "DistillModule",
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Options of a run that takes a fraction of a second."""
    network = {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [4]}}
    options = {
        "student": student or network,
        "task": {"class_path": "Classification", "init_args": {"num_classes": classes}},
        **(model or {}),
    }
    return {
        "model": {"class_path": mode, "init_args": options},
        "data": {"class_path": "Digits", "init_args": {"batch_size": 64, "train_limit": 128, **(data or {})}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_test_batches": 2, "log_every_n_steps": 1}
        | (trainer or {}),
    }


@pytest.fixture
def made_result(tmp_path: Path) -> Callable[..., Path]:
    """Writes a `result.json` as a run leaves it."""

    def write(name: str, seed: int, test: float, *, alone: bool = False, version: int = 0, **changes: Any) -> Path:
        run = tmp_path / "runs" / name / f"seed{seed}" / f"version_{version}"
        run.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": 1,
            "config": {"name": name, "hash": f"{name}-hash", "student_hash": "s", "files": []},
            "seed": seed,
            "labels_alone": alone,
            "monitor": {"name": "val/acc", "mode": "max"},
            "metrics": {
                "val": {"last": {"acc": test - 0.01, "loss": 1.0}, "best": {"acc": test, "loss": 0.9}},
                "test": {"last": {"acc": test, "loss": 1.1}, "best": {"acc": test + 0.02, "loss": 1.0}},
            },
            "history": {"val/acc": [[0, 1, 0.3], [1, 2, test]]},
            "student": {"class": "ConvNet", "parameters": 1234, "bytes": 5000},
            "notes": [],
            **changes,
        }
        (run / "result.json").write_text(json.dumps(content), encoding="utf-8")
        return run

    return write
