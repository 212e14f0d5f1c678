from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import DIST, dist_loss


def softmax_loop(logits: Tensor, temperature: float) -> list[list[Tensor]]:
    rows = []
    for row in logits:
        powers = [torch.exp(z / temperature) for z in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    centred_a, centred_b = ([v - sum(values) / len(values) for v in values] for values in (a, b))
    products = sum(x * y for x, y in zip(centred_a, centred_b, strict=True))
    norms = [sum(v * v for v in values) ** 0.5 for values in (centred_a, centred_b)]
    return products / (norms[0] * norms[1] + 1e-8)


def dist_loop(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    own, other = softmax_loop(student, temperature), softmax_loop(teacher, temperature)
    rows = [correlation(a, b) for a, b in zip(own, other, strict=True)]
    columns = [
        correlation(list(a), list(b)) for a, b in zip(zip(*own, strict=True), zip(*other, strict=True), strict=True)
    ]
    between_classes, between_samples = 1 - sum(rows) / len(rows), 1 - sum(columns) / len(columns)
    return (beta * between_classes + gamma * between_samples) * temperature**2


@pytest.mark.parametrize("options", [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)])
def test_it_is_the_formula(random, assert_same, options: tuple[float, float, float]) -> None:
    beta, gamma, temperature = options
    teacher = random(5, 4)
    assert_same(
        lambda z: dist_loss(z, teacher, beta=beta, gamma=gamma, temperature=temperature),
        lambda z: dist_loop(z, teacher, *options),
        random(5, 4),
    )


def test_derivatives_are_right(random) -> None:
    teacher = random(4, 3)
    assert torch.autograd.gradcheck(lambda z: dist_loss(z, teacher, temperature=2.0), random(4, 3).requires_grad_())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.sampled_from([1.0, 4.0]), st.integers(0, 10**6))
def test_invariances(batch: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    options = {"temperature": temperature}
    value = dist_loss(student, teacher, **options)
    assert 0 <= value <= 4 * temperature**2
    y = (teacher / temperature).softmax(1)
    squares = [(y - y.mean(dim, keepdim=True)).square().sum(dim) for dim in (1, 0)]
    left = sum((1e-8 / (square + 1e-8)).mean() for square in squares) * temperature**2
    torch.testing.assert_close(dist_loss(teacher, teacher, **options), left, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(dist_loss(teacher, student, **options), value)
    shift = torch.randn(batch, 1, generator=generator, dtype=torch.float64) * 10
    torch.testing.assert_close(dist_loss(student + shift, teacher, **options), value)
    order, place = torch.randperm(classes, generator=generator), torch.randperm(batch, generator=generator)
    torch.testing.assert_close(dist_loss(student[place][:, order], teacher[place][:, order], **options), value)
    parts = dist_loss(student, teacher, gamma=0, **options) + dist_loss(student, teacher, beta=0, **options)
    torch.testing.assert_close(parts, value)


def test_probabilities_that_are_in_step_are_at_no_distance(random) -> None:
    """Pearson's correlation does not see the distances between probabilities, only their pattern."""
    teacher = random(6, 4).softmax(1)
    student = (teacher / 2 + 0.125).log()  # an affine map of each row, and of each column
    assert abs(dist_loss(student, teacher.log())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 110.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float, temperature: float) -> None:
    student = torch.zeros(3, 4, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for other in (teacher, torch.zeros_like(teacher), student.detach()):
        value = dist_loss(student, other, temperature=temperature)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_one_sample_has_no_relation_to_others(random) -> None:
    student, teacher = random(1, 4).requires_grad_(), random(1, 4)
    value = dist_loss(student, teacher, gamma=3.0, temperature=2.0)
    alone = dist_loss(student, teacher, gamma=0.0, temperature=2.0)
    torch.testing.assert_close(value, alone + 3.0 * 4)
    gradients = [torch.autograd.grad(v, student)[0] for v in (value, alone)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher = random(8, 9).to(dtype), random(8, 9).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = dist_loss(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), dist_loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-6)


def test_the_module_passes_its_options_and_carries_the_papers_weights(random) -> None:
    student, teacher = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()
    loss = DIST(beta=0.5, gamma=2.0, temperature=4.0)
    soft = SimpleNamespace(target=torch.full((4, 5), 0.2))  # mixup's targets are not read
    value = loss(student, teacher, batch=soft, progress=0.5)
    assert torch.equal(value, dist_loss(student, teacher, beta=0.5, gamma=2.0, temperature=4.0))
    value.backward()
    assert teacher.grad is None
    assert (loss.name, loss.compares_samples) == ("dist", True)
    assert DIST.default_weights == {"task": 1.0, "dist": 2.0}
    assert (DIST().beta, DIST().gamma, DIST().temperature) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dist_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: dist_loss(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)), r"\(batch, classes\)"),
        (lambda: dist_loss(torch.zeros(2, 1), torch.zeros(2, 1)), "DIST needs at least two classes"),
        (lambda: dist_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0), "temperature must be above 0"),
        (lambda: DIST(temperature=-1.0), "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
