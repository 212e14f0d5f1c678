from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import losses
from kdlightning.losses import ForwardKL, JensenShannon, ReverseKL

TERMS = [
    (ForwardKL(temperature=1.5), "forward_kl", {"temperature": 1.5}),
    (ReverseKL(), "reverse_kl", {}),
    (JensenShannon(beta=0.2, chunk_size=2), "jensen_shannon", {"beta": 0.2}),
]
EACH = pytest.mark.parametrize(("term", "name", "options"), TERMS)


class Head:
    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, logit_scale: float) -> None:
        self.weight, self.bias, self.softcap, self.logit_scale = weight, bias, softcap, logit_scale

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = hidden @ self.weight.T + (0 if self.bias is None else self.bias)
        logits = self.logit_scale * logits
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


class Output:
    """Has hidden states and a head, and counts how often logits were asked for."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head, self.asked = hidden, head, 0

    @property
    def logits(self) -> Tensor:
        self.asked += 1
        return self.head(self.hidden)


@pytest.fixture
def outputs(random) -> tuple[Output, Output]:
    """A student with 11 ids, a bias and a cap, and a teacher with 13 (two padded columns) and a scale."""
    student = Output(random(2, 4, 3).requires_grad_(), Head(random(11, 3).requires_grad_(), random(11), 4.0, 1.0))
    return student, Output(random(2, 4, 5), Head(random(13, 5), None, None, 0.5))


BATCH = SimpleNamespace(mask=torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]))


def dense(outputs: tuple[Any, Any], name: str, options: dict[str, float]) -> Tensor:
    student, teacher = outputs
    logits = [output.head(output.hidden)[..., :11] for output in (student, teacher)]
    return getattr(losses, name)(*logits, BATCH.mask, reduction="sum", **options)


@EACH
def test_terms_sum_over_counted_tokens_without_full_logits(outputs, term, name, options) -> None:
    value = term(*outputs, batch=BATCH, progress=0.0)
    expected = dense(outputs, name, options)
    torch.testing.assert_close(value, expected)
    leaves = [outputs[0].hidden, outputs[0].head.weight]
    for found, true in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, true)
    assert outputs[0].asked == outputs[1].asked == 0


@EACH
@pytest.mark.parametrize("without", [0, 1])
def test_terms_fall_back_to_logits(outputs, term, name, options, without: int) -> None:
    pair: list[Any] = list(outputs)
    logits = pair[without].logits
    pair[without] = SimpleNamespace(hidden=None, head=None, logits=logits)
    torch.testing.assert_close(term(*pair, batch=BATCH, progress=0.0), dense(outputs, name, options))


@EACH
def test_terms_say_what_they_read(term, name, options) -> None:
    assert term.reads == "output"
    assert term.counts_tokens
    assert term.name == name
    assert set(term.default_weights) == {"task", name}


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ForwardKL(temperature=0)
    with pytest.raises(ValueError, match="beta must lie between 0 and 1"):
        JensenShannon(beta=2)
