from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import AT, AttentionTransfer, FitNet, attention_transfer_loss, fitnet_loss


def attention_loop(maps: Tensor, power: float) -> list[list[Tensor]]:
    """Normalised attention of each sample, position by position, of maps (B, C, H, W)."""
    result = []
    for sample in maps:
        energies = []
        for row in range(sample.shape[1]):
            for column in range(sample.shape[2]):
                total = sum(sample[c, row, column].abs() ** power for c in range(len(sample)))
                energies.append(total / len(sample))
        norm = sum(energy**2 for energy in energies) ** 0.5
        result.append([energy / norm for energy in energies])
    return result


def attention_transfer_loop(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    squares = [
        (a - b) ** 2
        for own, other in zip(attention_loop(student, power), attention_loop(teacher, power), strict=True)
        for a, b in zip(own, other, strict=True)
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("power", [1, 2, 3, 2.5])
def test_attention_transfer_is_the_formula(random, assert_same, power: float) -> None:
    teacher = random(2, 5, 3, 4)
    assert_same(
        lambda f: attention_transfer_loss(f, teacher, power=power),
        lambda f: attention_transfer_loop(f, teacher, power),
        random(2, 3, 3, 4),
    )


def test_attention_transfer_can_be_differentiated_twice(random) -> None:
    teacher, student = random(2, 3, 2, 2), random(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: attention_transfer_loss(f, teacher), student)
    assert torch.autograd.gradgradcheck(lambda f: attention_transfer_loss(f, teacher), student)


@pytest.mark.parametrize(("own", "other"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((6, 4), (3, 8))])
def test_attention_transfer_pools_the_larger(random, own: tuple[int, int], other: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *own), random(2, 6, *other)
    size = tuple(min(pair) for pair in zip(own, other, strict=True))
    expected = attention_transfer_loss(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size))
    torch.testing.assert_close(attention_transfer_loss(student, teacher), expected)


def test_tokens_are_transposed_maps(random) -> None:
    student, teacher = random(2, 9, 4), random(2, 9, 6)
    expected = attention_transfer_loss(
        student.transpose(1, 2).reshape(2, 4, 3, 3), teacher.transpose(1, 2).reshape(2, 6, 3, 3)
    )
    value = attention_transfer_loss(student, teacher, layout="channels_last")
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(attention_transfer_loss(student.mT, teacher.mT), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 100), st.integers(0, 10**6))
def test_attention_ignores_scale_sign_and_order_of_channels(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(batch, channels, 3, 3, generator=generator, dtype=torch.float64)
    same = (-scale * teacher[:, torch.randperm(channels, generator=generator)]).requires_grad_()
    value = attention_transfer_loss(same, teacher)
    assert value < 1e-24
    student = torch.randn(batch, channels, 3, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        attention_transfer_loss(student * scale, teacher), attention_transfer_loss(student, teacher)
    )


def test_a_dead_map_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for power in (1, 2):
        value = attention_transfer_loss(student, torch.rand(2, 3, 4, 4), power=power)
        assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e8, 1e15, 1e30])
def test_extreme_maps_have_finite_attention(scale: float) -> None:
    student = (torch.randn(2, 3, 4, 4) * scale).requires_grad_()
    value = attention_transfer_loss(student, torch.randn(2, 3, 4, 4) * scale)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_fitnet_is_the_mean_square(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)

    def loop(student: Tensor) -> Tensor:
        squares = [(a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten(), strict=True)]
        return sum(squares) / len(squares)

    assert_same(lambda f: fitnet_loss(f, teacher), loop, random(*shape))
    assert fitnet_loss(teacher, teacher) == 0


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(2, 3, 4, 4).requires_grad_(), random(2, 3, 4, 4).requires_grad_()
    (fitnet_loss(student, teacher) + attention_transfer_loss(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4, 4).bfloat16(), random(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [fitnet_loss(student, teacher), attention_transfer_loss(student, teacher)]
    wide = student.double(), teacher.double()
    for value, true in zip(values, [fitnet_loss(*wide), attention_transfer_loss(*wide)], strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("relu", [True, False])
def test_fitnet_learns_through_its_regressor(random, relu: bool) -> None:
    loss = FitNet(relu=relu)
    student, teacher = random(4, 3, 8, 8).float(), random(4, 5, 4, 4).float().relu()
    adapter = loss.adapter(tuple(student.shape), tuple(teacher.shape))
    optimizer = torch.optim.Adam(adapter.parameters(), 0.05)
    values = []
    for _ in range(30):
        value = loss(adapter(student), teacher, batch=None, progress=0.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    assert FitNet.spatial == "any"


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [
        ((2, 3, 8, 8), (2, 5, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 8, 8)),
        ((2, 3, 4, 4), (2, 5, 14, 14)),
        ((2, 3, 56, 56), (2, 5, 7, 7)),
        ((2, 3, 40), (2, 5, 10)),
        ((2, 3), (2, 5)),
    ],
)
def test_fitnet_takes_maps_of_any_sizes(random, student_shape, teacher_shape) -> None:
    loss = FitNet()
    adapter = loss.adapter(student_shape, teacher_shape)
    student, teacher = random(*student_shape).float(), random(*teacher_shape).float()
    assert loss(adapter(student), teacher, batch=None).isfinite()
    adapter.eval()
    assert loss(adapter(student[:1]), teacher[:1], batch=None).isfinite()


def test_attention_transfer_module_needs_no_adapter(random) -> None:
    loss = AttentionTransfer(power=3)
    student, teacher = random(2, 3, 4, 4), random(2, 5, 8, 8)
    assert AT is AttentionTransfer
    assert loss.adapter((2, 3, 4, 4), (2, 5, 8, 8)) is None
    assert torch.equal(loss(student, teacher, batch=None), attention_transfer_loss(student, teacher, power=3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fitnet_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "must have one shape"),
        (lambda: attention_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "needs two maps"),
        (lambda: attention_transfer_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4)), "needs two maps"),
        (
            lambda: attention_transfer_loss(torch.zeros(2, 9, 3), torch.zeros(2, 16, 3), layout="channels_last"),
            "9 and 16 tokens have no common grid",
        ),
        (
            lambda: attention_transfer_loss(torch.zeros(2, 9, 3), torch.zeros(2, 9, 3), layout="tokens"),  # type: ignore[arg-type]
            "layout must be",
        ),
        (lambda: AttentionTransfer(power=0), "power must be above 0"),
        (lambda: FitNet().adapter((2, 3), (2, 3, 4)), "two vectors or two maps"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
