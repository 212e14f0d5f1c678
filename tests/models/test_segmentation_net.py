"""The segmentation network: sizes, taps, every part used."""

from __future__ import annotations

import pytest
import torch

from kdlightning import ConfigurationError, SegmentationNet
from kdlightning.taps import TapReader


@pytest.mark.parametrize(("stride", "size", "expected"), [(1, (16, 12), (16, 12)), (2, (15, 9), (8, 5))])
def test_logits_have_the_size_of_the_first_stage(stride: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    net = SegmentationNet(5, in_channels=3, widths=(4, 6, 8), depth=2, width=7, stride=stride)
    taps = ["stages.0", "stages.2", "neck", "logits"]
    output = TapReader(net, taps)(torch.zeros(2, 3, *size))
    shapes = {name: tuple(tensor.shape) for name, tensor in output.taps.items()}
    assert shapes["stages.0"] == (2, 4, *expected)
    assert shapes["stages.2"] == (2, 8, *((side + 3) // 4 for side in expected))
    assert shapes["neck"] == (2, 7, *expected)
    assert shapes["logits"] == tuple(output.logits.shape) == (2, 5, *expected)


def test_every_parameter_learns() -> None:
    net = SegmentationNet(3)
    net(torch.randn(2, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in net.parameters())


def test_no_stage_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="widths is empty"):
        SegmentationNet(3, widths=())
