"""Mistakes leave files as they were, and no score is put under another run's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RUN = Path("runs/tiny/seed0/version_0")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def result() -> dict[str, Any]:
    return json.loads((RUN / "result.json").read_text())


@pytest.mark.parametrize(
    "words",
    [("fit",), ("fit", "--model.task.num_classes=12"), ("test", "--ckpt_path", "null", "--model.task.num_classes=12")],
)
def test_a_folder_that_was_there_is_never_removed(words, command, config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("precious")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "thesis.txt").write_text("years of work")
    before = files_below(folder)
    outcome = command(words[0], "-c", config(), "--run", "precious", *words[1:])
    assert outcome.code == 2
    assert outcome.sentence
    assert files_below(folder) == before


def test_other_data_do_not_overwrite_a_runs_scores(command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    assert command("test", "-c", config()).code == 0
    before = (RUN / "result.json").read_bytes()
    outcome = command("test", "-c", config(), "--model.task.label_smoothing=0.5")
    assert outcome.code == 0
    assert "is left as it is" in outcome.out
    assert (RUN / "result.json").read_bytes() == before


def test_a_finished_run_that_is_resumed_keeps_its_test_scores(command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    assert command("test", "-c", config()).code == 0
    tested = result()["metrics"]["test"]
    assert command("fit", "-c", config(), "--trainer.max_epochs=1", "--ckpt_path", "last").code == 0
    assert result()["metrics"]["test"] == tested
    assert command("fit", "-c", config(), "--trainer.max_epochs=2", "--ckpt_path", "last").code == 0
    assert "test" not in result()["metrics"]


def test_a_resume_that_does_not_fit_leaves_no_trace_in_the_run(command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    before = {name: content for name, content in files_below(RUN).items() if "tfevents" not in name}
    outcome = command("fit", "-c", config(), "--ckpt_path", "last", "--model.student.widths=[5,5]")
    assert outcome.code == 2
    assert {name: content for name, content in files_below(RUN).items() if "tfevents" not in name} == before


def test_a_damaged_result_is_written_anew(command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    (RUN / "result.json").write_text("{")
    assert "test the run again" in command("compare", "runs").sentence
    assert command("test", "-c", config()).code == 0
    assert result()["metrics"]["test"]["last"]["acc"] >= 0


@pytest.mark.parametrize("content", ['{"metrics": {}}', '{"metrics": 5}', "[]"])
def test_what_is_no_result_is_named(content: str, command, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    outcome = command("compare", "result.json")
    assert outcome.code == 2
    assert "result.json is no result of kdlightning" in outcome.sentence


@pytest.mark.parametrize("size", [0, 100, 5000])
@pytest.mark.parametrize("words", [("fit", "--ckpt_path", "last"), ("test",), ("predict",), ("export",)])
def test_a_cut_checkpoint_is_named(size: int, words: tuple[str, ...], command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    last = RUN / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:size])
    given = [str(RUN)] if words == ("export",) else ["-c", config()]
    outcome = command(words[0], *given, *words[1:])
    assert outcome.code == 2
    assert "last.ckpt is damaged" in outcome.sentence


def test_a_checkpoint_in_the_configuration_is_resumed_from(command, config) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    written = config().read_text()
    again = config()
    again.write_text(f"{written}\nckpt_path: last\n")
    assert command("fit", "-c", again, "--trainer.max_epochs=2").code == 0
    assert result()["epochs"] == 2
    assert not RUN.with_name("version_1").exists()
    again.write_text(f"{written}\nckpt_path: nowhere.ckpt\n")
    assert "there is no file nowhere.ckpt" in command("fit", "-c", again).sentence


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.response.temperature=0", "temperature must be above 0, not 0"),
        ("--model.optimizer.lr=-1", "Invalid learning rate: -1"),
        ("--model.optimizer.lr=high", "model.optimizer.lr: 'high' does not fit"),
        ("--then=tst", "--then tst"),
    ],
)
def test_refused_values_say_why(option: str, said: str, command, tmp_path: Path) -> None:
    outcome = command(
        "fit",
        "-c",
        "offline/response/kd",
        "--model.teacher.checkpoint=null",
        "--data.train_limit=64",
        "--trainer.max_epochs=1",
        option,
    )
    assert outcome.code == 2
    assert said in outcome.sentence
    assert not (tmp_path / "runs").exists()


def test_an_empty_configuration_is_named(command, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert "empty.yaml is empty" in command("fit", "-c", "empty.yaml").sentence


def test_peers_of_other_classes_are_named(command, tmp_path: Path) -> None:
    peers = '[{"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 7}}]'
    outcome = command("fit", "-c", "online/dml", f"--model.peers={peers}", "--data.train_limit=64")
    assert outcome.code == 2
    assert "the class counts differ" in outcome.sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ckpt_path", "${stages.first.last}"],
        ["--ckpt_path=${previous.best}"],
        ["--ckpt_path", "${stages.first.run}/checkpoints/last.ckpt", "--data.batch_size=32"],
        ["--model.label=${seed}"],
    ],
)
def test_products_that_are_not_made_yet_are_no_mistake(arguments: list[str], command, tmp_path: Path) -> None:
    import yaml

    late = {"command": "fit", "config": "supervised/digits", "arguments": arguments}
    recipe = {"stages": {"first": {"config": "supervised/digits"}, "late": late}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe))
    outcome = command("run", "two.yaml", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "[2/2] late: runs" in outcome.out


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"config": "nope/foo"}, "no configuration"),
        ({"config": {"trainr": {}}}, "'trainr' is no option of fit"),
        ({"config": [], "arguments": []}, "neither config nor arguments"),
        ({"config": "supervised/digits", "arguments": ["--trainer_max=1"]}, "has no option --trainer_max"),
        ({"config": "supervised/digits", "arguments": ["--ckpt_path", "${stages.first.last"]}, "does not close it"),
        ({"command": "generate", "config": "supervised/digits", "arguments": ["--max_reqests=1"]}, "max_requests"),
        ({"command": "generate"}, "neither config nor arguments"),
    ],
)
def test_a_recipes_late_stages_are_checked_before_the_first_runs(
    stage: dict, said: str, command, tmp_path: Path
) -> None:
    import yaml

    recipe = {"stages": {"first": {"config": "supervised/digits"}, "late": stage}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe))
    outcome = command("run", "two.yaml")
    assert outcome.code == 2
    assert "stage 'late'" in outcome.sentence
    assert said in outcome.sentence
    assert not (tmp_path / "runs").exists()
