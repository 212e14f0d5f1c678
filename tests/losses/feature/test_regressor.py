from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlightning.losses.feature.regressor import regressor


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel", "stride"),
    [
        ((8, 8), (4, 4), nn.Conv2d, (3, 3), (2, 2)),
        ((4, 4), (8, 8), nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((8, 8), (8, 8), nn.Conv2d, (1, 1), (1, 1)),
        ((8, 8), (6, 5), nn.Conv2d, (3, 4), (1, 1)),
        ((8, 5), (4, 5), nn.Conv2d, (3, 1), (2, 1)),
        ((4, 5), (8, 5), nn.ConvTranspose2d, (4, 1), (2, 1)),
        ((40,), (20,), nn.Conv1d, (3,), (2,)),
        ((20,), (40,), nn.ConvTranspose1d, (4,), (2,)),
        ((20,), (17,), nn.Conv1d, (4,), (1,)),
        ((56, 56), (7, 7), nn.Conv2d, (3, 3), (2, 2)),
    ],
)
def test_the_convolution_follows_the_sizes_and_meets_them(student, teacher, kind, kernel, stride) -> None:
    network = regressor((2, 3, *student), (2, 6, *teacher))
    layer = network[0]
    assert type(layer) is kind
    assert (layer.kernel_size, layer.stride) == (kernel, stride)
    assert [type(part).__name__ for part in network][1:] == [f"BatchNorm{len(student)}d", "ReLU"]
    assert network(torch.randn(2, 3, *student)).shape == (2, 6, *teacher)


def test_sizes_that_no_convolution_meets_are_left_to_the_loss() -> None:
    assert regressor((2, 3, 4, 4), (2, 6, 7, 7))(torch.randn(2, 3, 4, 4)).shape == (2, 6, 4, 4)


def test_vectors_get_a_linear_layer() -> None:
    network = regressor((2, 3), (2, 6), relu=False)
    assert [type(part).__name__ for part in network] == ["Linear", "BatchNorm1d"]
    assert network(torch.randn(4, 3)).shape == (4, 6)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_value_a_channel_is_refused_in_training_only(shape: tuple[int, ...]) -> None:
    network = regressor(shape, (1, 6, *shape[2:]))
    with pytest.raises(ValueError, match="drop_last=True or a larger batch"):
        network(torch.randn(shape))
    assert network.eval()(torch.randn(shape)).isfinite().all()
    larger = (1, 3, *(5 for _ in shape[2:]))
    if len(shape) > 2:
        assert regressor(larger, larger)(torch.randn(larger)).isfinite().all()
