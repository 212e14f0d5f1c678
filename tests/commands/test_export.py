"""Exports load with their own library alone and answer as the checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import load_student
from kdlightning.errors import ConfigurationError
from kdlightning.export import export_student, input_shapes, made_up_inputs

RUN = Path("runs/tiny/seed0/version_0")
BERT = {
    "class_path": "kdlightning.transformers_model",
    "init_args": {
        "model_type": "bert",
        "config": {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "num_labels": 3,
        },
    },
}


def checkpoint_of(spec: dict[str, Any], folder: Path) -> Path:
    """A checkpoint as a run from YAML leaves it."""
    from jsonargparse import ArgumentParser
    from torch import nn

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    model = parser.instantiate_classes(parser.parse_object({"network": spec})).network
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "hyper_parameters": {"student": spec}}, path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_timm_folder_loads_with_timm_alone(command, tmp_path: Path) -> None:
    spec = {
        "class_path": "kdlightning.timm_model",
        "init_args": {"name": "test_resnet", "num_classes": 7, "in_chans": 1},
    }
    checkpoint = checkpoint_of(spec, tmp_path / "run")
    outcome = command("export", "run", "--format", "timm", "--output", "out")
    assert outcome.code == 0, outcome.err
    assert 'timm.create_model("local-dir:out", pretrained=True)' in outcome.out
    import timm

    loaded = timm.create_model("local-dir:out", pretrained=True).eval()
    inputs = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), load_student(checkpoint)(inputs), rtol=0, atol=1e-6)
    assert "kdlightning" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_student_that_began_with_an_earlier_runs_weights_is_the_network_alone(command, tmp_path: Path) -> None:
    network = {
        "class_path": "kdlightning.timm_model",
        "init_args": {"name": "test_resnet", "num_classes": 7, "in_chans": 1},
    }
    begin = checkpoint_of(network, tmp_path / "begin")
    spec = {"class_path": "kdlightning.started_from", "init_args": {"model": network, "checkpoint": str(begin)}}
    checkpoint = checkpoint_of(spec, tmp_path / "run")
    begin.unlink()
    inputs = torch.randn(2, 1, 32, 32)
    outcome = command("export", "run", "--format", "timm", "--output", "out")
    assert outcome.code == 0, outcome.err
    import timm

    loaded = timm.create_model("local-dir:out", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), load_student(checkpoint)(inputs), rtol=0, atol=1e-6)


def test_a_transformers_folder_loads_with_transformers_alone(command, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(BERT, tmp_path / "run")
    outcome = command("export", checkpoint, "--output", "out")
    assert outcome.code == 0, outcome.err
    assert 'transformers.BertForSequenceClassification.from_pretrained("out")' in outcome.out
    assert outcome.err == ""
    import transformers

    loaded = transformers.BertForSequenceClassification.from_pretrained("out").eval()
    tokens = torch.randint(0, 50, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, load_student(checkpoint)(tokens).logits, rtol=0, atol=1e-6)


def test_safetensors_load_into_a_network_of_the_same_class(command, config) -> None:
    from safetensors.torch import load_model

    from kdlightning import ConvNet

    assert command("fit", "-c", config(), "--trainer.max_epochs=1").code == 0
    outcome = command("export", RUN)
    assert outcome.code == 0, outcome.err
    assert f'safetensors.torch.load_model(student, "{RUN}/export/model.safetensors")' in outcome.out
    fresh = ConvNet(10, widths=[4])
    load_model(fresh, str(RUN / "export" / "model.safetensors"))
    inputs = torch.randn(2, 1, 8, 8)
    expected = load_student(RUN / "checkpoints" / "last.ckpt")(inputs)
    torch.testing.assert_close(fresh.eval()(inputs), expected, rtol=0, atol=1e-6)
    assert command("export", RUN).code == 0


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "mobilenetv2", "shufflenetv1"])
def test_safetensors_of_a_cifar_network(command, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_model

    from kdlightning import cifar_model

    spec = {"class_path": "kdlightning.cifar_model", "init_args": {"name": name, "num_classes": 10}}
    checkpoint = checkpoint_of(spec, tmp_path / "run")
    outcome = command("export", "run", "--output", "out")
    assert outcome.code == 0, outcome.err
    fresh = cifar_model(name, num_classes=10)
    load_model(fresh, str(tmp_path / "out" / "model.safetensors"))
    inputs = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fresh.eval()(inputs), load_student(checkpoint)(inputs), rtol=0, atol=1e-6)
    assert f"a {type(fresh).__name__}" in outcome.out


def test_safetensors_of_a_network_for_signals(command, config) -> None:
    from safetensors.torch import load_model

    from kdlightning import ResNet1d

    spec = {"class_path": "kdlightning.ResNet1d", "init_args": {"num_classes": 10, "widths": [4, 8], "depth": 1}}
    path = config(student=spec)
    # Made-up signals of MNIST-1D's shape.
    path.write_text(path.read_text().replace("class_path: Digits", "class_path: MNIST1D"))
    assert command("fit", "-c", path, "--trainer.max_epochs=1").code == 0
    outcome = command("export", RUN)
    assert outcome.code == 0, outcome.err
    fresh = ResNet1d(10, widths=(4, 8), depth=1)
    load_model(fresh, str(RUN / "export" / "model.safetensors"))
    inputs = torch.randn(2, 1, 40)
    expected = load_student(RUN / "checkpoints" / "last.ckpt")(inputs)
    torch.testing.assert_close(fresh.eval()(inputs), expected, rtol=0, atol=1e-6)


def test_a_format_that_does_not_suit_says_why(command, config, tmp_path: Path) -> None:
    command("fit", "-c", config(), "--trainer.max_epochs=1")
    assert "ConvNet is no timm model" in command("export", RUN, "--format", "timm").sentence
    assert "ConvNet is not a transformers model" in command("export", RUN, "--format", "transformers").sentence
    assert not (RUN / "export").exists()


def test_other_files_are_not_overwritten(command, config, tmp_path: Path) -> None:
    command("fit", "-c", config(), "--trainer.max_epochs=1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "--output mine holds other files" in command("export", RUN, "--output", "mine").sentence
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_wrong_place_or_network_is_named(command, config, tmp_path: Path) -> None:
    command("fit", "-c", config(), "--trainer.max_epochs=1")
    assert f"did you mean {RUN}?" in command("export", "runs").sentence
    assert "holds no 'peer1'" in command("export", RUN, "--which", "peer1").sentence
    torch.save({"weights": {}}, tmp_path / "foreign.ckpt")
    assert "no state_dict" in command("export", "foreign.ckpt").sentence


def test_answers_that_differ_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlightning import ConvNet

    model = ConvNet(10, widths=[4])
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"student.{k}": v for k, v in model.state_dict().items()}}, path)

    def spoil(*arguments: Any) -> Any:
        return ConvNet(10, widths=[4])

    monkeypatch.setattr("kdlightning.export.student.load", spoil)
    with pytest.raises(ConfigurationError, match="answers differently"):
        export_student(path, tmp_path / "out", student=model, inputs={"shape": [1, 8, 8], "dtype": "float32"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt"]


def test_made_up_inputs_have_the_written_shapes() -> None:
    inputs = {"input_ids": torch.ones(4, 6, dtype=torch.long), "pair": (torch.zeros(4, 2), torch.zeros(4, 3).double())}
    again = made_up_inputs(json.loads(json.dumps(input_shapes(inputs))), samples=2)
    assert again["input_ids"].shape == (2, 6)
    assert again["input_ids"].dtype == torch.long
    assert [part.dtype for part in again["pair"]] == [torch.float32, torch.float64]


def test_a_student_with_its_teachers_classifier_needs_neither_teacher_nor_start_file(
    command, config, tmp_path: Path
) -> None:
    from safetensors.torch import load_model

    from kdlightning import ConvNet, ProjectedStudent, timm_model

    torch.save(ConvNet(10, widths=[6, 12]).state_dict(), "teacher.pt")
    torch.save(timm_model("test_resnet", num_classes=10, in_chans=1).state_dict(), "start.pt")
    network = {"name": "test_resnet", "num_classes": 10, "in_chans": 1, "checkpoint": "start.pt"}
    options = {
        "network": {"class_path": "kdlightning.timm_model", "init_args": network},
        "num_classes": 10,
        "teacher_width": 12,
    }
    student = {"class_path": "kdlightning.ProjectedStudent", "init_args": options}
    teacher = {
        "class_path": "FrozenTeacher",
        "init_args": {
            "model": {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [6, 12]}},
            "checkpoint": "teacher.pt",
        },
    }
    loss = {"loss": "SimKD", "pairs": {"projector": "stages.1"}}
    path = config(
        student=student,
        mode="OfflineDistillation",
        model={"teacher": teacher, "response": None},
        trainer={"max_epochs": 1, "callbacks": [{"class_path": "FeatureKD", "init_args": loss}]},
    )
    outcome = command("fit", "-c", path)
    assert outcome.code == 0, outcome.err
    head = torch.load("teacher.pt")["fc.weight"]
    Path("teacher.pt").unlink()
    Path("start.pt").unlink()
    outcome = command("export", RUN)
    assert outcome.code == 0, outcome.err
    loaded = load_student(RUN / "checkpoints" / "last.ckpt")
    assert torch.equal(loaded.fc.weight, head)
    fresh = ProjectedStudent(timm_model("test_resnet", num_classes=10, in_chans=1), 10, 12)
    load_model(fresh, str(RUN / "export" / "model.safetensors"))
    inputs = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(fresh.eval()(inputs), loaded(inputs), rtol=0, atol=1e-6)
