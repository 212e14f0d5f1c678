"""A residual network for signals, on the shapes of MNIST-1D."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning import Classification, ConfigurationError, FeatureKD, FitNet, OfflineDistillation, ResNet1d
from kdlightning.taps import TapReader, list_taps


def signals(batch: int = 4, channels: int = 1, length: int = 40) -> Tensor:
    return torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "parameters", "shapes"),
    [
        ("small", 11_450, [(16, 40), (32, 20)]),
        ("medium", 392_810, [(32, 40), (64, 20), (128, 10)]),
        ("large", 2_425_802, [(64, 40), (128, 20), (256, 10)]),
    ],
)
def test_sizes(size: Any, parameters: int, shapes: list[tuple[int, int]]) -> None:
    model = ResNet1d(10, size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    taps = [f"stages.{number}" for number in range(len(shapes))]
    infos = TapReader(model, taps).probe(signals())
    assert [infos[tap].shape[1:] for tap in taps] == shapes
    assert model(signals()).shape == (4, 10)


def test_a_step_trains_every_weight() -> None:
    model = ResNet1d(5, "small", in_channels=3, dropout=0.1)
    F.cross_entropy(model(signals(channels=3, length=37)), torch.arange(4)).backward()
    assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_taps_before_and_after_activations_are_channels_first() -> None:
    model = ResNet1d(10, "medium")
    reader = TapReader(model, ["stages.1.act:input", "stages.1", "stages.2.1", "pre_logits"])
    infos = reader.probe(signals())
    assert reader.hooks.clone == set()
    assert {info.layout for info in infos.values()} == {"channels_first"}
    taps = reader(signals()).taps
    assert torch.equal(taps["stages.1.act:input"].relu(), taps["stages.1"])
    assert bool((taps["stages.2.1"] < 0).any()), "the last block leaves the activation to its stage"
    listed = {info.name: info for info in list_taps(model, signals())}
    assert listed["pre_logits"].shape == (4, 128)
    assert all(info.layout == "channels_first" for info in listed.values())


def test_a_large_one_teaches_a_small_one(trainer: Any) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(signals(16), torch.arange(16) % 10), 8)
    module = OfflineDistillation(ResNet1d(10, "small"), ResNet1d(10, "large"), task=Classification(10))
    pairs = {"stages.1": "stages.2", "stages.0.act:input": "stages.0.act:input"}
    runner = trainer(callbacks=[FeatureKD(FitNet(), pairs)])
    runner.fit(module, loader)
    assert float(runner.callback_metrics["train/loss_fit_net"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": "tiny"}, "has no size 'tiny'"), ({"kernel_size": 4}, "kernel_size must be odd, not 4")],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ResNet1d(10, **options)
