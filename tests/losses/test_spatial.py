from __future__ import annotations

import pytest
import torch

from kdlightning.losses import channels_first, pool_larger


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
