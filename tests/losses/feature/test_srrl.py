from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning import ConvNet
from kdlightning.losses import SRRL, LossContext, srrl_loss


def srrl_loop(student: Tensor, teacher: Tensor, logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """The formula, written out."""
    features, classes = [], []
    for number in range(len(student)):
        for channel in range(student.shape[1]):
            ours, theirs = student[number, channel].flatten(), teacher[number, channel].flatten()
            features.append((sum(ours) / len(ours) - sum(theirs) / len(theirs)) ** 2)
        classes += [(a - b) ** 2 for a, b in zip(logits[number], target[number], strict=True)]
    return alpha * sum(features) / len(features) + beta * sum(classes) / len(classes)


@pytest.mark.parametrize(("own", "other"), [((), ()), ((4,), (4,)), ((3, 4), (3, 4)), ((2, 2), (5, 3)), ((2, 2), ())])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.0), (0.3, 0.0), (0.0, 2.0)])
def test_it_is_the_formula(random, assert_same, own: Any, other: Any, alpha: float, beta: float) -> None:
    teacher, target, matrix = random(2, 3, *other), random(2, 4), random(3, 4)

    def logits(student: Tensor) -> Tensor:
        return student.flatten(2).mean(2) @ matrix if student.ndim > 2 else student @ matrix

    assert_same(
        lambda f: srrl_loss(f, teacher, logits(f), target, alpha=alpha, beta=beta),
        lambda f: srrl_loop(f, teacher, logits(f), target, alpha, beta),
        random(2, 3, *own),
    )


def test_defaults_are_one_and_five(random) -> None:
    inputs = random(2, 3, 4, 4), random(2, 3, 4, 4), random(2, 5), random(2, 5)
    torch.testing.assert_close(srrl_loss(*inputs), srrl_loop(*inputs, 1.0, 5.0))
    assert (SRRL().alpha, SRRL().beta) == (1.0, 5.0)


def test_gradients_are_those_of_the_value(random) -> None:
    teacher, target = random(2, 3, 2, 2), random(2, 4)
    learned = random(2, 3, 4, 4).requires_grad_(), random(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, z: srrl_loss(f, teacher, z, target), learned)


def test_tokens_are_averaged_over_the_sequence(random) -> None:
    student, teacher, logits, target = random(2, 9, 4), random(2, 5, 4), random(2, 3), random(2, 3)
    value = srrl_loss(student, teacher, logits, target, layout="channels_last")
    torch.testing.assert_close(value, srrl_loss(student.mean(1), teacher.mean(1), logits, target))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 10**6))
def test_only_means_over_positions_count(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    student, teacher, logits, target = (
        draw(batch, channels, 3, 3),
        draw(batch, channels),
        draw(batch, 2),
        draw(batch, 2),
    )
    value = srrl_loss(student, teacher, logits, target)
    order = torch.randperm(9, generator=generator)
    shuffled = student.flatten(2)[..., order].unflatten(2, (3, 3))
    torch.testing.assert_close(srrl_loss(shuffled, teacher, logits, target), value)
    torch.testing.assert_close(
        srrl_loss(scale * student, scale * teacher, scale * logits, scale * target), scale**2 * value
    )
    assert srrl_loss(student, student, target, target) == 0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_values_and_gradients_are_finite(scale: float) -> None:
    student, logits = (torch.randn(2, 3, 4, 4) * scale).requires_grad_(), (torch.randn(2, 5) * scale).requires_grad_()
    value = srrl_loss(student, torch.randn(2, 3, 4, 4) * scale, logits, torch.randn(2, 5) * scale)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [student, logits]))


def test_half_precision_is_computed_in_float32(random) -> None:
    inputs = [t.bfloat16() for t in (random(2, 3, 4, 4), random(2, 3, 4, 4), random(2, 5), random(2, 5))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = srrl_loss(*inputs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), srrl_loss(*(t.double() for t in inputs)), rtol=1e-5, atol=1e-8)


def test_the_teacher_gets_no_gradient(random) -> None:
    inputs = [t.requires_grad_() for t in (random(2, 3, 4, 4), random(2, 3, 4, 4), random(2, 5), random(2, 5))]
    srrl_loss(*inputs).backward()
    assert [t.grad is None for t in inputs] == [False, True, False, True]


# -- the module --------------------------------------------------------------------------------------------------------


def bound(teacher: nn.Module, **options: Any) -> SRRL:
    loss = SRRL(**options)
    loss.bind(LossContext(student=ConvNet(5), teacher=teacher))
    return loss


def teacher_of(dimensions: int = 2) -> ConvNet:
    return ConvNet(5, widths=(4, 6), dimensions=dimensions).eval()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_logits_are_what_the_teachers_classifier_says(random, dimensions: int) -> None:
    teacher = teacher_of(dimensions)
    loss = bound(teacher, alpha=0.5, beta=2.0)
    images = random(3, 1, *[8] * dimensions).float()
    maps, connected = teacher.stages(images), random(3, 6, *[4] * dimensions).float()
    value = loss(connected, maps, batch=None)
    own = teacher.fc(connected.flatten(2).mean(2))
    torch.testing.assert_close(value, srrl_loss(connected, maps, own, teacher(images), alpha=0.5, beta=2.0))


def test_pooled_vectors_give_the_same(random) -> None:
    loss = bound(teacher_of())
    student, teacher = random(3, 6, 4, 4).float(), random(3, 6, 4, 4).float()
    torch.testing.assert_close(loss(student.mean((2, 3)), teacher.mean((2, 3))), loss(student, teacher))
    torch.testing.assert_close(loss(student, teacher.mean((2, 3))), loss(student, teacher))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 8), (4, 3, 8, 8)])
@pytest.mark.parametrize("relu", [True, False])
def test_the_connector_learns_and_the_classifier_does_not(random, shape: tuple[int, ...], relu: bool) -> None:
    teacher = teacher_of()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss = bound(teacher, relu=relu)
    student, target = random(*shape).float(), random(4, 6, *shape[2:]).float().relu()
    connector = loss.adapter(shape, tuple(target.shape))
    assert [p.ndim for p in connector.parameters()] == [max(2, len(shape)), 1, 1]  # no bias but BatchNorm's
    loss.build([(4, 6, *shape[2:])], [tuple(target.shape)])
    optimizer = torch.optim.Adam(connector.parameters(), 0.05)
    values = []
    for _ in range(20):
        value = loss(connector(student), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in connector.parameters())
    assert values[-1] < 0.8 * values[0]
    assert (connector(student).min() >= 0) == relu
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.fc.weight.grad is None


def test_the_classifier_is_no_part_of_the_loss() -> None:
    loss = bound(teacher_of())
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert loss.spatial == "any"


def test_a_teacher_in_half_precision_is_computed_in_float32(random) -> None:
    teacher = teacher_of().bfloat16()
    student, maps = random(3, 6, 4, 4).float().requires_grad_(), random(3, 6, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = bound(teacher)(student, maps)
    exact = bound(teacher.double())(student.detach().double(), maps.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-8)


def test_a_batch_of_one_is_refused_by_the_connector_in_training_only(random) -> None:
    connector = SRRL().adapter((1, 3), (1, 6)).double()
    with pytest.raises(ValueError, match="drop_last=True or a larger batch"):
        connector(random(1, 3))
    assert connector.eval()(random(1, 3)).isfinite().all()
    assert SRRL().adapter((1, 3, 4, 4), (1, 6, 4, 4)).double()(random(1, 3, 4, 4)).isfinite().all()


def no_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: srrl_loss(*[torch.zeros(2, n) for n in (3, 4, 5, 5)]), "features of one width"),
        (lambda: srrl_loss(*[torch.zeros(2, n) for n in (3, 3, 5, 4)]), "logits of one shape"),
        (lambda: srrl_loss(*[torch.zeros(3)] * 4), r"\(batch, channels, …\)"),
        (lambda: srrl_loss(*[torch.zeros(2, 3, 4)] * 2, *[torch.zeros(2, 2)] * 2, layout="tokens"), "layout must be"),  # type: ignore[misc,arg-type]
        (lambda: bound(no_head()), "Sequential has no linear layer that could be its classifier"),
        (lambda: SRRL().bind(LossContext(student=ConvNet(5), teacher=None)), "the teacher is no single network"),
        (lambda: bound(teacher_of()).build([(2, 4, 8, 8)], [(2, 4, 8, 8)]), "reads 6 features and its tap gives 4"),
        (lambda: SRRL().adapter((2, 3, 4, 4, 4), (2, 3, 4, 4, 4)), "vectors, signals or maps"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_start_is_that_of_the_authors() -> None:
    torch.manual_seed(0)
    weight = next(SRRL().adapter((2, 200, 4, 4), (2, 300, 4, 4)).parameters()).detach()
    assert float(weight.std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
