from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning import ConvNet
from kdlightning.losses import CATKD, LossContext, cat_kd_loss


def window(position: int, parts: int, length: int) -> range:
    """The positions that adaptive pooling to `parts` averages for one of them."""
    return range(position * length // parts, -((-(position + 1) * length) // parts))


def map_loop(values: Tensor, resolution: int, normalize: bool) -> list[Tensor]:
    """One class's map `(L,)` or `(H, W)`, pooled and divided by its norm."""
    rows = values if values.ndim == 2 else values[:, None]
    side = resolution if values.ndim == 2 else 1
    cells = []
    for i in range(resolution):
        for j in range(side):
            places = [rows[r, c] for r in window(i, resolution, len(rows)) for c in window(j, side, rows.shape[1])]
            cells.append(sum(places) / len(places))
    norm = sum(cell**2 for cell in cells) ** 0.5
    return [cell / norm for cell in cells] if normalize else cells


def cat_kd_loop(student: Tensor, teacher: Tensor, resolution: int, normalize: bool = True) -> Tensor:
    """The formula, written out."""
    squares = []
    for own, other in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        pairs = zip(map_loop(own, resolution, normalize), map_loop(other, resolution, normalize), strict=True)
        squares += [(a - b) ** 2 for a, b in pairs]
    return sum(squares) / len(squares)


@pytest.mark.parametrize(
    ("own", "other"), [((4, 4), (4, 4)), ((4, 4), (7, 5)), ((3, 2), (2, 2)), ((6,), (6,)), ((5,), (8,))]
)
@pytest.mark.parametrize(("resolution", "normalize"), [(2, True), (3, True), (2, False), (1, False)])
def test_it_is_the_formula(random, assert_same, own: Any, other: Any, resolution: int, normalize: bool) -> None:
    teacher = random(2, 3, *other)
    assert_same(
        lambda f: cat_kd_loss(f, teacher, resolution=resolution, normalize=normalize),
        lambda f: cat_kd_loop(f, teacher, resolution, normalize),
        random(2, 3, *own),
    )


def test_a_single_number_over_its_norm_is_its_sign(random) -> None:
    student, teacher = random(2, 3, 1, 1), random(2, 3, 4, 4)
    value = cat_kd_loss(student, teacher, resolution=1)
    torch.testing.assert_close(
        value, (student.sign().flatten() - teacher.mean((2, 3)).sign().flatten()).square().mean()
    )
    torch.testing.assert_close(cat_kd_loss(student, teacher), cat_kd_loss(student.expand(2, 3, 2, 2), teacher))


def test_gradients_are_those_of_the_value(random) -> None:
    student, teacher = random(2, 2, 5, 4).requires_grad_(), random(2, 2, 4, 4)
    for normalize in (True, False):
        assert torch.autograd.gradcheck(lambda f, n=normalize: cat_kd_loss(f, teacher, normalize=n), (student,))


def test_tokens_are_transposed_signals(random) -> None:
    student, teacher = random(2, 9, 4), random(2, 16, 4)
    value = cat_kd_loss(student, teacher, layout="channels_last")
    torch.testing.assert_close(value, cat_kd_loss(student.mT, teacher.mT))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 100), st.integers(0, 10**6))
def test_scale_does_not_count_and_classes_may_change_places(
    batch: int, classes: int, resolution: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    value = cat_kd_loss(student, teacher, resolution=resolution)
    torch.testing.assert_close(cat_kd_loss(scale * student, teacher, resolution=resolution), value)
    order = torch.randperm(classes, generator=generator)
    torch.testing.assert_close(cat_kd_loss(student[:, order], teacher[:, order], resolution=resolution), value)
    assert cat_kd_loss(scale * teacher, teacher, resolution=resolution) < 1e-24
    assert 0 <= value <= 4 / resolution**2 + 1e-12  # unit vectors lie at most 2 apart
    plain = cat_kd_loss(student, teacher, resolution=resolution, normalize=False)
    both = cat_kd_loss(scale * student, scale * teacher, resolution=resolution, normalize=False)
    torch.testing.assert_close(both, scale**2 * plain)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e15])
@pytest.mark.parametrize("normalize", [True, False])
def test_values_and_gradients_are_finite(scale: float, normalize: bool) -> None:
    student = (torch.randn(2, 3, 4, 4) * scale).requires_grad_()
    for teacher in (torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)):
        value = cat_kd_loss(student, teacher, normalize=normalize)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_a_map_of_zeros_has_no_direction_and_no_gradient(random) -> None:
    student = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    student[:, 1] = random(1, 4, 4)
    student.requires_grad_()
    gradient = torch.autograd.grad(cat_kd_loss(student, random(1, 2, 4, 4)), student)[0]
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4, 4).bfloat16(), random(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cat_kd_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), cat_kd_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-8)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(2, 3, 4, 4).requires_grad_(), random(2, 3, 4, 4).requires_grad_()
    cat_kd_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


# -- the module --------------------------------------------------------------------------------------------------------


def networks(dimensions: int = 2, classes: int = 5) -> tuple[ConvNet, ConvNet]:
    return (
        ConvNet(5, widths=(3, 4), dimensions=dimensions).double().eval(),
        ConvNet(classes, widths=(4, 6), dimensions=dimensions).double().eval(),
    )


def bound(student: nn.Module, teacher: nn.Module | None, label_map: Any = None, **options: Any) -> CATKD:
    loss = CATKD(**options)
    loss.bind(LossContext(student=student, teacher=teacher, label_map=label_map))
    return loss


def activation_maps(network: ConvNet, maps: Tensor) -> Tensor:
    """The classifier on every position."""
    return network.fc(maps.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(("resolution", "normalize"), [(2, True), (3, True), (2, False)])
def test_the_maps_are_what_each_classifier_says_of_each_position(
    random, dimensions: int, resolution: int, normalize: bool
) -> None:
    student, teacher = networks(dimensions)
    images = random(3, 1, *[8] * dimensions)
    own, other = student.stages(images), random(3, 6, *[5] * dimensions)
    loss = bound(student, teacher, resolution=resolution, normalize=normalize)
    value = loss(own, other, batch=None)
    maps = activation_maps(student, own), activation_maps(teacher, other)
    torch.testing.assert_close(value, cat_kd_loss(*maps, resolution=resolution, normalize=normalize))
    # What makes them class activation maps: their means are the logits.
    torch.testing.assert_close(maps[0].flatten(2).mean(2), student(images))


def test_the_students_classifier_learns_where_it_is(random) -> None:
    student, teacher = networks()
    loss = bound(student, teacher)
    assert not list(loss.parameters())
    assert not loss.state_dict()
    own, other = random(3, 4, 4, 4).requires_grad_(), random(3, 6, 4, 4).requires_grad_()
    loss(own, other).backward()
    assert student.fc.weight.grad is not None
    assert student.fc.weight.grad.abs().sum() > 0
    assert student.fc.bias.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert own.grad is not None
    assert other.grad is None
    assert teacher.fc.weight.grad is None
    before = loss(own, other)
    with torch.no_grad():
        student.fc.weight.copy_(torch.randn_like(student.fc.weight))
    assert not torch.equal(loss(own, other), before)


def test_a_label_map_picks_the_teachers_classes(random) -> None:
    student, teacher = networks(classes=7)
    own, other = random(3, 4, 4, 4), random(3, 6, 4, 4)
    chosen = (6, 0, 3, 3, 1)
    expected = cat_kd_loss(activation_maps(student, own), activation_maps(teacher, other)[:, list(chosen)])
    loss = bound(student, teacher, chosen)
    torch.testing.assert_close(loss(own, other), expected)
    assert not loss.state_dict()
    teacher.fc.bias = None  # type: ignore[assignment]
    expected = cat_kd_loss(activation_maps(student, own), activation_maps(teacher, other)[:, list(chosen)])
    torch.testing.assert_close(loss(own, other), expected)


def test_autocast_and_half_precision_are_computed_in_float32(random) -> None:
    student, teacher = networks()
    own, other = random(2, 4, 4, 4).bfloat16(), random(2, 6, 4, 4).bfloat16()
    exact = bound(student.bfloat16().double(), teacher.bfloat16().double())(own.double(), other.double())
    loss = bound(student.bfloat16(), teacher.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(own, other)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-8)


def test_a_batch_of_one_is_allowed(random) -> None:
    student, teacher = networks()
    assert bound(student, teacher)(random(1, 4, 4, 4), random(1, 6, 8, 8)).isfinite()
    assert CATKD.spatial == "any"
    assert CATKD().adapter((2, 3, 4, 4), (2, 5, 8, 8)) is None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: cat_kd_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "two class activation maps"),
        (lambda: cat_kd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4)), "two class activation maps"),
        (lambda: cat_kd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)), "same samples and classes"),
        (lambda: cat_kd_loss(*[torch.zeros(2, 3, 4, 4)] * 2, resolution=0), "resolution must be above 0"),
        (lambda: cat_kd_loss(*[torch.zeros(2, 3, 4)] * 2, layout="tokens"), "layout must be"),  # type: ignore[misc,arg-type]
        (lambda: CATKD(resolution=0), "resolution must be above 0"),
        (lambda: bound(networks()[0], None), "the teacher is no single network"),
        (lambda: bound(*networks(classes=7)), "the student has 5, the teacher 7: give FrozenTeacher a label_map"),
        (lambda: bound(*networks()).build([(2, 4, 4, 4)], [(2, 4, 8, 8)]), "the teacher's classifier reads 6 features"),
        (lambda: bound(*networks()).build([(2, 4)], [(2, 6, 8, 8)]), "the student's classifier reads 4 features"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
