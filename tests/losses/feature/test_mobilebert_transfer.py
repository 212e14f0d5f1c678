from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning import Batch, MobileBERTTransfer
from kdlightning.losses import LossContext

LENGTHS = (4, 2)


def layer_loop(student: list[Tensor], teacher: list[Tensor], heads: int) -> Tensor:
    """One layer: hidden states, queries and keys `(B, width, L)`."""
    squares, count = torch.zeros((), dtype=torch.float64), 0
    divergence = torch.zeros((), dtype=torch.float64)
    for text, tokens in enumerate(LENGTHS):
        for token in range(tokens):
            squares = squares + ((student[0][text, :, token] - teacher[0][text, :, token]) ** 2).sum()
            count += student[0].shape[1]
            for head in range(heads):
                rows = []
                for queries, keys in (teacher[1:], student[1:]):
                    size = queries.shape[1] // heads
                    part = slice(head * size, (head + 1) * size)
                    scores = torch.stack(
                        [
                            (queries[text, part, token] * keys[text, part, other]).sum() / math.sqrt(size)
                            for other in range(tokens)
                        ]
                    )
                    rows.append(scores.softmax(0))
                divergence = divergence + (rows[0] * (rows[0] / rows[1]).log()).sum() / (tokens * heads * len(LENGTHS))
    return squares / count + divergence


def context(pairs: int, student: int = 2, teacher: int = 2) -> LossContext:
    taps = ("hidden_states.1", "queries.0", "keys.0") * pairs
    return LossContext(
        nn.Identity(),
        nn.Identity(),
        taps,
        taps,
        student_heads=(None, student, student) * pairs,
        teacher_heads=(None, teacher, teacher) * pairs,
    )


@pytest.fixture
def layers(random) -> Any:
    def draw(pairs: int, width: int = 4) -> list[Tensor]:
        return [random(2, width, 4, scale=1.0) for _ in range(3 * pairs)]

    return draw


def bound(pairs: int, **options: Any) -> MobileBERTTransfer:
    loss = MobileBERTTransfer(**options)
    loss.bind(context(pairs))
    loss.build([(2, 4, 4)] * 3 * pairs, [(2, 4, 4)] * 3 * pairs)
    return loss


def batch() -> Batch:
    return Batch({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}, size=2)


def test_one_pair_after_the_other_is_the_formula(layers) -> None:
    student, teacher = [tensor.requires_grad_() for tensor in layers(3)], layers(3)
    loss = bound(3, until=0.6)
    for progress, pair in ((0.0, 0), (0.19, 0), (0.21, 1), (0.41, 2), (0.59, 2)):
        value = loss(student, teacher, batch=batch(), progress=progress)
        part = slice(3 * pair, 3 * pair + 3)
        expected = layer_loop(student[part], teacher[part], 2)
        torch.testing.assert_close(value, expected)
        ours = torch.autograd.grad(value, student, allow_unused=True)
        theirs = torch.autograd.grad(expected, student[part])
        assert [gradient is not None for gradient in ours] == [number // 3 == pair for number in range(9)]
        for gradient, true in zip(ours[part], theirs, strict=True):
            torch.testing.assert_close(gradient, true)
            assert gradient[1, :, 2:].abs().max() == 0, "padding"
    whole = loss(student, teacher, batch=batch(), progress=0.6)
    torch.testing.assert_close(whole, sum(layer_loop(student[n : n + 3], teacher[n : n + 3], 2) for n in (0, 3, 6)))


def test_weights_of_the_two_parts_and_no_stages(layers) -> None:
    student, teacher = layers(2), layers(2)
    parts = [
        bound(2, until=0.0, feature_weight=a, attention_weight=b)(student, teacher, batch=batch())
        for a, b in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))
    ]
    torch.testing.assert_close(parts[2], 2 * parts[0] + 3 * parts[1])
    assert bound(2, until=0.0).stage(0.0, 2) is None


def test_every_moment_has_a_stage() -> None:
    loss = MobileBERTTransfer(until=0.7)
    stages = [loss.stage(step / 1000, 7) for step in range(1001)]
    assert stages[0] == 0
    assert stages[699] == 6
    assert set(stages[:700]) == set(range(7))
    assert stages[700:] == [None] * 301


def test_widths_that_differ_are_mapped() -> None:
    loss = MobileBERTTransfer()
    loss.bind(context(2))
    loss.build([(2, 4, 4)] * 6, [(2, 8, 4)] * 6)
    assert [tuple(p.shape) for p in loss.parameters()] == [(8, 4), (8, 4)]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="student has 2 attention heads and the teacher 4"):
        MobileBERTTransfer().bind(context(1, teacher=4))
    with pytest.raises(ValueError, match="hidden states, queries and keys of each layer"):
        MobileBERTTransfer().bind(LossContext(nn.Identity(), nn.Identity(), ("queries.0",), ("queries.0",)))
    with pytest.raises(ValueError, match="until must lie between 0 and 1"):
        MobileBERTTransfer(until=1.5)
