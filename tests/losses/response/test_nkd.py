from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdlightning.losses import NKD, nkd_loss


def softmax_loop(values: list[Tensor], temperature: float) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def nkd_loop(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for own, other, label in zip(student, teacher, target.tolist(), strict=True):
        total = total - softmax_loop(list(other), 1.0)[label] * torch.log(softmax_loop(list(own), 1.0)[label])
        rest = [[row[c] for c in range(len(row)) if c != label] for row in (own, other)]
        q, p = (softmax_loop(values, temperature) for values in rest)
        for a, b in zip(p, q, strict=True):
            total = total - gamma * temperature**2 * a * torch.log(b)
    return total / len(student)


@pytest.mark.parametrize("options", [(1.5, 1.0), (3.5, 3.0), (0.0, 1.0)])
def test_it_is_the_formula(random, assert_same, options: tuple[float, float]) -> None:
    teacher, target = random(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    assert_same(
        lambda z: nkd_loss(z, teacher, target, gamma=options[0], temperature=options[1]),
        lambda z: nkd_loop(z, teacher, target, *options),
        random(6, 5),
    )


def test_first_and_second_derivatives_are_right(random) -> None:
    teacher, target, student = random(3, 4), torch.tensor([0, 3, 3]), random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nkd_loss(z, teacher, target), student)
    assert torch.autograd.gradgradcheck(lambda z: nkd_loss(z, teacher, target) ** 2, student)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 10**6))
def test_invariances(batch: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(classes, (batch,), generator=generator)
    options = {"temperature": temperature}
    value = nkd_loss(student, teacher, target, **options)
    assert value > 0
    shift = torch.randn(batch, 1, generator=generator, dtype=torch.float64) * 10
    torch.testing.assert_close(nkd_loss(student + shift, teacher - shift, target, **options), value)
    order = torch.randperm(classes, generator=generator)
    moved = nkd_loss(student[:, order], teacher[:, order], order.argsort()[target], **options)
    torch.testing.assert_close(moved, value)
    # Among the other classes the student cannot do better than the teacher's own distribution.
    alone = {"gamma": 1.0, "temperature": temperature}
    parts = [
        nkd_loss(z, teacher, target, **alone) - nkd_loss(z, teacher, target, gamma=0.0) for z in (student, teacher)
    ]
    assert parts[0] >= parts[1] - 1e-12


def test_two_classes_have_the_labels_part_alone(random, assert_same) -> None:
    teacher, target = random(4, 2), torch.tensor([0, 1, 1, 0])
    assert_same(
        lambda z: nkd_loss(z, teacher, target),
        lambda z: nkd_loop(z, teacher, target, 0.0, 1.0),
        random(4, 2),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 110.0, 1e4, 1e30])
@pytest.mark.parametrize("classes", [2, 4])
def test_values_and_gradients_stay_finite(dtype: torch.dtype, gap: float, classes: int) -> None:
    student = torch.zeros(3, classes, dtype=dtype)
    student[0, 0], student[1, 1], student[2, 0] = gap, gap, -gap
    teacher = student.roll(1, dims=1)
    student.requires_grad_()
    for target in (torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)):
        value = nkd_loss(student, teacher, target, temperature=3.0)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student, teacher, target = random(8, 9).to(dtype).requires_grad_(), random(8, 9).to(dtype), torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nkd_loss(student, teacher, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), nkd_loss(student.double(), teacher.double(), target), rtol=1e-5, atol=1e-6
    )
    assert torch.autograd.grad(value, student)[0].dtype == dtype


def test_the_module_passes_its_options_and_carries_the_papers_weights(random) -> None:
    student, teacher, target = random(4, 5).requires_grad_(), random(4, 5).requires_grad_(), torch.tensor([0, 1, 2, 3])
    value = NKD(gamma=3.5, temperature=3.0)(student, teacher, batch=SimpleNamespace(target=target), progress=0.5)
    assert torch.equal(value, nkd_loss(student, teacher, target, gamma=3.5, temperature=3.0))
    value.backward()
    assert teacher.grad is None
    assert NKD.default_weights == {"task": 1.0, "nkd": 1.0}
    assert (NKD().gamma, NKD().temperature, NKD().name) == (1.5, 1.0, "nkd")


def test_one_sample_is_enough(random, assert_same) -> None:
    teacher, target = random(1, 3), torch.tensor([1])
    assert_same(lambda z: nkd_loss(z, teacher, target), lambda z: nkd_loop(z, teacher, target, 1.5, 1.0), random(1, 3))


ZEROS = torch.zeros(2, 3)
MIXED = SimpleNamespace(target=torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nkd_loss(ZEROS, ZEROS, MIXED.target), r"NKD needs hard labels .* \(2, 3\): leave mixup out"),
        (lambda: NKD()(ZEROS, ZEROS, batch=MIXED), r"NKD needs hard labels .* \(2, 3\): leave mixup out"),
        (lambda: NKD()(ZEROS, ZEROS, batch=SimpleNamespace(target=None)), "NKD needs labels.* has none"),
        (lambda: nkd_loss(ZEROS, ZEROS, torch.tensor([0])), "NKD got 1 labels for 2 samples"),
        (lambda: nkd_loss(ZEROS, torch.zeros(2, 4), torch.tensor([0, 1])), "one shape"),
        (lambda: nkd_loss(ZEROS[:, :1], ZEROS[:, :1], torch.tensor([0, 0])), "NKD needs at least two classes"),
        (lambda: nkd_loss(ZEROS, ZEROS, torch.tensor([0, 1]), temperature=0.0), "temperature must be above 0"),
        (lambda: NKD(temperature=-1.0), "temperature must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
