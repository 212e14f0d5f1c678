from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import IRG, irg_loss


def edges_loop(points: Tensor) -> list[list[Tensor]]:
    size = range(len(points))
    squared = [[((points[i] - points[j]) ** 2).sum() for j in size] for i in size]
    largest = max(max(row) for row in squared)
    return [[value / largest for value in row] for row in squared]


def transformation_loop(first: Tensor, second: Tensor) -> list[Tensor]:
    """Maps (B, C, H, W); the larger is pooled, and the wider averaged over neighbouring channels."""
    size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True)]
    first, second = (F.adaptive_avg_pool2d(maps, size) for maps in (first, second))
    width = min(first.shape[1], second.shape[1])
    narrowed = []
    for maps in (first, second):
        group = maps.shape[1] // width
        narrowed.append(torch.stack([maps[:, c * group : (c + 1) * group].mean(1) for c in range(width)], 1))
    distances = [((a - b) ** 2).sum() for a, b in zip(*narrowed, strict=True)]
    return [distance / max(distances) for distance in distances]


def irg_loop(student: list[Tensor], teacher: list[Tensor], weights: tuple[float, float, float]) -> Tensor:
    vertex, edge, transform = weights
    total = vertex * ((student[3] - teacher[3]) ** 2).mean()
    for own, other in zip(student[:3], teacher[:3], strict=True):
        a, b = edges_loop(own.flatten(1)), edges_loop(other.flatten(1))
        squares = [(x - y) ** 2 for row, target in zip(a, b, strict=True) for x, y in zip(row, target, strict=True)]
        total = total + edge / 3 * sum(squares) / len(squares)
    a, b = transformation_loop(*student[:2]), transformation_loop(*teacher[:2])
    return total + transform * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def parts(flat: Tensor) -> list[Tensor]:
    shapes = [(3, 2, 4, 4), (3, 4, 2, 2), (3, 4), (3, 5)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def spread(found: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    return found[:2], found[2], found[3]


def loss(student: list[Tensor], teacher: list[Tensor], weights: tuple[float, float, float]) -> Tensor:
    (maps, features, logits), (other_maps, other_features, other_logits) = spread(student), spread(teacher)
    names = ("vertex_weight", "edge_weight", "transform_weight")
    options = dict(zip(names, weights, strict=True))
    return irg_loss(maps, other_maps, features, other_features, logits, other_logits, **options)


@pytest.mark.parametrize("weights", [(0.1, 5.0, 5.0), (1.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 2.0)])
def test_irg_is_the_formula(random, assert_same, weights: tuple[float, float, float]) -> None:
    teacher = [random(3, 6, 4, 4), random(3, 3, 4, 4), random(3, 7), random(3, 5)]
    assert_same(
        lambda flat: loss(parts(flat), teacher, weights),
        lambda flat: irg_loop(parts(flat), teacher, weights),
        random(171),
    )


def test_gradient_is_the_difference_quotient(random) -> None:
    teacher = [random(3, 2, 4, 4), random(3, 4, 2, 2), random(3, 4), random(3, 5)]
    student = random(171).requires_grad_()
    assert torch.autograd.gradcheck(lambda flat: loss(parts(flat), teacher, (0.1, 5.0, 5.0)), student)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 10**6))
def test_irg_is_zero_at_equality_and_its_edges_ignore_scale_and_rotation(batch: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 2, 4), (batch, 4, 2), (batch, 4), (batch, 3)]
    teacher = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    assert loss(teacher, teacher, (0.1, 5.0, 5.0)).item() < 1e-20
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    moved = [teacher[0], teacher[1], scale * (teacher[2] @ rotation) + 3, teacher[3]]
    assert loss(moved, teacher, (0.1, 5.0, 5.0)).item() < 1e-20


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e18])
def test_values_and_gradients_stay_finite(random, value: float) -> None:
    teacher = [maps.float() for maps in (random(3, 2, 4, 4), random(3, 4, 2, 2), random(3, 4), random(3, 5))]
    flat = torch.full((171,), value, requires_grad=True)
    found = loss(parts(flat), teacher, (0.0, 5.0, 5.0))
    assert found.isfinite()
    assert torch.autograd.grad(found, flat)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    sides = [[maps.bfloat16() for maps in parts(random(171))] for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*sides, (0.1, 5.0, 5.0))
    assert value.dtype == torch.float32
    wide = [[maps.double() for maps in side] for side in sides]
    torch.testing.assert_close(value.double(), loss(*wide, (0.1, 5.0, 5.0)), rtol=1e-4, atol=1e-6)


def test_bad_input_and_the_module(random) -> None:
    student, teacher = parts(random(171)), parts(random(171))
    with pytest.raises(ValueError, match="takes two maps of each network"):
        irg_loss(student[:1], teacher[:1], student[2], teacher[2], student[3], teacher[3])
    with pytest.raises(ValueError, match="logits of one shape"):
        irg_loss(student[:2], teacher[:2], student[2], teacher[2], student[3], teacher[3][:, :2])
    module = IRG(vertex_weight=0.5, edge_weight=1.0, transform_weight=2.0)
    assert module.joint
    assert (module.name, IRG.default_weights) == ("irg", {"task": 1.0, "irg": 1.0})
    assert torch.equal(module(student, teacher), loss(student, teacher, (0.5, 1.0, 2.0)))
    with pytest.raises(ValueError, match="four pairs of taps"):
        module.build([(2, 3)] * 3, [(2, 3)] * 3)
