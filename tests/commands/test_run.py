"""`run`: stages as processes, their logs, their place on the screen, the table."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from kdlightning.commands import run as run_module
from kdlightning.commands.stage import Screen, locked, run_stage, tail
from kdlightning.errors import ConfigurationError
from kdlightning.recipe import Plan, Stage

RECIPE = """
stages:
  teacher: {role: teacher, label: teacher, config: {model: {}}}
  alone: {role: baseline, label: "student, labels alone", config: {model: {}}}
  distilled:
    role: student
    label: student, distilled
    config: {model: {checkpoint: "${stages.teacher.last}"}}
"""


def plan(tmp_path: Path) -> Plan:
    return Plan(Stage("a", "a", "fit"), "run", "not run yet", "key", None, [], tmp_path / "a.log")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_a_stage_writes_its_log_and_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(seconds=0.0)
    screen.show(plan(tmp_path), 2, 3)
    code = run_stage(plan(tmp_path), python("print('epoch 1/2'); print('done in 1 s · val/acc 0.5 · x')"), screen)
    out = capsys.readouterr().out.splitlines()
    assert code == 0
    assert out[0] == "[2/3] a: fit"
    assert out[1].strip() == "epoch 1/2"
    assert out[-1].startswith("[2/3] a: done in ")
    assert out[-1].endswith("val/acc 0.5")
    assert "epoch 1/2" in (tmp_path / "a.log").read_text()


def test_a_failing_stage_gives_its_code_and_its_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_stage(plan(tmp_path), python("import sys; print('one'); sys.exit('no such thing')"), Screen())
    assert code == 1
    assert tail(tmp_path / "a.log")[-1] == "no such thing"
    assert ": failed in " in capsys.readouterr().out


def test_a_killed_stage_counts_as_failed(tmp_path: Path) -> None:
    assert run_stage(plan(tmp_path), python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), Screen()) == 1


def test_only_one_run_of_a_recipe_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ConfigurationError, match="another run of this recipe is going on"),
        locked(tmp_path, wait=0.3),
    ):
        pass
    with locked(tmp_path, wait=0.3):
        pass


@pytest.fixture
def recipe(tmp_path: Path, made_result: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose stages take their results from here, without processes."""
    scores = {"teacher": 0.99, "alone": 0.9, "distilled": 0.95}
    fails: set[str] = set()

    def pretend(plan: Plan, command: list[str], screen: Screen, lock: Any) -> int:
        name = plan.stage.name
        if (tmp_path / "fail").exists():
            plan.log.write_text("one line\nanother line\n")
            return 2
        made = made_result(name, 0, scores[name], alone=name != "distilled")
        assert plan.run is not None
        (plan.run / "checkpoints").mkdir(parents=True)
        for which in ("last", "best"):
            (plan.run / "checkpoints" / f"{which}.ckpt").write_text(name)
        result = json.loads((made / "result.json").read_text())
        result["student"]["latency_ms"] = 1.5
        if name == "distilled":
            result["metrics"]["test"]["last"]["agreement"] = 0.97
            result["export"] = {"format": "safetensors", "path": "export", "load": "load(student)"}
        (plan.run / "result.json").write_text(json.dumps(result))
        return 0

    fails.clear()
    monkeypatch.setattr(run_module, "run_stage", pretend)
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_the_end_is_a_table_a_chart_and_where_to_look(command, recipe: Path, tmp_path: Path) -> None:
    outcome = command("run", recipe, "--output", "out")
    assert outcome.code == 0, outcome.err
    rows = {line.split("  ")[0]: line for line in outcome.out.splitlines()}
    assert "0.9900" in rows["teacher"]
    assert "0.9000" in rows["student, labels alone"]
    for value in ("0.9500", "0.9700", "1,234", "1.50 ms", "5.0 kB"):
        assert value in rows["student, distilled"]
    assert "* chosen by validation" in outcome.out
    assert "TensorBoard: tensorboard --logdir out/mine" in outcome.out
    assert "student:     out/mine/distilled/seed0/version_0/export" in outcome.out
    assert (tmp_path / "out/mine/recipe/seed0/chart.png").is_file()


def test_a_second_run_skips_and_shows_the_table_again(command, recipe: Path) -> None:
    command("run", recipe)
    outcome = command("run", recipe)
    assert outcome.out.count("finished before, skipped") == 3
    assert "student, distilled" in outcome.out


def test_a_dry_run_only_says_what_would_happen(command, recipe: Path, tmp_path: Path) -> None:
    outcome = command("run", recipe, "--dry-run")
    assert "[1/3] teacher: runs (not run yet)" in outcome.out
    assert "kdlightning fit --config" in outcome.out
    assert not (tmp_path / "runs").exists()


def test_a_failing_stage_names_its_log(command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    outcome = command("run", recipe)
    assert outcome.code == 2
    assert "  | another line" in outcome.err
    assert "stage 'teacher' failed; its log is runs/mine/recipe/seed0/logs/teacher.log" in outcome.err
    (tmp_path / "fail").unlink()
    assert command("run", recipe).code == 0


def test_without_baseline_the_table_has_two_lines(command, recipe: Path) -> None:
    outcome = command("run", recipe, "--no-baseline")
    assert outcome.code == 0, outcome.err
    assert "[2/2] distilled" in outcome.out
    assert "labels alone" not in outcome.out
