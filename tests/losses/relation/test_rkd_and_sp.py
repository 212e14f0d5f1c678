from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import RKD, SP, rkd_loss, sp_loss


def huber(value: Tensor) -> Tensor:
    return value**2 / 2 if value.abs() < 1 else value.abs() - 0.5


def distances_loop(points: Tensor) -> dict[tuple[int, int], Tensor]:
    pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
    distances = {(i, j): ((points[i] - points[j]) ** 2).sum() ** 0.5 for i, j in pairs}
    mean = sum(distances.values()) / len(pairs)
    return {pair: distance / mean for pair, distance in distances.items()}


def cosine_loop(points: Tensor, i: int, j: int, k: int) -> Tensor:
    first, second = points[j] - points[i], points[k] - points[i]
    return (first * second).sum() / ((first**2).sum() ** 0.5 * (second**2).sum() ** 0.5)


def rkd_loop(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    size = len(student)
    own, other = distances_loop(student), distances_loop(teacher)
    distance = sum(huber(own[pair] - other[pair]) for pair in own) / size**2
    angle = torch.zeros((), dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            for k in range(size):
                if i not in (j, k):
                    angle = angle + huber(cosine_loop(student, i, j, k) - cosine_loop(teacher, i, j, k))
    return distance_weight * distance + angle_weight * angle / size**3


def sp_loop(student: Tensor, teacher: Tensor) -> Tensor:
    def similarities(points: Tensor) -> list[list[Tensor]]:
        rows = [[(a * b).sum() for b in points] for a in points]
        return [[value / sum(other**2 for other in row) ** 0.5 for value in row] for row in rows]

    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(similarities(student), similarities(teacher), strict=True):
        for a, b in zip(own, other, strict=True):
            total = total + (a - b) ** 2
    return total / len(student) ** 2


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_is_the_formula(random, assert_same, weights: tuple[float, float]) -> None:
    teacher = random(5, 6)
    distance_weight, angle_weight = weights
    assert_same(
        lambda f: rkd_loss(f, teacher, distance_weight=distance_weight, angle_weight=angle_weight),
        lambda f: rkd_loop(f, teacher, distance_weight, angle_weight),
        random(5, 3),
    )


def test_sp_is_the_formula(random, assert_same) -> None:
    teacher = random(4, 6)
    assert_same(lambda f: sp_loss(f, teacher), lambda f: sp_loop(f, teacher), random(4, 3))


def test_maps_are_flattened_and_may_differ(random) -> None:
    student, teacher = random(4, 2, 3, 3), random(4, 5, 2, 2)
    for function in (rkd_loss, sp_loss):
        torch.testing.assert_close(function(student, teacher), function(student.flatten(1), teacher.flatten(1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.floats(0.1, 50), st.integers(0, 10**6))
def test_rkd_ignores_rotation_translation_and_scale(batch: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    moved = scale * teacher @ rotation + torch.randn(width, generator=generator, dtype=torch.float64)
    assert rkd_loss(moved, teacher) < 1e-9
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(rkd_loss(student[order], teacher[order]), rkd_loss(student, teacher))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.floats(0.1, 50), st.integers(0, 10**6))
def test_sp_ignores_rotation_and_scale(batch: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    assert sp_loss(scale * teacher @ rotation, teacher) < 1e-20
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(sp_loss(student[order], teacher[order]), sp_loss(student, teacher))


@pytest.mark.parametrize("function", [rkd_loss, sp_loss])
@pytest.mark.parametrize("batch", [1, 2])
def test_tiny_batches_work(random, function, batch: int) -> None:
    student = random(batch, 3).requires_grad_()
    value = function(student, random(batch, 4))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if batch == 1:
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_samples_give_no_angle_and_finite_gradients(random, dtype: torch.dtype) -> None:
    student = (random(5, 4) + 100).to(dtype)
    student[1] = student[0]
    student.requires_grad_()
    teacher = random(5, 6).to(dtype)
    (gradient,) = torch.autograd.grad(rkd_loss(student, teacher), student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100
    same = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(rkd_loss(same, teacher[:4]), same)
    assert gradient.isfinite().all()


def test_float32_keeps_its_digits_far_from_the_origin(random) -> None:
    student, teacher = random(6, 8), random(6, 8)
    shifted = (student + 1000).float()
    true = rkd_loss(shifted.double(), teacher.float().double())
    torch.testing.assert_close(rkd_loss(shifted, teacher.float()).double(), true, rtol=1e-4, atol=0)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(4, 3).requires_grad_(), random(4, 3).requires_grad_()
    (rkd_loss(student, teacher) + sp_loss(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("function", [rkd_loss, sp_loss])
def test_autocast_does_not_reach_the_products(random, function) -> None:
    student, teacher = random(6, 32).bfloat16(), random(6, 16).bfloat16()
    for own, other in ((student, teacher), (student.float(), teacher.float())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = function(own, other)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), function(student.double(), teacher.double()), rtol=1e-5, atol=1e-8)


def test_modules_pass_their_options(random) -> None:
    student, teacher = random(4, 3), random(4, 5)
    own = RKD(distance_weight=1.0, angle_weight=2.0)
    expected = rkd_loss(student, teacher, distance_weight=1.0, angle_weight=2.0)
    assert torch.equal(own(student, teacher, batch=None, progress=0.0), expected)
    assert torch.equal(SP()(student, teacher, batch=None, progress=0.0), sp_loss(student, teacher))
    for loss in (own, SP()):
        assert loss.compares_samples
        assert loss.spatial == "any"
        assert loss.adapter((4, 3), (4, 5)) is None


@pytest.mark.parametrize("function", [rkd_loss, sp_loss])
@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,))])
def test_bad_shapes_are_one_sentence(function, shapes) -> None:
    with pytest.raises(ValueError, match=r"features \(batch, …\) of the same samples"):
        function(*map(torch.zeros, shapes))
