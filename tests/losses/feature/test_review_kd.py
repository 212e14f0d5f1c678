from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses import ReviewKD, hcl_loss
from kdlightning.losses.feature.fusion import Fusion


def window(position: int, parts: int, length: int) -> range:
    """The positions that adaptive pooling to `parts` averages for one of them."""
    return range(position * length // parts, -((-(position + 1) * length) // parts))


def pooled(maps: Tensor, side: int) -> list[Tensor]:
    """Average-pooling to side × side (or side), value by value."""
    sizes = maps.shape[2:]
    values = []
    for sample in maps:
        for channel in sample:
            for row in range(side):
                rows = window(row, side, sizes[0])
                if len(sizes) == 1:
                    values.append(sum(channel[i] for i in rows) / len(rows))
                    continue
                for column in range(side):
                    columns = window(column, side, sizes[1])
                    total = sum(channel[i, j] for i in rows for j in columns)
                    values.append(total / (len(rows) * len(columns)))
    return values


def hcl_loop(student: Tensor, teacher: Tensor) -> Tensor:
    """The formula, written out."""

    def mean_square(ours: Any, theirs: Any) -> Tensor:
        squares = [(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]
        return sum(squares) / len(squares)

    total, weight, weights = mean_square(student.flatten(), teacher.flatten()), 1.0, 1.0
    for side in (4, 2, 1):
        if student.ndim < 3 or side >= student.shape[2]:
            continue
        weight /= 2
        total = total + weight * mean_square(pooled(student, side), pooled(teacher, side))
        weights += weight
    return total / weights


@pytest.mark.parametrize(
    "shape",
    [(2, 3), (2, 2, 1, 1), (1, 2, 2, 2), (2, 2, 5, 5), (1, 2, 8, 8), (1, 2, 6, 3), (2, 3, 9), (2, 3, 8), (1, 2, 2)],
)
def test_it_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)
    assert_same(lambda f: hcl_loss(f, teacher), lambda f: hcl_loop(f, teacher), random(*shape))


def test_a_list_is_summed(random) -> None:
    shapes = [(2, 3, 8, 8), (2, 4, 4, 4), (2, 5)]
    ours, theirs = [random(*shape) for shape in shapes], [random(*shape) for shape in shapes]
    single = sum(hcl_loss(own, other) for own, other in zip(ours, theirs, strict=True))
    torch.testing.assert_close(hcl_loss(ours, theirs), single)
    torch.testing.assert_close(hcl_loss(tuple(ours), tuple(theirs)), single)


def test_gradients_are_those_of_the_value(random) -> None:
    student, teacher = random(2, 2, 7, 5).requires_grad_(), random(2, 2, 7, 5)
    assert torch.autograd.gradcheck(lambda f: hcl_loss(f, teacher), (student,))


def test_tokens_are_transposed_signals(random) -> None:
    student, teacher = random(2, 9, 4), random(2, 9, 4)
    value = hcl_loss(student, teacher, layout="channels_last")
    torch.testing.assert_close(value, hcl_loss(student.mT, teacher.mT))
    grid = [maps.permute(0, 2, 3, 1) for maps in (random(2, 3, 4, 4), random(2, 3, 4, 4))]
    expected = hcl_loss(*(maps.permute(0, 3, 1, 2) for maps in grid))
    torch.testing.assert_close(hcl_loss(*grid, layout="channels_last"), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.floats(0.01, 100), st.integers(0, 10**6))
def test_zero_at_equality_and_quadratic_in_the_difference(
    batch: int, channels: int, side: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, step = (
        torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    assert hcl_loss(teacher, teacher) == 0
    torch.testing.assert_close(hcl_loss(teacher + scale * step, teacher), scale**2 * hcl_loss(step, step * 0))
    torch.testing.assert_close(hcl_loss(teacher + scale, teacher), torch.tensor(scale**2, dtype=torch.float64))
    order = torch.randperm(channels, generator=generator)
    torch.testing.assert_close(hcl_loss(step[:, order], teacher[:, order]), hcl_loss(step, teacher))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_values_and_gradients_are_finite(scale: float) -> None:
    student = (torch.randn(2, 3, 8, 8) * scale).requires_grad_()
    value = hcl_loss(student, torch.randn(2, 3, 8, 8) * scale)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 8, 8).bfloat16(), random(2, 3, 8, 8).bfloat16()
    true = hcl_loss(student.double(), teacher.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value in (hcl_loss(student, teacher), hcl_loss([student], [teacher])):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-8)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(2, 3, 4, 4).requires_grad_(), random(2, 3, 4, 4).requires_grad_()
    hcl_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


# -- the module --------------------------------------------------------------------------------------------------------


def built(student: list[Tensor], teacher: list[Tensor], **options: Any) -> ReviewKD:
    loss = ReviewKD(**options)
    loss.build([tuple(f.shape) for f in student], [tuple(f.shape) for f in teacher])
    return loss.to(student[0].dtype)


def review_loop(loss: ReviewKD, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The review as the paper draws it: concatenated attention, everything enlarged before it is convolved."""
    total: Any = 0
    deeper = None
    for fusion, own, other in reversed(list(zip(loss.fusions, student, teacher, strict=True))):
        own, other = (f if f.ndim > 2 else f.reshape(*f.shape, *[1] * loss.dimensions) for f in (own, other))
        x = fusion.reduce(own)
        if fusion.attention is not None:
            y = F.interpolate(deeper, x.shape[2:], mode="nearest")
            gates = torch.sigmoid(fusion.attention(torch.cat([x, y], 1)))
            x = x * gates[:, 0:1] + y * gates[:, 1:2]
        deeper = F.interpolate(x, other.shape[2:], mode="nearest")
        total = total + hcl_loss(fusion.expand(deeper), other)
    return total


LEVELS: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = [
    ([(4, 3, 8, 8), (4, 5, 4, 4), (4, 5)], [(4, 6, 8, 8), (4, 7, 4, 4), (4, 7)]),
    ([(4, 3, 4, 4), (4, 5, 2, 2), (4, 5)], [(4, 6, 8, 8), (4, 7, 4, 4), (4, 7, 1, 1)]),
    ([(4, 3, 8), (4, 5, 4), (4, 5)], [(4, 6, 8), (4, 7, 4), (4, 7)]),
    ([(4, 3, 8, 6), (4, 5, 8, 6)], [(4, 6, 8, 6), (4, 7, 8, 6)]),
    ([(4, 3, 6, 6)], [(4, 6, 6, 6)]),
    ([(4, 3), (4, 5)], [(4, 6), (4, 7)]),
]


@pytest.mark.parametrize(("ours", "theirs"), LEVELS)
@pytest.mark.parametrize("training", [True, False])
def test_levels_are_reviewed_from_deep_to_shallow(random, ours: Any, theirs: Any, training: bool) -> None:
    student, teacher = [random(*shape).requires_grad_() for shape in ours], [random(*shape) for shape in theirs]
    loss = built(student, teacher, channels=4).train(training)
    value = loss(student, teacher, batch=None)
    learned = [*student, *loss.parameters()]
    torch.testing.assert_close(value, review_loop(loss, student, teacher))
    gradients = torch.autograd.grad(value, learned)
    for gradient, true in zip(
        gradients, torch.autograd.grad(review_loop(loss, student, teacher), learned), strict=True
    ):
        torch.testing.assert_close(gradient, true, rtol=1e-8, atol=1e-10)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[: len(student)])


def test_the_common_width_is_the_deepest_levels(random) -> None:
    student = [random(2, 3, 4, 4), random(2, 600)]
    teacher = [random(2, 5, 4, 4), random(2, 7)]
    assert [fusion.reduce[0].out_channels for fusion in built(student, teacher).fusions] == [512, 512]  # type: ignore[union-attr,index]
    assert [fusion.reduce[0].out_channels for fusion in built(student[:1], teacher[:1]).fusions] == [3]  # type: ignore[union-attr,index]
    assert built(student, teacher, channels=9).fusions[0].expand[0].in_channels == 9  # type: ignore[union-attr,index]


def test_every_network_is_trained_and_saved(random) -> None:
    student = [random(4, 3, 8, 8).float(), random(4, 5, 4, 4).float(), random(4, 5).float()]
    teacher = [random(4, 6, 8, 8).float(), random(4, 7, 4, 4).float(), random(4, 7).float()]
    loss = built(student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), 0.02)
    values = []
    for _ in range(30):
        value = loss(student, teacher, batch=None)
        optimizer.zero_grad()
        value.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    again = built(student, teacher)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.eval()(student, teacher), loss.eval()(student, teacher))


def test_a_shallow_level_of_the_teacher_teaches_deeper_ones_of_the_student(random) -> None:
    student = [random(4, 3, 8, 8).requires_grad_(), random(4, 5, 4, 4).requires_grad_()]
    teacher = [random(4, 6, 8, 8), random(4, 7, 4, 4)]
    loss = built(student, teacher)
    only_shallow = hcl_loss(
        loss.fusions[0](student[0], loss.fusions[1](student[1], None, (4, 4))[1], (8, 8))[0], teacher[0]
    )
    assert torch.autograd.grad(only_shallow, student[1])[0].abs().sum() > 0


def test_larger_maps_are_averaged_and_smaller_ones_repeated(random) -> None:
    fusion = Fusion(2, 3, 4, 2, fuses=False).double()
    features = random(2, 2, 6, 4)
    residual = fusion(features, None, (3, 8))[1]
    expected = F.interpolate(F.adaptive_avg_pool2d(fusion.reduce(features), (3, 4)), (3, 8), mode="nearest")
    torch.testing.assert_close(residual, expected)


def test_a_batch_of_one_is_refused_in_training_only(random) -> None:
    student, teacher = [random(1, 3, 4, 4), random(1, 3)], [random(1, 3, 4, 4), random(1, 3)]
    loss = built(student, teacher)
    with pytest.raises(ValueError, match="drop_last=True or a larger batch"):
        loss(student, teacher)
    assert loss.eval()(student, teacher).isfinite()
    assert built(student[:1], teacher[:1])(student[:1], teacher[:1]).isfinite()


def test_autocast_reaches_the_networks_and_not_the_loss() -> None:
    student, teacher = [torch.randn(4, 3, 8, 8), torch.randn(4, 5)], [torch.randn(4, 6, 8, 8), torch.randn(4, 7)]
    loss = built(student, teacher).eval()
    exact = loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.0)


def test_it_takes_all_pairs_and_needs_no_adapter() -> None:
    loss = ReviewKD()
    assert (loss.joint, loss.spatial) == (True, "any")
    assert loss.adapter((2, 3, 4, 4), (2, 5, 8, 8)) is None
    assert not list(loss.parameters())


def refused(student: list[tuple[int, ...]], teacher: list[tuple[int, ...]]) -> Callable[[], None]:
    return lambda: ReviewKD().build(student, teacher)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: hcl_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "maps .* of one shape"),
        (lambda: hcl_loss(torch.zeros(3), torch.zeros(3)), "maps .* of one shape"),
        (lambda: hcl_loss([torch.zeros(2, 3)], []), "as many maps of the teacher as of the student: 0 and 1"),
        (lambda: hcl_loss([], []), "as many maps"),
        (lambda: hcl_loss(*[torch.zeros(2, 3, 4)] * 2, layout="tokens"), "layout must be"),  # type: ignore[misc,arg-type]
        (lambda: ReviewKD(channels=0), "channels must be above 0"),
        (refused([(2, 3, 4), (2, 3, 4, 4)], [(2, 3, 4), (2, 3, 4, 4)]), "do not mix"),
        (refused([(2, 3, 4, 4), (2, 3, 8, 8)], [(2, 3, 4, 4), (2, 3, 8, 8)]), "from shallow to deep"),
        (refused([(2, 3, 4, 4, 4)], [(2, 3, 4, 4, 4)]), "vectors, signals or maps"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_signals_use_convolutions_of_signals(random) -> None:
    loss = built([random(2, 3, 8), random(2, 3)], [random(2, 4, 8), random(2, 5)])
    kinds = {type(module) for module in loss.modules()}
    assert nn.Conv1d in kinds
    assert nn.Conv2d not in kinds
