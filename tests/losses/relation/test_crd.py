from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning.losses import CRD, LossContext
from kdlightning.losses.relation.noise_contrast import Rows, noise_contrast

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def made(labels: Tensor | None = LABELS, samples: int = 10, **options: Any) -> CRD:
    torch.manual_seed(3)
    loss = CRD(**{"dimensions": 4, "negatives": 5, **options})
    loss.bind(LossContext(nn.Identity(), nn.Identity(), samples=samples, labels=labels))
    loss.build([(2, 3)], [(2, 6)])
    return loss.double()


def unit(row: Tensor) -> Tensor:
    return row / (row**2).sum() ** 0.5


def contrast_loop(vectors: Tensor, bank: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    samples, count = len(bank), chosen.shape[1] - 1
    powers = [
        [torch.exp((bank[j] * v).sum() / temperature) for j in row] for v, row in zip(vectors, chosen, strict=True)
    ]
    normalizer = (sum(sum(row) for row in powers) / (len(powers) * len(powers[0])) * samples).detach()
    total = torch.zeros((), dtype=torch.float64)
    for row in powers:
        noise = count / samples
        p = row[0] / normalizer
        total = total + torch.log(p / (p + noise + 1e-7))
        for power in row[1:]:
            total = total + torch.log(noise / (power / normalizer + noise + 1e-7))
    return -total / len(vectors)


def negatives_of(loss: CRD, order: Tensor, index: Tensor) -> Tensor:
    """The first K samples of other classes in an order, one by one."""
    rows = []
    for own in index.tolist():
        others = [place for place in order.tolist() if LABELS[place] != LABELS[own]]
        rows.append([own, *others[: loss.count]])
    return torch.tensor(rows)


def test_crd_is_the_formula(random, assert_same) -> None:
    loss, teacher, index = made(temperature=0.5), random(3, 6), torch.tensor([4, 0, 8])
    banks = loss.student_bank.clone(), loss.teacher_bank.clone()

    def ours(student: Tensor) -> Tensor:
        loss._settled = False
        loss.student_bank.copy_(banks[0])
        loss.teacher_bank.copy_(banks[1])
        torch.manual_seed(5)
        return loss(student, teacher, batch=SimpleNamespace(index=index))

    def oracle(student: Tensor) -> Tensor:
        torch.manual_seed(5)
        chosen = negatives_of(loss, torch.randperm(10), index)
        own = torch.stack([unit(loss.student_embedding.weight @ row + loss.student_embedding.bias) for row in student])
        other = torch.stack(
            [unit(loss.teacher_embedding.weight @ row + loss.teacher_embedding.bias) for row in teacher]
        )
        first = contrast_loop(own, banks[1], chosen, 0.5)
        return first + contrast_loop(other, banks[0], chosen, 0.5)

    assert_same(ours, oracle, random(3, 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_negatives_are_k_samples_of_other_classes(
    samples: int, count: int, classes: int, known: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (samples,), generator=generator)
    labels[:2] = torch.tensor([-1, 0])
    loss = made(labels if known else None, samples, negatives=count)
    order, index = loss.order(), torch.randint(samples, (4,), generator=generator)
    left_out = loss.left_out(order, index)
    assert len(set(order.tolist())) == len(order)
    for own, row in zip(index.tolist(), left_out, strict=True):
        taken = order[~row].tolist()
        assert len(taken) == loss.count <= count
        assert own not in taken
        if known and labels[own] >= 0:
            assert all(labels[place] != labels[own] for place in taken)
        allowed = [
            p for p in order.tolist() if p != own and not (known and labels[own] >= 0 and labels[p] == labels[own])
        ]
        assert taken == allowed[: loss.count]


def test_each_other_sample_is_drawn_as_often() -> None:
    loss, index = made(negatives=3), torch.arange(10)
    seen = torch.zeros(10, 10)
    for _ in range(600):
        order = loss.order()
        for row, left_out in zip(seen, loss.left_out(order, index), strict=True):
            row[order[~left_out]] += 1
    for own in range(10):
        others = seen[own][LABELS[own] != LABELS]
        assert not seen[own][LABELS[own] == LABELS].any()
        assert (others / 600 - 3 / len(others)).abs().max() < 0.1


def test_k_is_capped_by_the_smallest_rest() -> None:
    assert made(negatives=1000).count == 6  # ten samples, four of the largest class
    assert made(None, negatives=1000).count == 9


def test_rows_move_with_the_first_vector_of_a_sample_and_the_normalizer_stays(random) -> None:
    loss, index = made(momentum=0.25), torch.tensor([1, 7, 1])
    before = loss.student_bank.clone(), loss.teacher_bank.clone()
    batch = SimpleNamespace(index=index)
    student, teacher = random(3, 3), random(3, 6)
    loss(student, teacher, batch=batch).backward()
    normalizers = loss.log_normalizers.clone()
    assert loss.settled
    for bank, old, vectors in zip(
        (loss.student_bank, loss.teacher_bank), before, loss.embedded(student, teacher), strict=True
    ):
        for row, place in enumerate((1, 7)):
            torch.testing.assert_close(bank[place], unit(0.25 * old[place] + 0.75 * vectors[row].detach()))
        untouched = [place for place in range(10) if place not in (1, 7)]
        assert torch.equal(bank[untouched], old[untouched])
    loss(random(3, 3), random(3, 6), batch=batch)
    assert torch.equal(loss.log_normalizers, normalizers)
    loss.eval()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(random(3, 3), random(3, 6), batch=batch)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_a_loaded_loss_goes_on_with_its_normalizer_and_banks(random) -> None:
    first, batch = made(), SimpleNamespace(index=torch.arange(3))
    first(random(3, 3), random(3, 6), batch=batch)
    second = made().eval()
    second.load_state_dict(first.state_dict())
    student, teacher = random(3, 3), random(3, 6)
    values = []
    for loss in (first.eval(), second):
        torch.manual_seed(1)
        values.append(loss(student, teacher, batch=batch))
    assert torch.equal(*values)


def test_gradient_is_the_difference_quotient(random) -> None:
    rows = Rows(random(3, 4), random(6, 4), torch.rand(3, 6) < 0.3)
    shift = torch.tensor(0.7, dtype=torch.float64)
    vectors = random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: noise_contrast(v, rows, shift, 0.5), vectors)


def test_embeddings_learn_and_banks_are_saved(random) -> None:
    loss = made()
    loss(random(4, 3), random(4, 6), batch=SimpleNamespace(index=torch.arange(4))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert {"student_bank", "teacher_bank", "log_normalizers", "settled"} <= set(loss.state_dict())
    assert "labels" not in loss.state_dict()


@pytest.mark.parametrize("temperature", [0.07, 1e-3])
@pytest.mark.parametrize("value", [0.0, 1e18, 1e38])
def test_values_and_gradients_stay_finite(random, value: float, temperature: float) -> None:
    loss, batch = made(temperature=temperature).float(), SimpleNamespace(index=torch.arange(4))
    for _ in range(2):
        student = torch.full((4, 3), value, requires_grad=True)
        found = loss(student, random(4, 6).float(), batch=batch)
        assert found.isfinite()
        assert torch.autograd.grad(found, student)[0].isfinite().all()
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


def test_autocast_computes_in_float32(random) -> None:
    batch, values = SimpleNamespace(index=torch.arange(4)), []
    student, teacher = random(4, 3).bfloat16(), random(4, 6).bfloat16()
    for enabled in (True, False):
        loss = made().float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(
                loss(student, teacher, batch=batch) if enabled else loss(student.float(), teacher.float(), batch=batch)
            )
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CRD(temperature=0), "temperature must be above 0"),
        (lambda: CRD(momentum=1.0), "momentum must lie between"),
        (lambda: CRD(negatives=0), "must be at least 1"),
        (lambda: made(samples=0), "map-style data set"),
        (lambda: made(labels=torch.zeros(10, dtype=torch.int64)), "have one class"),
    ],
)
def test_bad_input_is_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_defaults_are_the_authors() -> None:
    loss = CRD()
    assert (loss.dimensions, loss.negatives, loss.temperature, loss.momentum) == (128, 16384, 0.07, 0.5)
    assert (loss.name, CRD.default_weights) == ("crd", {"task": 1.0, "crd": 0.8})
    assert math.isclose(made().student_bank.abs().max(), (3 / 4) ** 0.5, rel_tol=0.2)
