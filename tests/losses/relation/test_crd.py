from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning.losses import CRD, LossContext

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


def test_crd_is_the_formula(random, assert_same) -> None:
    loss, teacher, index = made(temperature=0.5), random(3, 6), torch.tensor([4, 0, 8])

    def ours(student: Tensor) -> Tensor:
        loss.normalizers.fill_(-1)
        torch.manual_seed(5)
        return loss(student, teacher, batch=SimpleNamespace(index=index))

    def oracle(student: Tensor) -> Tensor:
        torch.manual_seed(5)
        chosen = torch.cat([index[:, None], loss.draw(index)], 1)
        own = torch.stack([unit(loss.student_embedding.weight @ row + loss.student_embedding.bias) for row in student])
        other = torch.stack(
            [unit(loss.teacher_embedding.weight @ row + loss.teacher_embedding.bias) for row in teacher]
        )
        first = contrast_loop(own, loss.teacher_bank, chosen, 0.5)
        return first + contrast_loop(other, loss.student_bank, chosen, 0.5)

    assert_same(ours, oracle, random(3, 3))


def test_negatives_are_all_samples_of_other_classes_and_no_others() -> None:
    loss, index = made(negatives=1000), torch.arange(10)
    assert loss.count == 6  # ten samples, four of the largest class
    seen = [set() for _ in range(10)]
    for _ in range(200):
        for own, row in zip(index.tolist(), loss.draw(index).tolist(), strict=True):
            seen[own] |= set(row)
    for own in range(10):
        assert seen[own] == {other for other in range(10) if LABELS[other] != LABELS[own]}


def test_without_labels_negatives_are_all_others() -> None:
    loss, index = made(labels=None, negatives=1000), torch.arange(10)
    drawn = torch.cat([loss.draw(index) for _ in range(100)], 1)
    for own in range(10):
        assert set(drawn[own].tolist()) == set(range(10)) - {own}


def test_rows_move_after_the_optimizers_step_and_the_normalizer_stays(random) -> None:
    loss, index = made(momentum=0.25), torch.tensor([1, 7])
    before = loss.student_bank.clone()
    batch = SimpleNamespace(index=index)
    student, teacher = random(2, 3), random(2, 6)
    loss(student, teacher, batch=batch).backward()
    assert torch.equal(loss.student_bank, before)
    settled = loss.normalizers.clone()
    assert (settled > 0).all()
    own, other = loss.embedded(student, teacher)
    loss.after_optimizer_step(0.5)
    for row, place in enumerate(index.tolist()):
        torch.testing.assert_close(loss.student_bank[place], unit(0.25 * before[place] + 0.75 * own[row].detach()))
    untouched = [place for place in range(10) if place not in index.tolist()]
    assert torch.equal(loss.student_bank[untouched], before[untouched])
    assert not torch.equal(loss.teacher_bank[7], before[7])
    loss(random(2, 3), random(2, 6), batch=batch)
    assert torch.equal(loss.normalizers, settled)
    loss.eval()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    loss._waiting.clear()
    loss(random(2, 3), random(2, 6), batch=batch)
    loss.after_optimizer_step(1.0)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_embeddings_learn_and_banks_are_saved(random) -> None:
    loss = made()
    loss(random(4, 3), random(4, 6), batch=SimpleNamespace(index=torch.arange(4))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert {"student_bank", "teacher_bank", "normalizers"} <= set(loss.state_dict())
    assert not {"labels", "by_class"} & set(loss.state_dict())


def test_values_stay_finite_and_half_precision_is_float32(random) -> None:
    loss = made().float()
    batch = SimpleNamespace(index=torch.arange(4))
    for value in (0.0, 1e18):
        student = torch.full((4, 3), value, requires_grad=True)
        found = loss(student, random(4, 6).float(), batch=batch)
        assert found.isfinite()
        assert torch.autograd.grad(found, student)[0].isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(random(4, 3).bfloat16(), random(4, 6).bfloat16(), batch=batch).dtype == torch.float32


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
