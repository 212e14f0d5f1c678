from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning.losses import OFD, LossContext, ofd_loss, ofd_margin
from kdlightning.losses.feature.norm_of_tap import norm_of_tap


def loop(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Margin ReLU and partial distance, element by element, of (B, C, L)."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        for channel, m in enumerate(margin):
            for s, t in zip(own[channel], other[channel], strict=True):
                target = max(t, m)
                if s > target or target > 0:
                    total = total + (s - target) ** 2
    return total / len(student)


def margins(random, channels: int) -> Tensor:
    return -random(channels).abs()


def test_it_is_the_formula(random, assert_same) -> None:
    teacher, margin = random(2, 3, 6), margins(random, 3)
    assert_same(lambda f: ofd_loss(f, teacher, margin), lambda f: loop(f, teacher, margin), random(2, 3, 6))
    maps = random(2, 3, 2, 3)
    whole = loop(maps.flatten(2), teacher, margin)
    torch.testing.assert_close(ofd_loss(maps, teacher.view(2, 3, 2, 3), margin), whole)
    vectors = random(4, 3)
    expected = loop(vectors[..., None], teacher.flatten(0, 1)[:4, :3, None], margin)
    torch.testing.assert_close(ofd_loss(vectors, teacher.flatten(0, 1)[:4, :3], margin), expected)


def test_tokens_are_transposed_maps(random) -> None:
    student, teacher, margin = random(2, 9, 4), random(2, 9, 4), margins(random, 4)
    value = ofd_loss(student, teacher, margin, layout="channels_last")
    torch.testing.assert_close(value, ofd_loss(student.mT, teacher.mT, margin))


def test_first_and_second_derivatives(random) -> None:
    teacher, margin = random(2, 3, 4), margins(random, 3)
    student = random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ofd_loss(f, teacher, margin), (student,))
    assert torch.autograd.gradgradcheck(lambda f: ofd_loss(f, teacher, margin), (student,))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 100), st.integers(0, 10**6))
def test_what_costs_nothing(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, batch, channels, 3, generator=generator, dtype=torch.float64)
    margin = -torch.rand(channels, generator=generator, dtype=torch.float64)
    value = ofd_loss(student, teacher, margin)
    assert ofd_loss(torch.maximum(teacher, margin.view(-1, 1)), teacher, margin) == 0
    below = torch.where(teacher > 0, teacher, teacher.clamp(min=-9) - student.abs())
    assert ofd_loss(torch.minimum(below, torch.where(teacher > 0, math.inf, margin.view(-1, 1))), teacher, margin) == 0
    torch.testing.assert_close(ofd_loss(scale * student, scale * teacher, scale * margin), scale**2 * value)
    # Far below its margin the teacher does not count.
    torch.testing.assert_close(ofd_loss(student, teacher - 9 * (teacher < margin.view(-1, 1)), margin), value)
    order = torch.randperm(channels, generator=generator)
    torch.testing.assert_close(ofd_loss(student[:, order], teacher[:, order], margin[order]), value)


def test_the_teacher_is_only_read(random) -> None:
    student, teacher = random(2, 3).requires_grad_(), random(2, 3).requires_grad_()
    before = teacher.detach().clone()
    ofd_loss(student, teacher, margins(random, 3)).backward()
    assert teacher.grad is None
    assert torch.equal(teacher, before)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e15])
def test_values_of_any_size(random, scale: float) -> None:
    student = (random(2, 3, 4) * scale).float().requires_grad_()
    value = ofd_loss(student, (random(2, 3, 4) * scale).float(), margins(random, 3).float())
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher, margin = random(2, 3, 4).bfloat16(), random(2, 3, 4).bfloat16(), margins(random, 3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ofd_loss(student, teacher, margin)
    assert value.dtype == torch.float32
    expected = ofd_loss(student.double(), teacher.double(), margin.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


def norm(weight: list[float], bias: list[float]) -> nn.Module:
    made = nn.BatchNorm1d(len(weight)).double()
    made.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)}, strict=False)
    return made


def test_the_margin_is_the_mean_of_the_negative_responses() -> None:
    weight, bias = [1.0, -2.0, 0.5, 1.0, 0.3], [0.0, 1.5, -1.0, 3.0, -40.0]
    for value, s, m in zip(ofd_margin(norm(weight, bias)), weight, bias, strict=True):
        # The mean under the normal distribution, by a fine sum over what lies below zero.
        points = torch.linspace(m - 12 * abs(s), min(0.0, m + 12 * abs(s)), 200_001, dtype=torch.float64)
        density = (-(((points - m) / s) ** 2) / 2).exp()
        expected = torch.trapezoid(points * density, points) / torch.trapezoid(density, points)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [(1.0, 3.2, -3.0), (-0.5, 2.0, -1.5), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, -2.0, -2.0), (1e-30, -1.0, -1.0)],
)
def test_margins_of_channels_that_hardly_ever_respond_negatively(weight: float, bias: float, expected: float) -> None:
    assert ofd_margin(norm([weight], [bias])).tolist() == pytest.approx([expected])


def test_a_batch_norm_without_weights_is_standard_normal() -> None:
    margin = ofd_margin(nn.BatchNorm2d(3, affine=False))
    assert margin.dtype == torch.float32
    assert margin.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 3)
    assert not ofd_margin(nn.BatchNorm2d(3)).requires_grad


def teacher_of(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Sequential(*layers), last=nn.Linear(4, 2)))


def conv() -> nn.Module:
    return nn.Conv1d(4, 4, 3, padding=1)


def bound(loss: OFD, teacher: nn.Module | None, tap: str) -> OFD:
    loss.bind(LossContext(nn.Identity(), teacher, ("a",), (tap,)))
    return loss


@pytest.mark.parametrize("tap", ["first.1", "first.2:input", "first.3:input", "first.1:output"])
def test_the_batch_norm_behind_a_tap(tap: str) -> None:
    teacher = teacher_of(conv(), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())
    assert norm_of_tap(teacher, tap) is teacher[0][1]


def test_the_batch_norm_at_the_end_of_a_chain() -> None:
    chain = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm1d(4)), nn.Identity())
    teacher = teacher_of(chain, nn.ReLU())
    assert norm_of_tap(teacher, "first.0") is chain[0][1]
    assert norm_of_tap(teacher, "first.1:input") is chain[0][1]


class BatchNormAct(nn.BatchNorm2d):
    """As timm has it: a BatchNorm that applies what it holds."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__(4)
        self.drop = nn.Identity()
        self.act = act


def test_a_batch_norm_that_holds_its_activation_is_read_before_it() -> None:
    plain, active = BatchNormAct(nn.Identity()), BatchNormAct(nn.ReLU())
    teacher = teacher_of(plain, active)
    assert norm_of_tap(teacher, "first.0") is plain
    assert norm_of_tap(teacher, "first.1.act:input") is active
    with pytest.raises(ValueError, match="tap first.1.act:input"):
        norm_of_tap(teacher, "first.1")


@pytest.mark.parametrize(
    ("tap", "sentence"),
    [
        ("first", "tap 'first' is not the output of a BatchNorm: tap first.3, or set margin: running"),
        ("first.0", "tap 'first.0' is not the output of a BatchNorm: tap first.1"),
        ("first.2", "tap 'first.2' is not the output of a BatchNorm: tap first.3"),
        ("first.3:input", "tap 'first.3:input' is not the output of a BatchNorm: tap first.3"),
        ("last:input", "'last:input' is not the output of a BatchNorm: tap one, or set margin: running"),
        ("intermediates.2", "'intermediates.2' is no module, .*set margin: running"),
    ],
)
def test_a_tap_that_no_batch_norm_makes_names_the_nearest(tap: str, sentence: str) -> None:
    teacher = teacher_of(conv(), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU())
    with pytest.raises(ValueError, match=sentence):
        bound(OFD(), teacher, tap)


def test_the_module_takes_the_margin_of_its_teacher(random) -> None:
    teacher = teacher_of(conv(), nn.BatchNorm1d(4), nn.ReLU())
    nn.init.normal_(teacher[0][1].bias)
    loss = bound(OFD(), teacher, "first.1")
    loss.build([(2, 4, 6)], [(2, 4, 6)])
    student, features = random(2, 4, 6).float(), random(2, 4, 6).float()
    torch.testing.assert_close(loss(student, features), ofd_loss(student, features, ofd_margin(teacher[0][1])))
    assert list(loss.state_dict()) == ["margins"]
    assert loss.default_weights == {"task": 1.0, "ofd": 0.001}


def test_a_running_margin_is_the_mean_of_what_was_negative(random) -> None:
    loss = bound(OFD(margin="running"), None, "anything")
    loss.build([(2, 3, 5)], [(2, 3, 5)])
    seen = [random(2, 3, 5).float() for _ in range(3)]
    seen[0][:, 1], seen[1][:, 1], seen[2][:, 1] = 1, 0, 2  # a channel that is never negative
    student = random(2, 3, 5).float()
    values = [loss(student, features) for features in seen]
    everything = torch.cat(seen, 2).transpose(0, 1).flatten(1)
    margin = torch.stack([row[row < 0].mean() if (row < 0).any() else torch.zeros(()) for row in everything])
    torch.testing.assert_close(values[-1], ofd_loss(student, seen[-1], margin))
    state = loss.state_dict()
    loss.eval()(student, seen[0] - 5)
    assert sorted(state) == ["counts", "negatives"]
    assert torch.equal(loss.state_dict()["negatives"], state["negatives"])


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_the_connector_is_a_convolution_and_a_batch_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    wide = (shape[0], 400, *shape[2:])
    connector = OFD().adapter(shape, wide)
    weight, bias = connector[0].weight, connector[0].bias
    assert bias is None
    assert weight.flatten(1).shape == (400, 3)
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.1)
    answer = connector(torch.randn(shape) * 9)
    assert answer.shape == wide
    assert answer.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-5
    answer.square().sum().backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
    connector.eval()
    assert connector(torch.randn(1, *shape[1:])).isfinite().all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ofd_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3)), "must have one shape"),
        (lambda: ofd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)), r"margin must have shape \(3,\)"),
        (lambda: ofd_margin(nn.LayerNorm(3)), "of a BatchNorm, not of a LayerNorm"),
        (lambda: OFD(margin="mean"), "margin must be batch_norm or running"),
        (lambda: OFD().adapter((2, 3), (2, 3, 4)), "two vectors or two maps"),
        (lambda: OFD().build([(2, 3)], [(2, 3)]), "margin is not known"),
        (lambda: bound(OFD(), None, "a"), "there is none: set margin: running"),
        (
            lambda: bound(OFD(), teacher_of(nn.BatchNorm1d(4)), "first.0").build([(2, 3)], [(2, 3)]),
            "BatchNorm has 4 channels and the tap 3",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
