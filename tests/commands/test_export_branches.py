"""Branches of one trunk leave as complete networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import Classification, ConvNet, OnlineDistillation, load_student
from kdlightning.export import export_student
from kdlightning.strategies import CLILR, ONE, OKDDip

RUN = Path("runs/tiny/seed0/version_0")
CHECKPOINT = RUN / "checkpoints" / "last.ckpt"
CONVNET = {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [4, 8]}}
TIMM = {"class_path": "kdlightning.timm_model", "init_args": {"name": "test_resnet", "num_classes": 10, "in_chans": 1}}


def strategy(kind: str, split: str) -> dict[str, Any]:
    return {"strategy": {"class_path": kind, "init_args": {"split": split, "branches": 3}}}


def rebuilt(spec: dict[str, Any], state: dict[str, Tensor], kind: type, split: str) -> OnlineDistillation:
    """The module of a run from YAML, with the checkpoint's weights."""
    from kdlightning import timm_model

    make = ConvNet if spec is CONVNET else timm_model
    module = OnlineDistillation(make(**spec["init_args"]), task=Classification(10), strategy=kind(split, branches=3))
    module.load_state_dict(state)
    return module.eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "spec", "split"),
    [
        (ONE, CONVNET, "stages.0"),
        (CLILR, CONVNET, "stages.0"),
        (OKDDip, CONVNET, "stages.0"),
        (ONE, TIMM, "layer2"),
    ],
)
def test_a_branch_of_a_run_from_a_file(kind: type, spec: dict[str, Any], split: str, command: Any, config: Any) -> None:
    path = config(student=spec, mode="OnlineDistillation", model=strategy(kind.__name__, split))
    outcome = command("fit", "-c", path, "--trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    module = rebuilt(spec, torch.load(CHECKPOINT, weights_only=True)["state_dict"], kind, split)
    inputs = torch.randn(2, 1, *((32, 32) if spec is TIMM else (8, 8)))
    with torch.no_grad(), module.strategy.running():
        expected = {name: network(inputs) for name, network in module.networks.items()}
    assert not torch.allclose(expected["peer1"], expected["peer2"])
    for which in ("student", "peer1", "peer2"):
        outcome = command("export", RUN, "--which", which, "--output", which)
        assert outcome.code == 0, outcome.err
        with torch.no_grad():
            found = load_student(CHECKPOINT, which=which)
            torch.testing.assert_close(found(inputs), expected[which], rtol=0, atol=1e-5)
            torch.testing.assert_close(opened(Path(which), spec)(inputs), expected[which], rtol=0, atol=1e-5)
    assert (
        "holds no 'peer3': its networks are student, peer1, peer2"
        in command("export", RUN, "--which", "peer3").sentence
    )


def opened(folder: Path, spec: dict[str, Any]) -> nn.Module:
    """An export, read with its own library."""
    if spec is TIMM:
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    from safetensors.torch import load_model

    network = ConvNet(**spec["init_args"])
    load_model(network, str(folder / "model.safetensors"))
    assert json.loads((folder / "student.json").read_text())["class_path"] == "kdlightning.ConvNet"
    return network.eval()


def test_a_branch_of_a_run_from_python(trainer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_model

    torch.manual_seed(0)
    module = OnlineDistillation(ConvNet(5, widths=(4, 8)), task=Classification(5), strategy=ONE("stages.0"))
    data = torch.utils.data.DataLoader([(torch.randn(1, 8, 8), number % 5) for number in range(8)], 4)
    runner = trainer(max_epochs=2)
    runner.fit(module, data)
    runner.save_checkpoint(tmp_path / "run.ckpt")
    done = export_student(
        tmp_path / "run.ckpt",
        tmp_path / "out",
        which="peer2",
        student=ConvNet(5, widths=(4, 8)),
        inputs={"shape": [1, 8, 8], "dtype": "float32"},
    )
    assert (done.format, done.difference) == ("safetensors", 0.0)
    network = ConvNet(5, widths=(4, 8)).eval()
    load_model(network, str(tmp_path / "out" / "model.safetensors"))
    inputs = torch.randn(2, 1, 8, 8)
    module.eval()
    with torch.no_grad(), module.strategy.running():
        expected = [member(inputs) for member in module.networks.values()]
        torch.testing.assert_close(network(inputs), expected[2], rtol=0, atol=1e-6)


def test_peers_of_a_run_from_a_file_are_their_own(command: Any, config: Any) -> None:
    peer = {"class_path": "kdlightning.ConvNet", "init_args": {"num_classes": 10, "widths": [6]}}
    path = config(mode="OnlineDistillation", model={"peers": [peer]})
    assert command("fit", "-c", path, "--trainer.max_epochs=1").code == 0
    assert command("export", RUN, "--which", "peer1", "--output", "out").code == 0
    assert load_student(CHECKPOINT, which="peer1").fc.in_features == 6
    assert json.loads(Path("out/student.json").read_text())["init_args"]["widths"] == [6]
