from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import MGD, mgd_loss


def mgd_loop(generated: Tensor, teacher: Tensor) -> Tensor:
    squares = [(a - b) ** 2 for a, b in zip(generated.flatten(), teacher.flatten(), strict=True)]
    return sum(squares) / len(generated)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (3, 2, 2, 3)])
def test_the_function_is_a_sum_over_the_elements_of_a_sample(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)
    assert_same(lambda f: mgd_loss(f, teacher), lambda f: mgd_loop(f, teacher), random(*shape))
    assert mgd_loss(teacher, teacher) == 0


def built(shape: tuple[int, ...], **options: object) -> MGD:
    torch.manual_seed(3)
    loss = MGD(**options)  # type: ignore[arg-type]
    loss.build([shape], [shape])
    return loss


def convolution(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3×3 convolution with zero padding, element by element."""
    batch, _, height, width = maps.shape
    rows = []
    for sample in maps:
        for out in range(len(weight)):
            for row in range(height):
                for column in range(width):
                    total = bias[out]
                    for i in range(3):
                        for j in range(3):
                            y, x = row + i - 1, column + j - 1
                            if 0 <= y < height and 0 <= x < width:
                                total = total + (weight[out, :, i, j] * sample[:, y, x]).sum()
                    rows.append(total)
    return torch.stack(rows).reshape(batch, len(weight), height, width)


@pytest.mark.parametrize("masks", ["channels", "positions"])
def test_the_module_masks_and_generates(random, assert_same, masks: str) -> None:
    loss = built((2, 4, 3, 2), masks=masks, mask_ratio=0.4).double()
    student, teacher = random(2, 4, 3, 2), random(2, 4, 3, 2)
    shape = (2, 4, 1, 1) if masks == "channels" else (2, 1, 3, 2)
    torch.manual_seed(11)
    kept = (torch.rand(shape) >= 0.4).double()
    assert 0 < kept.sum() < kept.numel()
    first, _, second = loss.generator

    def seeded(features: Tensor) -> Tensor:
        torch.manual_seed(11)
        return loss(features, teacher, batch=None)

    def loop(features: Tensor) -> Tensor:
        hidden = convolution(features * kept, first.weight, first.bias).clamp(min=0)
        return mgd_loop(convolution(hidden, second.weight, second.bias), teacher)

    assert_same(seeded, loop, student)
    student.requires_grad_()
    gradient = torch.autograd.grad(seeded(student), student)[0]
    assert torch.equal(gradient != 0, kept.bool().expand_as(gradient))


def test_the_share_of_masked_channels_is_the_option(random) -> None:
    loss = built((64, 100), mask_ratio=0.15)
    features = torch.ones(64, 100)
    share = (loss._masked(features) == 0).float().mean()
    assert abs(share - 0.15) < 0.02
    assert torch.equal(built((64, 100), mask_ratio=0.0)._masked(features), features)


def test_masks_come_from_the_seed_and_change_from_step_to_step(random) -> None:
    loss = built((4, 6, 4, 4), mask_ratio=0.5)
    student, teacher = random(4, 6, 4, 4).float(), random(4, 6, 4, 4).float()
    torch.manual_seed(5)
    first, second = loss(student, teacher), loss(student, teacher)
    torch.manual_seed(5)
    assert torch.equal(loss(student, teacher), first)
    assert first != second


def test_nothing_is_masked_in_evaluation(random) -> None:
    loss = built((4, 6, 4, 4), mask_ratio=0.9).eval()
    student, teacher = random(4, 6, 4, 4).float(), random(4, 6, 4, 4).float()
    before = torch.get_rng_state()
    assert torch.equal(loss(student, teacher), mgd_loss(loss.generator(student), teacher))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("own", "other"),
    [((2, 5), (2, 5)), ((2, 5, 6), (2, 5, 3)), ((2, 5, 4, 4), (2, 5, 8, 8)), ((1, 5, 4, 4), (1, 5, 4, 4))],
)
def test_every_kind_of_feature_is_taken(random, own: tuple[int, ...], other: tuple[int, ...]) -> None:
    loss = MGD()
    loss.build([own], [other])
    student, teacher = random(*own).float().requires_grad_(), random(*other).float().requires_grad_()
    value = loss(student, teacher, batch=None)
    assert value.isfinite()
    value.backward()
    assert teacher.grad is None
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_the_generator_is_trained_and_saved(random) -> None:
    loss = built((4, 6, 4, 4), mask_ratio=0.15)
    student, teacher = random(4, 6, 4, 4).float(), random(4, 6, 4, 4).float()
    assert set(loss.state_dict()) == {f"generator.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    optimizer = torch.optim.Adam(loss.parameters(), 0.02)
    values = []
    for _ in range(25):
        value = loss(student, teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.9 * sum(values[:3])
    other = built((4, 6, 4, 4)).eval()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(student, teacher), loss.eval()(student, teacher))


def test_half_precision_is_summed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4, 4).bfloat16(), random(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mgd_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), F.mse_loss(student.double(), teacher.double()) * 48, rtol=1e-5, atol=0)


def test_defaults_are_those_of_the_papers_classifiers() -> None:
    loss = MGD()
    assert (loss.mask_ratio, loss.masks) == (0.15, "channels")
    assert MGD.default_weights == {"mgd": 7e-5}
    assert loss.adapter((2, 3, 4, 4), (2, 5, 4, 4)).weight.shape == (5, 3, 1, 1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mgd_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "must have one shape"),
        (lambda: MGD(mask_ratio=1.0), r"mask_ratio must lie between 0 and 1 \(1 excluded\)"),
        (lambda: MGD(masks="pixels"), "masks must be channels or positions"),  # type: ignore[arg-type]
        (lambda: built((2, 3), masks="positions"), "vectors have no positions"),
        (lambda: built((2, 3, 4, 4, 4)), "MGD needs vectors or maps"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
