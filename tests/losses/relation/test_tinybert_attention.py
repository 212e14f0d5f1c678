"""TinyBERT's attention term against plain loops; what padding does and does not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import LossContext, TinyBERTAttention, tinybert_attention_loss
from kdlightning.losses.relation.tinybert_attention import attention_scores


def loop(student: Tensor, teacher: Tensor, mask: list[list[int]], count_padding: bool) -> Tensor:
    total, number = torch.zeros((), dtype=torch.float64), 0
    batch, heads, length, _ = student.shape
    for sample in range(batch):
        for head in range(heads):
            for row in range(length):
                for column in range(length):
                    counted = mask[sample][column] and (count_padding or mask[sample][row])
                    number += 1 if counted or count_padding else 0
                    if counted:
                        own, other = (scores[sample, head, row, column] for scores in (student, teacher))
                        total = total + (own - other) ** 2
    return total / max(number, 1)


def scores_loop(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Of projections `(B, width, L)`, head by head."""
    batch, width, length = queries.shape
    size = width // heads
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [
                            torch.stack(
                                [
                                    sum(queries[b, h * size + d, i] * keys[b, h * size + d, j] for d in range(size))
                                    / math.sqrt(size)
                                    for j in range(length)
                                ]
                            )
                            for i in range(length)
                        ]
                    )
                    for h in range(heads)
                ]
            )
            for b in range(batch)
        ]
    )


MASKS = ([[1, 1, 1, 1], [1, 1, 0, 0]], [[1, 1, 1, 0], [0, 1, 1, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("count_padding", [False, True])
def test_it_is_the_formula(random: Any, assert_same: Any, mask: list[list[int]], count_padding: bool) -> None:
    teacher = random(2, 3, 4, 4)
    attended = torch.tensor(mask)
    assert_same(
        lambda s: tinybert_attention_loss(s, teacher, attended, count_padding=count_padding),
        lambda s: loop(s, teacher, mask, count_padding),
        random(2, 3, 4, 4),
    )
    whole = tinybert_attention_loss(teacher + 1, teacher, None)
    assert whole == tinybert_attention_loss(teacher + 1, teacher, torch.ones(2, 4)) == 1


def test_scores_are_products_of_heads(random: Any, assert_same: Any) -> None:
    keys = random(2, 6, 3)
    weights = random(2, 3, 3, 3)
    assert_same(
        lambda q: (weights * attention_scores(q, keys, 3)).sum(),
        lambda q: (weights * scores_loop(q, keys, 3)).sum(),
        random(2, 6, 3),
    )


def made(heads: int, layers: int, **options: Any) -> TinyBERTAttention:
    loss = TinyBERTAttention(**options)
    each = (heads,) * 2 * layers
    taps = tuple(f"{kind}.{n}" for n in range(layers) for kind in ("queries", "keys"))
    loss.bind(LossContext(torch.nn.Identity(), None, taps, taps, student_heads=each, teacher_heads=each))
    return loss


def batch_of(mask: Tensor) -> Any:
    return SimpleNamespace(inputs={"attention_mask": mask})


def test_layers_are_summed_over_any_pair_of_widths(random: Any, assert_same: Any) -> None:
    mask = [[1, 1, 1], [1, 1, 0]]
    theirs = [random(2, 8, 3) for _ in range(4)]
    others = [random(2, 4, 3) for _ in range(3)]
    loss = made(2, 2)

    def ours(first: Tensor) -> Tensor:
        return loss([first, *others], theirs, batch=batch_of(torch.tensor(mask)))

    def oracle(first: Tensor) -> Tensor:
        own = [first, *others]
        return sum(
            loop(scores_loop(own[n], own[n + 1], 2), scores_loop(theirs[n], theirs[n + 1], 2), mask, False)
            for n in (0, 2)
        )

    assert_same(ours, oracle, random(2, 4, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_padding_changes_no_value_and_no_gradient(batch: int, length: int, heads: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    loss = made(heads, 1)
    own, other = ([draw(batch, heads * size, length) for _ in range(2)] for size in (2, 3))
    results = []
    for further in (0, more):
        mask = (torch.arange(length + further) < lengths[:, None]).long()
        pads = [[torch.cat([t, draw(*t.shape[:2], further)], 2) for t in tensors] for tensors in (own, other)]
        leaves = [tensor.requires_grad_() for tensor in pads[0]]
        value = loss(leaves, pads[1], batch=batch_of(mask))
        gradients = torch.autograd.grad(value, leaves)
        assert all(not gradient.masked_select(mask[:, None] == 0).any() for gradient in gradients)
        results.append((value, [gradient[..., :length] for gradient in gradients]))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_is_widened_and_the_teacher_gets_no_gradient(random: Any) -> None:
    own, other = ([random(2, 6, 4).bfloat16().requires_grad_() for _ in range(2)] for _ in range(2))
    loss = made(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(own, other, batch=None)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([t.float() for t in own], [t.float() for t in other]), rtol=0, atol=0)
    value.backward()
    assert all(tensor.grad is None for tensor in other)
    assert all(tensor.grad is not None for tensor in own)


def test_large_half_scores_do_not_overflow() -> None:
    scores = torch.full((1, 1, 2, 2), 6e4, dtype=torch.float16)
    assert float(tinybert_attention_loss(scores, -scores, torch.ones(1, 2))) == pytest.approx(1.44e10)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \(batch, heads, length, length\)"):
        tinybert_attention_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), None)
    for heads, message in (
        (((2, 2), (4, 4)), "the student has 2 attention heads and the teacher 4: .*MiniLMRelation"),
        (((None, None), (4, 4)), "projections of attention layers"),
    ):
        context = LossContext(
            torch.nn.Identity(), None, ("a", "b"), ("c", "d"), student_heads=heads[0], teacher_heads=heads[1]
        )
        with pytest.raises(ValueError, match=message):
            TinyBERTAttention().bind(context)
    with pytest.raises(ValueError, match="queries and the keys of each layer"):
        TinyBERTAttention().bind(LossContext(torch.nn.Identity(), None, ("a",), ("c",)))
