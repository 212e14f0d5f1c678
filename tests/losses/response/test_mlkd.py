from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import MLKD, batch_correlation_loss, class_correlation_loss
from kdlightning.losses.response.correlations import correlation_gaps


def softmax_loop(row: Tensor, temperature: float) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def standardized_loop(row: Tensor) -> Tensor:
    mean = sum(row) / len(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return torch.stack([(value - mean) / (1e-7 + deviation) for value in row])


def kd_loop(student: Tensor, teacher: Tensor, temperature: float, weights: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other, weight in zip(student, teacher, weights, strict=True):
        for q, p in zip(softmax_loop(own, temperature), softmax_loop(other, temperature), strict=True):
            total = total + weight * p * (torch.log(p) - torch.log(q))
    return total * temperature**2 / len(student)


def gap_loop(student: list, teacher: list, weights: list[float]) -> Tensor:
    """Vectors are rows; the squared differences of all inner products, over their number."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(student)):
        for j in range(len(student)):
            own = sum(a * b for a, b in zip(student[i], student[j], strict=True))
            other = sum(a * b for a, b in zip(teacher[i], teacher[j], strict=True))
            total = total + weights[i] * (own - other) ** 2
    return total / len(student)


def batch_loop(student: Tensor, teacher: Tensor, temperature: float, weights: list[float] | None = None) -> Tensor:
    own, other = ([softmax_loop(row, temperature) for row in z] for z in (student, teacher))
    return gap_loop(own, other, weights or [1.0] * len(own))


def class_loop(student: Tensor, teacher: Tensor, temperature: float, weights: list[float] | None = None) -> Tensor:
    own, other = (list(zip(*[softmax_loop(row, temperature) for row in z], strict=True)) for z in (student, teacher))
    return gap_loop(own, other, weights or [1.0] * len(own))


def mlkd_loop(student, teacher, temperatures, *, masked=True, strong=True, standardize=False) -> Tensor:
    sure = [softmax_loop(row, 1.0) for row in teacher[0]]
    confidence = [float(max(row)) for row in sure]
    by_class = [float(sum(row[c] for row in sure)) for c in range(len(sure[0]))]
    weights = [[1.0] * len(values) for values in (confidence, by_class)]
    unsure = [[float(value <= statistics.median(values)) for value in values] for values in (confidence, by_class)]
    total = torch.zeros((), dtype=torch.float64)
    for number, (own, other) in enumerate(zip(student, teacher, strict=True)):
        samples, classes = unsure if masked and number == 0 else weights
        for temperature in temperatures:
            shown = [torch.stack([standardized_loop(row) for row in z]) if standardize else z for z in (own, other)]
            total = total + kd_loop(*shown, temperature, samples)
            if number == 0 or strong:
                total = total + class_loop(own, other, temperature, classes)
                total = total + batch_loop(own, other, temperature, samples)
    return total


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("loss", "loop"),
    [(class_correlation_loss, class_loop), (batch_correlation_loss, batch_loop)],
    ids=["class", "batch"],
)
def test_correlations_are_the_formula(random, assert_same, temperature: float, loss, loop) -> None:
    teacher = random(4, 6)
    assert_same(
        lambda z: loss(z, teacher, temperature=temperature), lambda z: loop(z, teacher, temperature), random(4, 6)
    )


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, {}),
        ({"unsure": 1.0}, {"masked": False}),
        ({"strong_correlations": False}, {"strong": False}),
        ({"standardize": True}, {"standardize": True}),
    ],
)
@pytest.mark.parametrize("view", [0, 1])
def test_mlkd_is_the_formula(random, assert_same, options: dict, known: dict, view: int) -> None:
    """Five samples and six classes: medians of an odd and of an even number."""
    loss = MLKD(temperatures=(2.0, 5.0), **options)
    teacher, fixed = [random(5, 6), random(5, 6)], random(5, 6)

    def views(z: Tensor) -> list[Tensor]:
        return [z, fixed] if view == 0 else [fixed, z]

    assert_same(
        lambda z: loss(views(z), teacher, batch=None),
        lambda z: mlkd_loop(views(z), teacher, (2.0, 5.0), **known),
        random(5, 6),
    )


def test_gradients_can_be_differentiated_again(random) -> None:
    teacher, student = random(2, 3, 4), random(2, 3, 4).requires_grad_()
    weights = {"classes": torch.rand(2, 4).double(), "samples": torch.rand(2, 3).double()}
    for options in (weights, {"classes": True}, {"samples": True}):
        assert torch.autograd.gradcheck(lambda z, o=options: correlation_gaps(z, teacher, (1.0, 3.0), **o), student)
        assert torch.autograd.gradgradcheck(lambda z, o=options: correlation_gaps(z, teacher, (1.0, 3.0), **o), student)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 8), st.sampled_from([1.0, 4.0]), st.integers(0, 10**6))
def test_levels_vanish_at_equality_and_know_no_order(batch: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    rows, columns = torch.randperm(batch, generator=generator), torch.randperm(classes, generator=generator)
    shift = torch.randn(batch, 1, generator=generator, dtype=torch.float64) * 10
    whole = MLKD(temperatures=(temperature,), unsure=1.0)
    for loss in (
        lambda s, t: class_correlation_loss(s, t, temperature=temperature),
        lambda s, t: batch_correlation_loss(s, t, temperature=temperature),
        lambda s, t: whole([s, s], [t, t]),
    ):
        assert float(loss(teacher, teacher)) < 1e-12
        value = loss(student, teacher)
        assert value > 0
        torch.testing.assert_close(loss(student[rows][:, columns], teacher[rows][:, columns]), value)
        torch.testing.assert_close(loss(student + shift, teacher), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [110.0, 1e4, 1e30])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float) -> None:
    student = torch.zeros(3, 4, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for value in (
        class_correlation_loss(student, teacher, temperature=1.0),
        batch_correlation_loss(student, teacher, temperature=1.0),
        MLKD()([student, -student], [teacher, teacher]),
        MLKD(standardize=gap < 1e6)([student, student], [teacher * 0, teacher]),
    ):
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_constant_logits_can_be_standardized() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 3.0]] * 2)
    value = MLKD(standardize=True)([student, student], [teacher, teacher])
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_one_sample_and_two_classes_are_enough(random) -> None:
    student, teacher = random(1, 2).requires_grad_(), random(1, 2)
    loss = MLKD()([student, student], [teacher, teacher])
    assert loss > 0
    torch.testing.assert_close(loss, mlkd_loop([student] * 2, [teacher] * 2, MLKD().temperatures))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher = ([random(8, 9).to(dtype) for _ in range(2)] for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [
            MLKD()(student, teacher),
            class_correlation_loss(student[0], teacher[0]),
            batch_correlation_loss(student[0], teacher[0]),
        ]
    student, teacher = ([z.double() for z in logits] for logits in (student, teacher))
    true = [
        MLKD()(student, teacher),
        class_correlation_loss(student[0], teacher[0]),
        batch_correlation_loss(student[0], teacher[0]),
    ]
    assert {value.dtype for value in values} == {torch.float32}
    torch.testing.assert_close(torch.stack(values).double(), torch.stack(true), rtol=1e-5, atol=1e-7)


def test_the_teacher_gets_no_gradient(random) -> None:
    student, teacher = random(3, 4).requires_grad_(), random(3, 4).requires_grad_()
    (MLKD()([student, student], [teacher, teacher]) + class_correlation_loss(student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_the_module_says_what_it_reads() -> None:
    assert MLKD.default_weights == {"task": 0.2, "mlkd": 0.9}
    assert (MLKD.views, MLKD.strong_views, MLKD.compares_samples, MLKD.compares) == (2, True, True, "classes")
    assert (MLKD().name, MLKD().temperatures) == ("mlkd", (2.0, 3.0, 4.0, 5.0, 6.0))
    assert MLKD(temperatures=[3]).temperatures == (3,)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: class_correlation_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: batch_correlation_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0), "must be above 0"),
        (lambda: class_correlation_loss(torch.zeros(2, 1), torch.zeros(2, 1)), "at least two classes"),
        (lambda: MLKD(temperatures=()), "temperatures is empty"),
        (lambda: MLKD(temperatures=(4.0, -1.0)), "temperature must be above 0, not -1"),
        (lambda: MLKD(unsure=1.5), "unsure must lie between 0 and 1"),
        (lambda: MLKD()(torch.zeros(2, 3), torch.zeros(2, 3)), "reads two views: give lists"),
        (lambda: MLKD()([torch.zeros(2, 3)], [torch.zeros(2, 3)]), "reads two views: give lists"),
        (lambda: MLKD()([torch.zeros(2, 3)] * 2, [torch.zeros(2, 4)] * 2), "one shape"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
