"""fit, validate, test, predict: run folders, results, resuming, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdlightning.commands.results import config_hash, student_hash
from kdlightning.commands.runs import RunPlace

RUN = Path("runs/tiny/seed0/version_0")


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_fit_leaves_a_whole_run(command, config) -> None:
    outcome = command("fit", "-c", config())
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert "epoch 2/2" in outcome.out
    names = {path.name for path in RUN.rglob("*") if path.is_file()}
    assert {"best.ckpt", "last.ckpt", "config.yaml", "result.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    result = result_of(RUN)
    assert set(result["metrics"]["val"]) == {"last", "best"}
    assert 0 <= result["metrics"]["val"]["last"]["acc"] <= 1
    assert "test" not in result["metrics"]
    assert result["config"]["name"] == "tiny"
    assert result["seed"] == 0
    assert result["labels_alone"] is True
    assert [point[0] for point in result["history"]["val/acc"]] == [0, 1]
    assert result["student"]["inputs"] == {"shape": [1, 8, 8], "dtype": "float32"}
    assert result["student"]["latency_ms"] > 0
    assert {"torch", "lightning", "kdlightning", "python"} <= set(result["versions"])


def test_test_adds_both_checkpoints_to_the_result(command, config) -> None:
    command("fit", "-c", config())
    outcome = command("test", "-c", config())
    assert outcome.code == 0, outcome.err
    assert "test · last" in outcome.out
    assert "test · best (chosen by validation)" in outcome.out
    metrics = result_of(RUN)["metrics"]
    assert set(metrics["test"]) == {"last", "best"}
    assert set(metrics["val"]) == {"last", "best"}
    assert command("validate", "-c", config(), "--ckpt_path", "best").code == 0


def test_a_best_checkpoint_that_was_chosen_on_test_is_not_reportable(command, config) -> None:
    path = config(data={"val_split": 0})
    fitted = command("fit", "-c", path)
    assert "note: validation reads the test split: the best checkpoint is not reportable" in fitted.out
    assert "test · best (chosen on test, not reportable)" in command("test", "-c", path).out
    assert result_of(RUN)["validates_on_test"] is True


def test_a_checkpoint_alone_is_enough_to_measure_it(command, config) -> None:
    command("fit", "-c", config())
    outcome = command("test", "--ckpt_path", RUN / "checkpoints" / "best.ckpt")
    assert outcome.code == 0, outcome.err
    assert set(result_of(RUN)["metrics"]["test"]) == {"best"}


def test_the_student_as_it_is_built_can_be_tested(command, config, tmp_path: Path) -> None:
    outcome = command("test", "-c", config(), "--ckpt_path", "null")
    assert outcome.code == 0, outcome.err
    assert "test · built" in outcome.out
    assert not list(tmp_path.rglob("result.json"))


def test_resuming_last_goes_on_in_the_same_folder_as_if_undisturbed(command, config) -> None:
    command("fit", "-c", config("whole"), "--trainer.max_epochs=4")
    command("fit", "-c", config(), "--trainer.max_epochs=2")
    outcome = command("fit", "-c", config(), "--trainer.max_epochs=4", "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    assert not (RUN.parent / "version_1").exists()
    whole = Path("runs/whole/seed0/version_0")
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (RUN, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    curves = [[(p[0], p[2]) for p in result_of(run)["history"]["val/loss"]] for run in (RUN, whole)]
    assert curves[0] == curves[1]
    assert (RUN / "config.resume-1.yaml").is_file()
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_each_fit_has_a_folder_of_its_own(command, config) -> None:
    for _ in range(2):
        command("fit", "-c", config(), "--trainer.max_epochs=1")
    command("fit", "-c", config(), "--trainer.max_epochs=1", "--seed_everything=5", "--name", "group/mine")
    folders = {str(path.parent) for path in Path("runs").rglob("result.json")}
    assert folders == {str(RUN), str(RUN.parent / "version_1"), "runs/group/mine/seed5/version_0"}


def test_a_saved_configuration_repeats_its_run(command, config) -> None:
    command("fit", "-c", config())
    assert command("fit", "-c", RUN / "config.yaml").code == 0
    first, again = result_of(RUN), result_of(RUN.parent / "version_1")
    assert first["config"]["hash"] == again["config"]["hash"]
    assert first["metrics"] == again["metrics"]


def test_predict_writes_a_line_for_each_sample(command, config) -> None:
    command("fit", "-c", config())
    outcome = command("predict", "-c", config(), "--ckpt_path", "best")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (RUN / "predictions.jsonl").read_text().splitlines()]
    assert f"{len(rows)} predictions" in outcome.out
    assert [row["index"] for row in rows] == list(range(597))
    assert all(set(row) == {"index", "prediction", "probability", "target"} for row in rows)
    assert all(0 <= row["probability"] <= 1 for row in rows)
    assert not list(RUN.glob(".predictions*"))


def test_fit_then_test_and_export_in_one_process(command, config) -> None:
    outcome = command("fit", "-c", config(), "--then", "test,export")
    assert outcome.code == 0, outcome.err
    result = result_of(RUN)
    assert set(result["metrics"]["test"]) == {"last", "best"}
    assert result["export"]["format"] == "safetensors"
    assert result["student"]["file_bytes"] == (RUN / "export" / "model.safetensors").stat().st_size


def test_callbacks_of_the_configuration_are_not_doubled(command, config) -> None:
    listed = [
        {"class_path": "LatestCheckpoint", "init_args": {"every_n_train_steps": 1}},
        {"class_path": "BestCheckpoint"},
    ]
    outcome = command("fit", "-c", config(trainer={"callbacks": listed}))
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_dry_step_leaves_nothing(command, config, tmp_path: Path) -> None:
    outcome = command("fit", "-c", config(), "--trainer.fast_dev_run=true")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "runs").exists()


def test_later_configurations_win_and_name_the_run(command, config, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("trainer: {max_epochs: 1}")
    assert command("fit", "-c", config(), "-c", "short.yaml").code == 0
    assert result_of(Path("runs/tiny+short/seed0/version_0"))["epochs"] == 1


def test_taps_prints_both_networks_of_a_configuration(command, config) -> None:
    network = {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [4, 8]}}
    # The teacher need not be trained yet to look inside it.
    teacher = {"class_path": "kdlightning.FrozenTeacher", "init_args": {"model": network, "checkpoint": "missing.ckpt"}}
    path = config(mode="OfflineDistillation", model={"teacher": teacher})
    found = json.loads(command("taps", "-c", path, "--json").out)
    assert set(found) == {"student", "teacher"}
    shapes = {row["name"]: row["shape"] for row in found["teacher"]}
    assert shapes["stages.0"] == [2, 4, 8, 8]
    assert shapes["pre_logits"] == [2, 8]
    only = command("taps", "-c", path, "--role", "student").out
    assert only.startswith("student: ConvNet")
    assert "teacher" not in only
    assert not Path("runs").exists()


def test_taps_of_a_timm_model(command) -> None:
    found = {
        row["name"]: row["shape"]
        for row in json.loads(command("taps", "test_resnet", "--input", "1,32,32", "--json").out)
    }
    assert found["fc"] == [2, 1000]
    assert "did you mean resnet50" in command("taps", "restnet50").sentence


def test_taps_of_a_cifar_network(command) -> None:
    found = {row["name"]: row["shape"] for row in json.loads(command("taps", "cifar/resnet8x4", "--json").out)}
    assert found["stages.0"] == [2, 64, 32, 32]
    assert found["pre_logits"] == [2, 256]
    assert found["logits"] == [2, 100]
    grey = json.loads(command("taps", "cifar/vgg8", "--input", "1,64,64", "--json").out)
    assert {row["name"]: row["shape"] for row in grey}["stages.1"] == [2, 128, 32, 32]
    assert "did you mean resnet8x4" in command("taps", "cifar/resnet8x").sentence


def test_places_count_versions_and_find_checkpoints(tmp_path: Path) -> None:
    place = RunPlace(tmp_path, "a/b", 1)
    assert place.new().name == "version_0"
    for version in (0, 2, 10):
        (place.folder / f"version_{version}" / "checkpoints").mkdir(parents=True)
    (place.folder / "version_2" / "checkpoints" / "last.ckpt").touch()
    assert place.new().name == "version_11"
    newest = place.newest_with("last")
    assert newest is not None
    assert newest.name == "version_2"
    assert place.newest_with("best") is None


def test_hashes_ignore_seed_and_place_and_see_settings() -> None:
    def made(seed: int, temperature: float = 4.0) -> dict[str, Any]:
        teacher = {"checkpoint": f"runs/t/seed{seed}/version_{seed}/checkpoints/last.ckpt"}
        options = {"student": {"class_path": "S"}, "teacher": teacher, "temperature": temperature}
        return {
            "seed_everything": seed,
            "trainer": {"max_epochs": 3, "default_root_dir": f"r{seed}", "logger": None},
            "model": {"class_path": "M", "init_args": options},
            "data": {"class_path": "D"},
        }

    assert config_hash(made(0)) == config_hash(made(1))
    assert config_hash(made(0)) != config_hash(made(0, temperature=2.0))
    assert student_hash(made(0)) == student_hash(made(0, temperature=2.0))


@pytest.mark.parametrize(
    ("epoch", "said"),
    [
        (0, "interrupted before the first checkpoint; nothing is kept"),
        (1, "interrupted; the same command with --ckpt_path last goes on"),
    ],
)
def test_ctrl_c_in_training_says_how_to_go_on(
    epoch: int, said: str, command, config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from kdlightning import DistillModule

    plain = DistillModule.on_train_epoch_end

    def interrupt(module: Any) -> None:
        if module.current_epoch == epoch:
            raise KeyboardInterrupt
        plain(module)

    monkeypatch.setattr(DistillModule, "on_train_epoch_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    try:
        outcome = command("fit", "-c", config(), "--trainer.max_epochs=2")
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.code == 130
    assert outcome.sentence == said
    assert Path("runs").exists() == (epoch > 0)


def test_ctrl_c_is_one_line(command, config, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdlightning.commands.train.read_request", interrupt)
    outcome = command("fit", "-c", config())
    assert (outcome.code, outcome.sentence) == (130, "interrupted")
