from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdlightning.losses import channels_first, pool_larger
from kdlightning.losses.spatial import pool_to


@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [((8, 8), (4, 4), (4, 4)), ((4,), (8,), (4,)), ((8, 2), (4, 6), (4, 2)), ((), (), ())],
)
def test_the_larger_is_pooled_in_each_dimension(student, teacher, size) -> None:
    own, other = pool_larger(torch.randn(2, 3, *student), torch.randn(2, 5, *teacher))
    assert own.shape == (2, 3, *size)
    assert other.shape == (2, 5, *size)


def test_pooling_averages_and_equal_sizes_are_left_alone() -> None:
    small, large = torch.zeros(1, 1, 1), torch.tensor([[[1.0, 3.0]]])
    assert pool_larger(small, large)[1].item() == 2
    assert pool_larger(small, large)[0] is small


def test_tokens_become_maps() -> None:
    tokens = torch.randn(2, 9, 4)
    assert torch.equal(channels_first(tokens, "channels_last"), tokens.transpose(1, 2))
    assert channels_first(tokens, "channels_first") is tokens
    with pytest.raises(ValueError, match="layout must be channels_first or channels_last"):
        channels_first(tokens, "tokens")  # type: ignore[arg-type]


def test_maps_and_vectors_do_not_mix() -> None:
    with pytest.raises(ValueError, match="as many dimensions"):
        pool_larger(torch.zeros(2, 3), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("own", "size"),
    [((8, 8), (4, 4)), ((7, 8), (4, 4)), ((6, 9), (2, 3)), ((2, 2), (4, 4)), ((9,), (3,)), ((9,), (4,))],
)
def test_any_size_is_pooled_as_adaptive_pooling_does(own: tuple[int, ...], size: tuple[int, ...]) -> None:
    tensor = torch.randn(2, 3, *own, dtype=torch.float64)
    adaptive = F.adaptive_avg_pool2d if len(own) == 2 else F.adaptive_avg_pool1d
    torch.testing.assert_close(pool_to(tensor, size), adaptive(tensor, size), rtol=1e-13, atol=1e-14)
    assert pool_to(tensor, own) is tensor
