"""The CIFAR networks of the literature: published sizes, taps before and after activations, published weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning import (
    CifarMobileNetV2,
    CifarResNet,
    CifarShuffleNetV1,
    CifarShuffleNetV2,
    CifarVGG,
    CifarWideResNet,
    ConfigurationError,
    cifar_model,
)
from kdlightning.models.cifar import CIFAR_NETWORKS
from kdlightning.taps import TapReader, list_taps

# With 100 classes: counted in the networks of github.com/HobbitLong/RepDistiller, folder models, commit b84f547c5db6.
COUNTS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
# Millions with 10 classes: He et al. 2016, table 6; Zagoruyko & Komodakis 2017 ("Paying More Attention"), table 1.
MILLIONS = {
    "resnet20": "0.27",
    "resnet32": "0.46",
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet110": "1.7",
    "wrn_16_1": "0.2",
    "wrn_16_2": "0.7",
    "wrn_40_1": "0.6",
    "wrn_40_2": "2.2",
}
SIDES = {
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
    "resnet50": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
    "wrn_16_2": [(32, 32), (64, 16), (128, 8)],
    "vgg8": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(116, 16), (232, 8), (464, 4)],
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module) -> nn.Module:
    """Random BatchNorms, so that none of them is an identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
    return model


def test_every_network_has_a_published_size() -> None:
    assert set(COUNTS) == set(CIFAR_NETWORKS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    with torch.device("meta"):
        assert count(cifar_model(name)) == COUNTS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_as_many_as_in_the_papers(name: str) -> None:
    decimals = len(MILLIONS[name].split(".")[1])
    with torch.device("meta"):
        found = count(cifar_model(name, num_classes=10)) / 1e6
    # A projection in place of zeros makes 1 % of the residual networks.
    assert abs(found - float(MILLIONS[name])) < 1.01 * 10**-decimals


@pytest.mark.parametrize("name", SIDES)
def test_stages_have_the_sizes_of_the_literature(name: str) -> None:
    taps = [f"stages.{number}" for number in range(len(SIDES[name]))]
    infos = TapReader(cifar_model(name), taps).probe(images())
    assert [infos[tap].shape[1:] for tap in taps] == [(width, side, side) for width, side in SIDES[name]]
    assert {infos[tap].layout for tap in taps} == {"channels_first"}


@pytest.mark.parametrize("name", ["resnet14", "resnet50", "wrn_16_1", *list(SIDES)[3:]])
def test_a_step_trains_every_weight(name: str) -> None:
    model = cifar_model(name, num_classes=7)
    logits = model(images(4))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    # A convolution's bias before BatchNorm moves nothing; VGG has them all the same.
    idle = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0 and not n.endswith("bias")]
    assert idle == []


@pytest.mark.parametrize("name", ["resnet14", "resnet50", "vgg11", "shufflenetv1"])
def test_maps_before_the_activation_can_be_tapped(name: str) -> None:
    model = lively(cifar_model(name)).train()
    stages = [f"stages.{number}" for number in range(len(model.stages))]
    reader = TapReader(model, [*stages, *(f"{stage}.act:input" for stage in stages), "pre_logits"])
    reader.probe(images())
    output = reader(images())
    assert reader.hooks.clone == set(), "something works in place"
    for stage in stages:
        before = output.taps[f"{stage}.act:input"]
        assert bool((before < 0).any())
        assert torch.equal(before.relu(), output.taps[stage])
    assert torch.equal(model.fc(output.taps["pre_logits"]), output.logits)


def test_what_follows_a_stage_of_a_wide_network_can_be_tapped() -> None:
    model = lively(cifar_model("wrn_16_2")).eval()
    followers = {"stages.0": "stages.1.0", "stages.1": "stages.2.0", "stages.2": "tail"}
    names = {"stages.1.0": ("bn1", "act1"), "stages.2.0": ("bn1", "act1"), "tail": ("bn", "act")}
    taps = [f"{block}.{layer}" for block, layers in names.items() for layer in layers]
    output = TapReader(model, [*followers, *taps])(images())
    for stage, block in followers.items():
        norm, act = (f"{block}.{layer}" for layer in names[block])
        assert torch.equal(model.get_submodule(norm)(output.taps[stage]), output.taps[norm])
        assert torch.equal(output.taps[norm].relu(), output.taps[act])


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_every_module_is_listed_once(name: str) -> None:
    model = cifar_model(name)
    listed = {info.name for info in list_taps(model, images())}
    assert {"pre_logits", "logits"} < listed
    assert listed - {"pre_logits", "logits"} == {path for path, _ in model.named_modules() if path}


def test_other_sizes_channels_and_classes() -> None:
    for name in ("resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"):
        model = cifar_model(name, num_classes=4, in_channels=1).eval()
        assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 4)
        assert model.get_classifier().out_features == model.num_classes == 4


# -- values, recomputed from the papers' figures -------------------------------------------------------------------


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def shuffled(x: Tensor, groups: int) -> Tensor:
    each = x.shape[1] // groups
    return x[:, [group * each + place for place in range(each) for group in range(groups)]]


def reference(name: str, block: Any, x: Tensor) -> Tensor:
    """The output of one block, by its paper; names of layers are ours."""
    b = block
    if name == "resnet8":
        y = norm(F.conv2d(x, b.conv1.weight, stride=2, padding=1), b.bn1).clamp(min=0)
        y = norm(F.conv2d(y, b.conv2.weight, padding=1), b.bn2)
        return y + norm(F.conv2d(x, b.shortcut[0].weight, stride=2), b.shortcut[1])
    if name == "resnet50":
        y = norm(F.conv2d(x, b.conv1.weight), b.bn1).clamp(min=0)
        y = norm(F.conv2d(y, b.conv2.weight, stride=2, padding=1), b.bn2).clamp(min=0)
        y = norm(F.conv2d(y, b.conv3.weight), b.bn3) + norm(F.conv2d(x, b.shortcut[0].weight, stride=2), b.shortcut[1])
        return y.clamp(min=0)
    if name == "wrn_16_1":
        active = norm(x, b.bn1).clamp(min=0)
        y = norm(F.conv2d(active, b.conv1.weight, stride=2, padding=1), b.bn2).clamp(min=0)
        return F.conv2d(y, b.conv2.weight, padding=1) + F.conv2d(active, b.shortcut.weight, stride=2)
    if name == "shufflenetv1":
        y = shuffled(norm(F.conv2d(x, b.conv1.weight, groups=3), b.bn1).clamp(min=0), 3)
        y = norm(F.conv2d(y, b.conv2.weight, stride=2, padding=1, groups=y.shape[1]), b.bn2).clamp(min=0)
        y = norm(F.conv2d(y, b.conv3.weight, groups=3), b.bn3)
        return torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1).clamp(min=0)
    if name == "shufflenetv2":
        y = norm(F.conv2d(x[:, x.shape[1] // 2 :], b.conv1.weight), b.bn1).clamp(min=0)
        y = norm(F.conv2d(y, b.conv2.weight, padding=1, groups=y.shape[1]), b.bn2)
        y = norm(F.conv2d(y, b.conv3.weight), b.bn3).clamp(min=0)
        return shuffled(torch.cat([x[:, : x.shape[1] // 2], y], 1), 2)
    y = norm(F.conv2d(x, b.conv1.weight), b.bn1).clamp(min=0)
    y = norm(F.conv2d(y, b.conv2.weight, padding=1, groups=y.shape[1]), b.bn2).clamp(min=0)
    return norm(F.conv2d(y, b.conv3.weight), b.bn3) + x


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet8", "stages.1.0"),
        ("resnet50", "stages.1.0"),
        ("wrn_16_1", "stages.1.0"),
        ("shufflenetv1", "stages.1.0"),
        ("shufflenetv2", "stages.1.2"),
        ("mobilenetv2", "stages.1.1"),
    ],
)
def test_blocks_compute_what_their_papers_draw(name: str, path: str) -> None:
    block = lively(cifar_model(name)).double().eval().get_submodule(path)
    first = block.bn1.num_features if name.startswith("wrn") else block.conv1.in_channels
    x = torch.randn(2, first * (2 if name == "shufflenetv2" else 1), 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(name, block, x), rtol=1e-12, atol=1e-12)


def test_weights_begin_as_in_the_literature() -> None:
    for name in ("resnet20", "wrn_16_2", "vgg8", "mobilenetv2"):
        model = cifar_model(name)
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
                expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
                assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.1), (name, path)
                assert layer.bias is None or not layer.bias.any()
        assert name == "resnet20" or not model.fc.bias.any()
    assert float(model.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


# -- names and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "published", "here"),
    [
        (CifarResNet, "module.layer3.4.downsample.0.weight", "stages.2.4.shortcut.0.weight"),
        (CifarResNet, "bn1.running_mean", "stem.bn.running_mean"),
        (CifarResNet, "layer1.0.bn1.bias", "stages.0.0.bn1.bias"),
        (CifarResNet, "linear.weight", "fc.weight"),
        (CifarWideResNet, "block2.layer.0.convShortcut.weight", "stages.1.0.shortcut.weight"),
        (CifarWideResNet, "bn1.weight", "tail.bn.weight"),
        (CifarVGG, "block4.3.weight", "stages.4.3.weight"),
        (CifarVGG, "classifier.bias", "fc.bias"),
        (CifarMobileNetV2, "blocks.4.1.conv.7.running_var", "stages.2.5.bn3.running_var"),
        (CifarMobileNetV2, "blocks.1.0.conv.3.weight", "stages.0.1.conv2.weight"),
        (CifarMobileNetV2, "conv2.1.bias", "tail.bn.bias"),
        (CifarShuffleNetV1, "layer2.7.conv3.weight", "stages.1.7.conv3.weight"),
        (CifarShuffleNetV2, "layer1.0.bn5.weight", "stages.0.0.bn5.weight"),
        (CifarShuffleNetV2, "conv2.weight", "tail.conv.weight"),
        (CifarResNet, "stages.0.0.conv1.weight", "stages.0.0.conv1.weight"),
    ],
)
def test_published_key_names_are_understood(network: Any, published: str, here: str) -> None:
    assert network.own_key(published) == here


def test_published_weights_and_own_ones_are_loaded(tmp_path: Path) -> None:
    model = lively(cifar_model("vgg8", num_classes=5)).eval()
    names = {"stages.": "block", "fc.": "classifier."}
    published = {
        next((new + key[len(old) :] for old, new in names.items() if key.startswith(old)), key): value
        for key, value in model.state_dict().items()
    }
    assert "block0.1.running_mean" in published
    torch.save({"epoch": 240, "model": published}, tmp_path / "published.pth")
    torch.save(model.state_dict(), tmp_path / "own.pt")
    for file in ("published.pth", "own.pt"):
        loaded = cifar_model("vgg8", num_classes=5, checkpoint=str(tmp_path / file)).eval()
        assert torch.equal(loaded(images()), model(images()))
    with pytest.raises(ConfigurationError, match="does not fit CifarVGG"):
        cifar_model("vgg13", num_classes=5, checkpoint=str(tmp_path / "own.pt"))


def test_a_configuration_names_the_factory_and_the_classes() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    for spec in (
        {"class_path": "kdlightning.cifar_model", "init_args": {"name": "resnet8x4"}},
        {"class_path": "kdlightning.CifarResNet", "init_args": {"num_classes": 9, "blocks": [1, 1], "widths": [8] * 3}},
        {"class_path": "kdlightning.CifarShuffleNetV2", "init_args": {"num_classes": 9, "widths": [24, 48, 96, 128]}},
    ):
        model = parser.instantiate_classes(parser.parse_object({"network": spec})).network
        assert model.eval()(images(1)).shape == (1, model.num_classes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_model("resnet8_x4"), "no CIFAR network 'resnet8_x4'; did you mean resnet8x4"),
        (lambda: cifar_model("WRN-40-2"), "did you mean wrn_40_2"),
        (lambda: CifarResNet(10, (1, 1)), "widths must name the stem and each of 2 stages"),
        (lambda: CifarWideResNet(10, depth=18), "depth must be 6n . 4, such as 16, 28 or 40, not 18"),
        (lambda: CifarVGG(10, (1, 1, 1, 1)), "blocks must be five numbers of at least 1"),
        (lambda: CifarShuffleNetV1(10, widths=(240,)), "1 widths and 3 blocks do not fit"),
        (lambda: CifarShuffleNetV2(10, widths=(115, 232, 464, 1024)), "widths must be even"),
    ],
)
def test_wrong_options_are_named(build: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build()
