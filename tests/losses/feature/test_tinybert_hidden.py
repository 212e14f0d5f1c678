"""TinyBERT's terms on hidden states and embeddings against plain loops; the maps and who shares them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import LossContext, TinyBERTHidden, tinybert_hidden_loss


def loop(student: Tensor, teacher: Tensor, mask: list[list[int]], count_padding: bool) -> Tensor:
    total, number = torch.zeros((), dtype=torch.float64), 0
    for sample in range(len(student)):
        for token in range(student.shape[1]):
            if count_padding or mask[sample][token]:
                for channel in range(student.shape[2]):
                    total = total + (student[sample, token, channel] - teacher[sample, token, channel]) ** 2
                    number += 1
    return total / max(number, 1)


@pytest.mark.parametrize("mask", [[[1, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 0, 0]]])
@pytest.mark.parametrize("count_padding", [False, True])
def test_it_is_the_formula(random: Any, assert_same: Any, mask: list[list[int]], count_padding: bool) -> None:
    teacher = random(2, 3, 4)
    assert_same(
        lambda s: tinybert_hidden_loss(s, teacher, torch.tensor(mask), count_padding=count_padding),
        lambda s: loop(s, teacher, mask, count_padding),
        random(2, 3, 4),
    )


def test_without_any_token_it_is_zero_and_without_a_mask_all_count(random: Any) -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4)
    value = tinybert_hidden_loss(student, teacher, torch.zeros(2, 3))
    value.backward()
    assert value == 0
    assert not student.grad.any()
    torch.testing.assert_close(
        tinybert_hidden_loss(student, teacher, None), tinybert_hidden_loss(student, teacher, torch.ones(2, 3))
    )
    with pytest.raises(ValueError, match=r"must have one shape: \(2, 3, 4\) and \(2, 3, 2\)"):
        tinybert_hidden_loss(teacher, teacher[..., :2], None)


TAPS = ("hidden_states.0", "hidden_states.1", "hidden_states.2")


def made(maps: Any, own: tuple[int, ...] = (4, 4, 4), other: tuple[int, ...] = (6, 6, 6), **options: Any) -> Any:
    loss = TinyBERTHidden(maps, **options)
    loss.bind(LossContext(torch.nn.Identity(), None, TAPS[: len(own)], TAPS[: len(own)]))
    loss.build(*([(2, width, 3) for width in widths] for widths in (own, other)))
    return loss.double()


def batch_of(mask: Tensor) -> Any:
    return SimpleNamespace(inputs={"attention_mask": mask})


@pytest.mark.parametrize("maps", ["paper", "shared", "none"])
def test_states_go_through_the_maps_that_they_share(random: Any, assert_same: Any, maps: str) -> None:
    mask = [[1, 1, 1], [1, 1, 0]]
    width = 6 if maps == "none" else 4
    loss = made(maps, own=(width,) * 3)
    states, theirs = [random(2, width, 3) for _ in range(2)], [random(2, 6, 3) for _ in range(3)]
    names = {"paper": ["embedding", "hidden", "hidden"], "shared": ["hidden"] * 3, "none": [None] * 3}[maps]
    assert set(loss.projections) == set(names) - {None}
    assert all((layer.bias is None) == (maps == "paper") for layer in loss.projections.values())

    def oracle(first: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, other, name in zip([first, *states], theirs, names, strict=True):
            tokens = own.transpose(1, 2)
            if name is not None:
                layer = loss.projections[name]
                tokens = tokens @ layer.weight.T + (0 if layer.bias is None else layer.bias)
            total = total + loop(tokens, other.transpose(1, 2), mask, False)
        return total

    batch = batch_of(torch.tensor(mask))
    assert_same(lambda first: loss([first, *states], theirs, batch=batch), oracle, random(2, width, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_padding_changes_no_value_and_no_gradient(batch: int, length: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    loss = made("shared")
    own, other = ([draw(batch, width, length) for _ in range(3)] for width in (4, 6))
    results = []
    for further in (0, more):
        mask = (torch.arange(length + further) < lengths[:, None]).long()
        padded = [[torch.cat([t, draw(*t.shape[:2], further)], 2) for t in tensors] for tensors in (own, other)]
        leaves = [tensor.requires_grad_() for tensor in padded[0]]
        value = loss(leaves, padded[1], batch=batch_of(mask))
        gradients = torch.autograd.grad(value, [*leaves, *loss.parameters()])
        assert all(not gradient.masked_select(mask[:, None] == 0).any() for gradient in gradients[:3])
        results.append((value, [g[..., :length] if g.ndim == 3 else g for g in gradients]))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_is_widened(random: Any) -> None:
    loss = made("none", own=(6, 6, 6)).float()
    own, other = ([random(2, 6, 3).bfloat16().requires_grad_() for _ in range(3)] for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(own, other)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss([t.float() for t in own], [t.float() for t in other]))
    value.backward()
    assert all(tensor.grad is None for tensor in other)


def test_images_are_tokens(random: Any) -> None:
    loss = made("none", own=(6,), other=(6,))
    own, other = random(2, 6, 3, 4), random(2, 6, 3, 4)
    torch.testing.assert_close(loss([own], [other]), (own - other).square().mean())


def test_bad_options_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="maps is paper, shared or none, not 'both'"):
        TinyBERTHidden("both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers of different widths cannot share a map"):
        made("paper", own=(4, 4, 5))
    assert set(made("paper", own=(3, 4, 4)).projections) == {"embedding", "hidden"}, "embeddings may be narrower"
