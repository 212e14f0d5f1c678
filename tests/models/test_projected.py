"""The student that answers through a teacher's classifier, around networks of several libraries."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning import (
    ConfigurationError,
    ConvNet,
    ProjectedStudent,
    ResNet1d,
    cifar_model,
    timm_model,
    transformers_model,
)


class Images(nn.Module):
    """A trunk and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)


def project(network: nn.Module, **options: Any) -> ProjectedStudent:
    return ProjectedStudent(network, num_classes=5, teacher_width=12, **options)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_it_is_map_bottleneck_average_and_linear_layer(dimensions: int) -> None:
    network = ConvNet(5, widths=(3, 4), dimensions=dimensions)
    student = project(network, dimensions=dimensions, factor=3)
    inputs = torch.randn(2, 1, *[8] * dimensions)
    maps = network.stages(inputs)
    layers = [type(layer).__name__.removesuffix("1d").removesuffix("2d") for layer in student.projector]
    assert layers == ["Conv", "BatchNorm", "ReLU"] * 3
    kernels = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in student.projector[::3]]
    assert kernels == [(4, 4, 1), (4, 4, 3), (4, 12, 1)]
    assert all(layer.bias is None for layer in student.projector[::3])
    student.eval(), network.eval()
    expected = student.fc(student.projector(network.stages(inputs)).flatten(2).mean(2))
    torch.testing.assert_close(student(inputs), expected)
    assert student.features(inputs).shape == maps.shape
    assert student.get_classifier() is student.fc
    assert isinstance(network.fc, nn.Identity)


CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "resnet": (lambda: timm_model("test_resnet", num_classes=7, in_chans=1), (2, 1, 32, 32), {}),
    "vit": (lambda: timm_model("test_vit", 7, 1, options={"img_size": 32, "patch_size": 8}), (2, 1, 32, 32), {}),
    "convnext": (lambda: timm_model("test_convnext", num_classes=7, in_chans=1), (2, 1, 32, 32), {}),
    "efficientnet": (lambda: timm_model("test_efficientnet", num_classes=7, in_chans=1), (2, 1, 32, 32), {}),
    "resnet8x4": (lambda: cifar_model("resnet8x4", 7), (2, 3, 32, 32), {}),
    "mobilenetv2": (lambda: cifar_model("mobilenetv2", 7), (2, 3, 32, 32), {}),
    "signals": (lambda: ResNet1d(7, "small"), (2, 1, 20), {"dimensions": 1}),
    "trunk": (Images, (2, 1, 8, 8), {"tap": "trunk", "width": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_any_network_is_projected_and_nothing_of_it_is_left_over(name: str) -> None:
    make, shape, options = CASES[name]
    student = project(make(), **options)
    logits = student(torch.randn(shape))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert not [name for name, parameter in student.named_parameters() if parameter.grad is None]
    again = project(make(), **options)
    again.load_state_dict(student.state_dict())
    inputs = torch.randn(shape)
    assert torch.equal(again.eval()(inputs), student.eval()(inputs))


def test_transformers_networks_read_named_inputs() -> None:
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "num_channels": 1, "layer_type": "basic"}
    network = transformers_model(
        architecture="AutoModelForImageClassification", model_type="resnet", config={**sizes, "num_labels": 7}
    )
    student = project(network, tap="resnet.pooler:input", width=6)
    assert student(pixel_values=torch.randn(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet8x4", "vit"])
def test_copies_have_their_own_parts(name: str) -> None:
    make, shape, options = CASES[name]
    student = project(make(), **options).eval()
    inputs = torch.randn(shape)
    before = student(inputs)
    clone = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in clone.network.parameters():
            parameter.zero_()
    assert torch.equal(student(inputs), before)
    assert not torch.equal(clone(inputs), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_an_earlier_map_stops_the_network_there() -> None:
    network = ConvNet(5, widths=(3, 4, 6))
    ran: list[int] = []
    network.stages[2].register_forward_hook(lambda *_: ran.append(2))
    images = torch.randn(2, 1, 8, 8)
    output, before = project(network, tap="stages.1", width=4), project(ConvNet(5), tap="stages.1:input", width=16)
    assert torch.equal(output.eval().features(images), network.stages[:2](images))
    assert output(images).shape == (2, 5)
    assert not ran
    assert before.features(images).shape == (2, 16, 8, 8)


def test_a_larger_map_is_pooled_before_the_projector() -> None:
    images = torch.randn(2, 1, 8, 8)
    for size, expected in ((2, (2, 2)), ([2, 8], (2, 4)), (None, (4, 4))):
        network = ConvNet(5, widths=(3, 4)).eval()
        student = project(network, map_size=size).eval()
        torch.testing.assert_close(student.features(images), F.adaptive_avg_pool2d(network.stages(images), expected))


def test_it_says_what_input_its_network_takes() -> None:
    assert project(timm_model("test_resnet")).input_size == (3, 160, 160)
    assert project(cifar_model("resnet8")).input_size == (3, 32, 32)
    assert project(ConvNet(5)).input_size is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: project(Images()), "Images does not say how many channels its map has: give width"),
        (lambda: project(Images(), width=3), "neither forward_features nor a layer pool, avgpool or global_pool"),
        (lambda: project(ConvNet(5), tap="stage"), "no module 'stage'; did you mean"),
        (lambda: project(ConvNet(5), tap="logits"), "tap 'logits' is no module of ConvNet"),
        (lambda: project(ConvNet(5), factor=0), "factor must be 1 to 12, not 0"),
        (lambda: project(ConvNet(5), factor=13), "factor must be 1 to 12, not 13"),
        (lambda: project(ConvNet(5), dimensions=3), "dimensions must be 1 or 2, not 3"),
        (lambda: project(ConvNet(5), tap="stages.0", width=9)(torch.zeros(2, 1, 8, 8)), r"shape \(16, 8, 8\), and"),
        (lambda: project(ConvNet(5), dimensions=1)(torch.zeros(2, 1, 8, 8)), r"dimensions 1: give those of the map"),
        (lambda: project(ConvNet(5), tap="flatten")(torch.zeros(2, 1, 8, 8)), r"shape \(32,\), and"),
    ],
)
def test_what_does_not_fit_is_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_tap_that_does_not_run_is_named() -> None:
    network = Images()
    network.spare = nn.Conv2d(1, 3, 1)
    with pytest.raises(ConfigurationError, match="tap 'spare' gave no tensor: name a module that runs"):
        project(network, tap="spare", width=3)(torch.zeros(2, 1, 8, 8))
