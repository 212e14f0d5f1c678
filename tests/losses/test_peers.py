"""What several networks say together, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import attended_logits, gated_logits, kd_loss, learned_target_kl, mean_of_others


def test_gated_logits_are_the_formula(random: Any) -> None:
    gates, logits = random(4, 3).softmax(1), [random(4, 5) for _ in range(3)]
    found = gated_logits(gates, logits)
    for sample in range(4):
        for label in range(5):
            expected = sum(gates[sample, k] * logits[k][sample, label] for k in range(3))
            torch.testing.assert_close(found[sample, label], expected, rtol=1e-12, atol=1e-12)
    leaves = [part.clone().requires_grad_() for part in (gates, *logits)]
    assert torch.autograd.gradcheck(lambda g, *z: gated_logits(g, z), leaves)


def test_mean_of_others_is_the_formula(random: Any) -> None:
    logits = [random(4, 5) for _ in range(4)]
    for own, found in enumerate(mean_of_others(logits)):
        expected = sum(logits[j] for j in range(4) if j != own) / 3
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("peers", [1, 3])
def test_attended_logits_are_the_formula(peers: int, random: Any) -> None:
    queries, keys, logits = random(4, peers, 2), random(4, peers, 2), [random(4, 5) for _ in range(peers)]
    found = attended_logits(queries, keys, logits)
    for sample in range(4):
        for own in range(peers):
            scores = [(queries[sample, own] * keys[sample, other]).sum().exp() for other in range(peers)]
            expected = sum(score / sum(scores) * z[sample] for score, z in zip(scores, logits, strict=True))
            torch.testing.assert_close(found[own][sample], expected, rtol=1e-11, atol=1e-12)
    leaves = [part.clone().requires_grad_() for part in (queries, keys, *logits)]
    assert torch.autograd.gradcheck(lambda q, k, *z: attended_logits(q, k, z), leaves)


def test_learned_target_kl_is_the_formula(random: Any) -> None:
    student, target = random(4, 5).requires_grad_(), random(4, 5).requires_grad_()

    def loop() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, other in zip(student, target, strict=True):
            q, p = (own / 3).exp() / (own / 3).exp().sum(), (other / 3).exp() / (other / 3).exp().sum()
            for a, b in zip(p, q, strict=True):
                total = total + a * (a / b).log()
        return 9 * total / 4

    ours, oracle = learned_target_kl(student, target, temperature=3.0), loop()
    torch.testing.assert_close(ours, oracle, rtol=1e-11, atol=1e-12)
    gradients = zip(
        torch.autograd.grad(ours, (student, target)), torch.autograd.grad(oracle, (student, target)), strict=True
    )
    for mine, other in gradients:
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(learned_target_kl, (student, target))


def test_with_a_constant_target_it_is_kd(random: Any) -> None:
    student, target = random(4, 5).requires_grad_(), random(4, 5)
    values = [learned_target_kl(student, target, temperature=2.0), kd_loss(student, target, temperature=2.0)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


@pytest.mark.parametrize("gap", [1e4, 1e30])
def test_huge_and_forbidden_logits_stay_finite(gap: float) -> None:
    student = torch.tensor([[gap, 0.0, -gap]], requires_grad=True)
    target = torch.tensor([[-gap, 0.0, gap]], requires_grad=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(learned_target_kl(student, target), (student, target)))
    forbidden = torch.tensor([[0.0, 1.0, -torch.inf]])
    torch.testing.assert_close(learned_target_kl(forbidden, forbidden), torch.tensor(0.0))


def test_half_precision_is_widened(random: Any) -> None:
    logits = [random(4, 5).bfloat16() for _ in range(2)]
    queries = random(4, 2, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = [gated_logits(random(4, 2).bfloat16(), logits), *mean_of_others(logits)]
        answers += [*attended_logits(queries, queries, logits), learned_target_kl(*logits)]
    assert all(answer.dtype == torch.float32 for answer in answers)
    one_sample = F.softmax((queries[0].float() @ queries[0].float().T), -1) @ torch.stack(
        [z[0].float() for z in logits]
    )
    torch.testing.assert_close(torch.stack([target[0] for target in answers[3:5]]), one_sample)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: gated_logits(torch.ones(2, 3), [z, z]), r"gates must be \(batch, networks\) \(2, 2\), not \(2, 3\)"),
        (lambda z: gated_logits(torch.ones(2, 2), [z, z[:, :2]]), "must have one shape"),
        (lambda z: mean_of_others([z]), "at least 2 networks"),
        (lambda z: mean_of_others([]), "logits are empty"),
        (lambda z: attended_logits(torch.ones(2, 2, 4), torch.ones(2, 3, 4), [z, z]), "queries and keys must be"),
        (lambda z: learned_target_kl(z, z, temperature=0.0), "temperature must be above 0"),
        (lambda z: learned_target_kl(z, z[:1]), "must have one shape"),
    ],
)
def test_bad_input_is_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3))
