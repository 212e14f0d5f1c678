"""Every wrong input is one sentence with a way out, exit code 2, and leaves no file behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdlightning import DistillModule
from kdlightning.data import DistillDataModule
from kdlightning.data.base import Sources

FITTED_BY_NAME = ["fit", "-c", "tiny.yaml"]


class NaNModule(DistillModule):
    """Its own term is NaN from the second step on."""

    def distill_terms(self, step: Any) -> dict[str, torch.Tensor]:
        return {"mine": step.student.logits.sum() * (math.nan if self.global_step else 1.0)}


class EmptyData(DistillDataModule):
    """Has no training samples."""

    def load(self) -> Sources:
        return Sources(train=[], test=None)


class Narrow(nn.Module):
    """Takes vectors of one length only."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is found before Lightning is imported.
EARLY = [
    (["-c", "tiny.yml"], "no configuration 'tiny.yml'"),
    (["tiny.yaml"], "needs -c before it: -c tiny.yaml"),
    (["-c"], "-c needs a value"),
    ([], "fit needs a configuration or a model"),
    (["-c", "tiny.yaml", "--max_epochs=3"], "fit has no option --max_epochs; did you mean --trainer.max_epochs"),
    (["-c", "tiny.yaml", "--seed=3"], "did you mean --seed_everything"),
    (["-c", "tiny.yaml", "--batch_size", "3"], "did you mean --data.batch_size"),
    (["-c", "tiny.yaml", "--trainer.max_epochs"], "--trainer.max_epochs needs a value"),
    (
        ["-c", "tiny.yaml", "--model", "OfflineDistilation"],
        "no class 'OfflineDistilation'; did you mean OfflineDistillation",
    ),
    (["-c", "tiny.yaml", "--data", "CIFAR"], "--data: kdlightning has no class 'CIFAR'; did you mean CIFAR10"),
    (["-c", "tiny.yaml", "--model", "nowhere.Model"], "cannot import 'nowhere'"),
    (["-c", "tiny.yaml", "--ckpt_path", "no.ckpt"], "--ckpt_path: there is no file no.ckpt"),
    (["-c", "tiny.yaml", "--model.teacher.checkpoint=no.ckpt"], "model.teacher.checkpoint: there is no file no.ckpt"),
    (["-c", "tiny.yaml", "--name", "../up"], "--name '../up': use letters"),
    (["-c", "offline/response/kd"], "make it with: kdlightning fit -c supervised/mnist1d_teacher"),
    (["-c", "recipes/quickstart"], "is a recipe: kdlightning run"),
]

# Options that the parser refuses, deep inside a configuration too.
PARSED = [
    (["--trainer.max_epochs=many"], "trainer.max_epochs: expected a whole number, not many"),
    (["--trainer.max_epoch=3"], "there is no option 'trainer.max_epoch'; did you mean max_epochs"),
    (["--seed_everything=x"], "seed_everything: expected true or false or a whole number, not x"),
    (["--data.batch_size=many"], "data.batch_size: expected a whole number, not many"),
    (["--data.batch_sise=3"], "data: Digits has no option 'batch_sise'; did you mean batch_size"),
    (["--model.taks=3"], "model: DistillModule has no option 'taks'; did you mean task"),
    (["--model.student.widhts=[3]"], "model.student: ConvNet has no option 'widhts'; did you mean widths"),
    (["--model.student.widths=x"], "model.student.widths"),
    (["--model.student=kdlightning.ConvNett"], "did you mean ConvNet"),
    (["--model.task=Clasification"], "model.task: no class 'Clasification' is known here; did you mean Classification"),
    (["--model.optimizer=AdamX"], "model.optimizer: no class 'AdamX' is known here; did you mean Adam"),
    (
        ["--model.optimizer=AdamW", "--model.optimizer.lrr=1"],
        "model.optimizer: AdamW has no option 'lrr'; did you mean lr",
    ),
    (["--model.weights={task: x}"], "model.weights"),
    (["--model.weights=[1]"], "model.weights: expected a mapping"),
    (
        ["--trainer.callbacks+=FeatureKDD"],
        "trainer.callbacks: no class 'FeatureKDD' is known here; did you mean FeatureKD",
    ),
    (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=x"], "EarlyStopping has no option 'monitr'"),
    (["--trainer.callbacks+=FeatureKD", "--trainer.callbacks.loss=FitNett"], "no class 'FitNett' is known here"),
    (["--model.task.num_classes=1"], "num_classes must be at least 2, not 1"),
    (["--data.val_split=2000"], "val_split"),
    (["--trainer.accelerator=gpuu"], "accelerator"),
    (["--trainer.strategy=dpd"], "strategy"),
    (["--trainer.precision=15"], "precision"),
    (["--ckpt_path", "last"], "there is no checkpoints/last.ckpt below runs/tiny/seed0"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), EARLY, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_early(command, config, tmp_path: Path, arguments: list[str], words: str) -> None:
    config()
    before = files_of(tmp_path)
    outcome = command("fit", *arguments)
    assert outcome.code == 2
    assert words in outcome.sentence
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"), PARSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_parsed(command, config, tmp_path: Path, arguments: list[str], words: str) -> None:
    config()
    before = files_of(tmp_path)
    outcome = command("fit", "-c", "tiny.yaml", *arguments)
    assert outcome.code == 2
    assert words in outcome.sentence
    assert len(outcome.sentence) < 300
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [1, 2", "bad.yaml:2: not valid YAML"),
        ("model:\n\t- x", "not valid YAML"),
        ("- a\n- b", "the top level must be options, not a list"),
        ("just words", "the top level must be options, not a single value"),
        ("epochs: 3", "'epochs' is no option of fit"),
        ("modle: {}", "'modle' is no option of fit; did you mean model"),
        ("fit: {trainer: {max_epochs: 3}}", "without fit: above them"),
        ("trainer: [1]", "trainer: must hold options, not a list"),
        ("model: [1]", "model: must hold options, not a list"),
        ("architectures: [Bert]\nhidden_size: 3", "'architectures' is no option of fit"),
        ("model: {class_path: kdlightning.OfflineDistill}", "did you mean OfflineDistillation"),
    ],
)
def test_a_wrong_file(command, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    outcome = command("fit", "-c", "bad.yaml")
    assert outcome.code == 2
    assert words in outcome.sentence


def test_a_binary_file_is_no_configuration(command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(bytes(range(128, 256)))
    assert "not a text file" in command("fit", "-c", "bad.yaml").sentence


def test_missing_parts_are_named(command, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer: {max_epochs: 1}")
    assert "data and model missing: give --data and --model" in command("fit", "-c", "a.yaml").sentence
    outcome = command("fit", "-c", "a.yaml", "--model", "DistillModule", "--data", "Digits")
    assert "model: DistillModule needs student, task" in outcome.sentence


def fails(command, tmp_path: Path, *arguments: Any) -> str:
    """Runs a fit that goes wrong after the parser, and returns its sentence."""
    before = files_of(tmp_path)
    outcome = command("fit", *arguments)
    assert outcome.code == 2
    assert files_of(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    return outcome.sentence


def distilled(**teacher: Any) -> dict[str, Any]:
    network = {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [4], **teacher}}
    return {"teacher": {"class_path": "kdlightning.FrozenTeacher", "init_args": {"model": network}}}


def test_a_wrong_tap_lists_the_nearest(command, config, tmp_path: Path) -> None:
    knowledge = {
        "class_path": "FeatureKD",
        "init_args": {"loss": "FitNet", "pairs": {"stages.9": "stages.0"}},
    }
    path = config(mode="OfflineDistillation", model=distilled(), trainer={"callbacks": [knowledge]})
    assert "ConvNet has no module 'stages.9'; did you mean stages" in fails(command, tmp_path, "-c", path)


def test_a_list_where_a_mapping_belongs(command, config, tmp_path: Path) -> None:
    knowledge = {"class_path": "FeatureKD", "init_args": {"loss": "FitNet", "pairs": "stages.0"}}
    path = config(mode="OfflineDistillation", model=distilled(), trainer={"callbacks": [knowledge]})
    assert "pairs" in fails(command, tmp_path, "-c", path)
    assert "trainer.callbacks" in fails(command, tmp_path, "-c", path, "--trainer.callbacks={a: 1}")


def test_class_counts_that_differ(command, config, tmp_path: Path) -> None:
    assert "num_classes=7" in fails(command, tmp_path, "-c", config(classes=7))
    narrow = config(mode="OfflineDistillation", model=distilled(num_classes=9))
    assert "(64, 9) and the task has num_classes=10" in fails(command, tmp_path, "-c", narrow)


def test_a_shape_that_does_not_fit(command, config, tmp_path: Path) -> None:
    path = config(student={"class_path": f"{__name__}.Narrow"})
    assert "data and network do not fit each other" in fails(command, tmp_path, "-c", path)


def test_empty_data(command, config, tmp_path: Path) -> None:
    assert "data are empty" in fails(command, tmp_path, "-c", config(), f"--data={__name__}.EmptyData")


def test_nan_names_the_term_and_exits_with_one(command, config, tmp_path: Path) -> None:
    outcome = command("fit", "-c", config(mode=f"{__name__}.NaNModule"))
    assert outcome.code == 1
    assert "term 'mine' became NaN or infinite" in outcome.sentence


def test_a_checkpoint_of_other_networks(command, config, tmp_path: Path) -> None:
    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    last = tmp_path / "runs/tiny/seed0/version_0/checkpoints/last.ckpt"
    wide = config(
        "wide", student={"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [6]}}
    )
    outcome = command("test", "-c", wide, "--ckpt_path", last)
    assert outcome.code == 2
    assert "the checkpoint does not fit the networks of this configuration" in outcome.sentence
    (tmp_path / "other.ckpt").write_bytes(b"not a checkpoint")
    for name in ("test", "fit", "predict"):
        outcome = command(name, "-c", config(), "--ckpt_path", "other.ckpt")
        assert outcome.code == 2
        assert "other.ckpt is damaged, or no file of torch.save" in outcome.sentence


class Crashing(DistillModule):
    """A mistake in somebody's own code, after the first step."""

    def distill_terms(self, step: Any) -> dict[str, torch.Tensor]:
        if self.global_step:
            raise ZeroDivisionError("no such luck")
        return {}


def test_an_error_of_own_code_keeps_its_traceback(command, config) -> None:
    outcome = command("fit", "-c", config(mode=f"{__name__}.Crashing"))
    assert outcome.code == 1
    log = Path("runs/tiny/seed0/version_0/error.log")
    assert outcome.sentence == f"ZeroDivisionError: no such luck (the traceback is in {log})"
    assert "in distill_terms" in log.read_text()


def test_nothing_trained_yet(command, config) -> None:
    sentence = command("test", "-c", config()).sentence
    assert "there is no run below runs/tiny/seed0: fit first" in sentence
