"""Models by name: options reach them, local weights are loaded, wrong names are answered with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdlightning import ConfigurationError, ConvNet, started_from, timm_model, transformers_model

BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def test_timm_options_reach_the_model() -> None:
    model = timm_model("test_vit", num_classes=7, in_chans=1, options={"img_size": 32, "patch_size": 4})
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_timm_weights_come_from_a_local_file(tmp_path: Path) -> None:
    first = timm_model("test_resnet", num_classes=3)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    second = timm_model("test_resnet", num_classes=3, checkpoint=str(tmp_path / "weights.pt"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    renamed = {f"module.{name}": value for name, value in first.state_dict().items()}
    torch.save({"state_dict": renamed}, tmp_path / "renamed.pt")
    third = timm_model("test_resnet", num_classes=3, checkpoint=str(tmp_path / "renamed.pt"), key_map={"module.": ""})
    assert torch.equal(next(first.parameters()), next(third.parameters()))


def test_a_network_begins_with_the_weights_of_an_earlier_run(tmp_path: Path) -> None:
    first, second, third = (ConvNet(5, widths=(4, 6)) for _ in range(3))
    state = {f"student.{name}": value for name, value in first.state_dict().items()}
    torch.save({"state_dict": {**state, "adapters.hint.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    assert started_from(second, str(tmp_path / "last.ckpt")) is second
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert second.training
    torch.save({f"net.{name}": value for name, value in first.state_dict().items()}, tmp_path / "renamed.pt")
    started_from(third, str(tmp_path / "renamed.pt"), {"net.": ""})
    assert torch.equal(first.fc.weight, third.fc.weight)
    with pytest.raises(ConfigurationError, match="does not fit ConvNet"):
        started_from(ConvNet(5, widths=(4,)), str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("nothing", [None, "None"])
def test_a_model_without_a_head_leaves_the_heads_weights_out(nothing: str | None, tmp_path: Path) -> None:
    whole = timm_model("test_resnet", num_classes=3)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    path = str(tmp_path / "weights.pt")
    trunk = timm_model("test_resnet", num_classes=0, checkpoint=path, key_map={"fc.": nothing})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(trunk.eval()(x), whole.eval().forward_head(whole.forward_features(x), pre_logits=True))
    with pytest.raises(ConfigurationError, match="2 unexpected, for example 'fc"):
        timm_model("test_resnet", num_classes=0, checkpoint=path)


def test_weights_of_other_classes_are_named(tmp_path: Path) -> None:
    torch.save(timm_model("test_resnet", num_classes=3).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigurationError, match=r"fc.* has shape \(3.* has \(4"):
        timm_model("test_resnet", num_classes=4, checkpoint=str(tmp_path / "weights.pt"))


def test_a_wrong_timm_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="no model 'resnet_18'.*resnet18"):
        timm_model("resnet_18")


def test_transformers_models_from_a_configuration_and_from_a_folder(tmp_path: Path) -> None:
    model = transformers_model(model_type="bert", config={**BERT, "num_labels": 3})
    tokens = torch.tensor([[1, 2, 3]])
    assert model.training
    model.eval()
    assert model(input_ids=tokens).logits.shape == (1, 3)
    model.save_pretrained(tmp_path / "bert")
    again = transformers_model(str(tmp_path / "bert"))
    assert again.training, "a student must be in training mode; from_pretrained answers in evaluation mode"
    assert torch.equal(again.eval()(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bret", "config": BERT}, "no model_type 'bret'.*bert"),
        (
            {"model_type": "bert", "architecture": "AutoModelForCausalLLM"},
            "no 'AutoModelForCausalLLM'.*AutoModelForCausalLM",
        ),
        ({"model_type": "bert", "config": {"hidden_sise": 8}}, "BertConfig has no option 'hidden_sise'.*hidden_size"),
        ({}, "either name or model_type"),
        ({"name": "x", "model_type": "bert"}, "either name or model_type"),
        ({"name": "./nowhere/bert"}, "no folder ./nowhere/bert"),
    ],
)
def test_wrong_transformers_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        transformers_model(**options)


def test_lora_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from kdlightning import MissingExtraError

    plain = builtins.__import__

    def without_peft(name: str, *rest: object, **options: object) -> object:
        if name == "peft":
            raise ImportError(name)
        return plain(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(MissingExtraError, match="peft"):
        transformers_model(model_type="bert", config=BERT, peft={"r": 2})


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (2, 3, 40)), (2, (2, 3, 8, 8))])
def test_conv_net_reads_signals_and_images(dimensions: int, shape: tuple[int, ...]) -> None:
    net = ConvNet(5, in_channels=3, widths=(4, 6, 8), depth=2, dimensions=dimensions)
    x = torch.zeros(shape)
    assert net(x).shape == (2, 5)
    assert [
        tuple(stage(torch.zeros(2, c, *shape[2:])).shape[1:2]) for stage, c in zip(net.stages, (3, 4, 6), strict=True)
    ] == [(4,), (6,), (8,)]
    assert net.stages(x).shape[2:] == tuple(size // 4 for size in shape[2:])


def test_conv_net_has_no_third_dimension() -> None:
    with pytest.raises(ConfigurationError, match="dimensions must be 1 or 2"):
        ConvNet(5, dimensions=3)
