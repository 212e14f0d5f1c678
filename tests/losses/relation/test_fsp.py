from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import FSP, fsp_loss


def flow_loop(first: Tensor, second: Tensor) -> Tensor:
    """(1/(H·W)) Σ of products of channels, position by position, of one sample's maps (C, H, W)."""
    rows = []
    for m in range(len(first)):
        row = []
        for n in range(len(second)):
            products = [first[m, h, w] * second[n, h, w] for h in range(first.shape[1]) for w in range(first.shape[2])]
            row.append(sum(products) / len(products))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def fsp_loop(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(student) - 1):
        squares = []
        for sample in range(len(student[0])):
            flows = []
            for maps in (student, teacher):
                first, second = maps[place], maps[place + 1]
                size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True)]
                first, second = (F.adaptive_avg_pool2d(m, size) for m in (first, second))
                flows.append(flow_loop(first[sample], second[sample]))
            squares.append((flows[0] - flows[1]) ** 2)
        total = total + torch.stack(squares).sum() / torch.stack(squares).numel()
    return total


def maps_of(flat: Tensor) -> list[Tensor]:
    """Three maps of two samples from one vector, so that one gradient holds all."""
    shapes = [(2, 2, 4, 4), (2, 3, 4, 4), (2, 2, 2, 2)]
    parts = flat.split([64, 96, 16])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def test_fsp_is_the_formula(random, assert_same) -> None:
    teacher = [random(2, 2, 8, 8), random(2, 3, 4, 4), random(2, 2, 4, 4)]
    assert_same(
        lambda flat: fsp_loss(maps_of(flat), teacher), lambda flat: fsp_loop(maps_of(flat), teacher), random(176)
    )


def test_gradient_is_the_difference_quotient(random) -> None:
    teacher = [random(2, 2, 3), random(2, 3, 3)]
    student = random(2, 2, 6).requires_grad_(), random(2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: fsp_loss([a, b], teacher), student)


def test_signals_vectors_and_tokens_are_maps_too(random) -> None:
    student, teacher = [random(3, 2, 6), random(3, 4, 6)], [random(3, 2, 6), random(3, 4, 6)]
    as_maps = [[maps[:, :, None] for maps in side] for side in (student, teacher)]
    torch.testing.assert_close(fsp_loss(student, teacher), fsp_loss(*as_maps))
    tokens = [[maps.mT for maps in side] for side in (student, teacher)]
    torch.testing.assert_close(fsp_loss(*tokens, layout="channels_last"), fsp_loss(student, teacher))
    vectors = [[maps[:, :, 0] for maps in side] for side in (student, teacher)]
    single = [[maps[:, :, :1] for maps in side] for side in (student, teacher)]
    torch.testing.assert_close(fsp_loss(*vectors), fsp_loss(*single))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 5), st.integers(0, 10**6))
def test_fsp_is_zero_at_equality_blind_to_order_of_positions_and_of_degree_four(
    batch: int, channels: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(batch, width, 3, 2, generator=generator, dtype=torch.float64)

    student, teacher = [draw(channels), draw(2)], [draw(channels), draw(2)]
    assert fsp_loss(teacher, teacher).item() < 1e-20
    flipped = [maps.flip(2, 3) for maps in teacher]
    assert fsp_loss(flipped, teacher).item() < 1e-20
    scaled = fsp_loss([scale * maps for maps in student], [scale * maps for maps in teacher])
    torch.testing.assert_close(scaled, scale**4 * fsp_loss(student, teacher))


def test_half_precision_is_computed_in_float32(random) -> None:
    sides = [[random(2, 3, 4).bfloat16(), random(2, 2, 4).bfloat16()] for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fsp_loss(*sides)
    assert value.dtype == torch.float32
    wide = [[maps.double() for maps in side] for side in sides]
    torch.testing.assert_close(value.double(), fsp_loss(*wide), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        ([(2, 3, 4)], [(2, 3, 4)], "two or more"),
        ([(2, 3, 4), (2, 2, 4)], [(2, 3, 4), (2, 4, 4)], "adapter: linear"),
        ([(2, 3, 4), (2, 2)], [(2, 3, 4), (2, 2)], "maps of one kind"),
    ],
)
def test_bad_input_is_one_sentence(student: list, teacher: list, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fsp_loss([torch.zeros(shape) for shape in student], [torch.zeros(shape) for shape in teacher])


def test_the_module_is_joint_and_maps_widths(random) -> None:
    loss = FSP()
    assert loss.joint
    assert (loss.name, FSP.default_weights) == ("fsp", {"task": 1.0, "fsp": 1.0})
    adapter = loss.adapter((2, 3, 4), (2, 5, 4))
    assert adapter is not None
    assert adapter(torch.zeros(2, 3, 4)).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="two or more pairs"):
        loss.build([(2, 3, 4)], [(2, 3, 4)])
    sides = [[random(2, 3, 4), random(2, 2, 4)] for _ in range(2)]
    assert torch.equal(loss(*sides), fsp_loss(*sides))
