"""Causal language modelling: shifting, counting, metrics and predictions against loops over tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Batch, CausalLM, ConfigurationError, Head, ModelOutput

V, H = 7, 3


def batch_of(labels: bool = True) -> tuple[Any, list[tuple[int, int, int]]]:
    """Two rows, the second padded; and the counted (row, position, next token)."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 2, 1, 0, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    raw = {"input_ids": ids, "attention_mask": attention}
    if labels:
        # A prompt of two tokens in the first row does not count.
        raw["labels"] = torch.tensor([[-100, -100, 3, 4, 5], [6, 2, 1, -100, -100]])
        counted = [(0, 1, 3), (0, 2, 4), (0, 3, 5), (1, 0, 2), (1, 1, 1)]
    else:
        counted = [(0, 0, 2), (0, 1, 3), (0, 2, 4), (0, 3, 5), (1, 0, 2), (1, 1, 1)]
    return CausalLM().batch(raw), counted


def nll(logits: Tensor, counted: list[tuple[int, int, int]]) -> list[float]:
    losses = []
    for row, position, token in counted:
        values = logits[row, position].double().tolist()
        losses.append(math.log(sum(math.exp(value) for value in values)) - values[token])
    return losses


@pytest.fixture
def states() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, H, generator=generator)
    return hidden, torch.randn(V, H, generator=generator), torch.randn(V, generator=generator)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_loss_sums_the_counted_tokens_with_and_without_full_logits(
    labels: bool, softcap: float | None, states: tuple[Tensor, ...]
) -> None:
    hidden, weight, bias = states
    head = Head(weight, bias, softcap, logit_scale=0.5)
    batch, counted = batch_of(labels)
    expected = sum(nll(head(hidden), counted))
    task = CausalLM()
    assert task.count(batch) == len(counted)
    lazy, full = ModelOutput(hidden=hidden, head=head), ModelOutput(head(hidden))
    assert float(task.loss(lazy, batch)) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss(full, batch)) == pytest.approx(expected, rel=1e-5)
    assert lazy._logits is None  # nobody asked for full logits


def test_perplexity_weighs_tokens(states: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = states
    head, task = Head(weight, bias), CausalLM()
    batch, counted = batch_of()
    metrics = task.metrics()
    for row in (0, 1):
        part = task.batch({"input_ids": batch.inputs["input_ids"][row : row + 1], "labels": _labels(row)})
        task.update(metrics, ModelOutput(hidden=hidden[row : row + 1], head=head), part)
    mean = sum(nll(head(hidden), counted)) / len(counted)
    assert float(metrics["perplexity"].compute()) == pytest.approx(math.exp(mean), rel=1e-5)


def _labels(row: int) -> Tensor:
    return torch.tensor([[-100, -100, 3, 4, 5], [6, 2, 1, -100, -100]])[row : row + 1]


def test_kl_and_agreement_are_per_counted_token(states: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = states
    ours, theirs = Head(weight, bias), Head(weight.flip(0), None)
    batch, counted = batch_of()
    kl = agree = 0.0
    for row, position, _ in counted:
        p, q = (head(hidden)[row, position].double().softmax(0) for head in (ours, theirs))
        kl += sum(b * math.log(b / a) for a, b in zip(p.tolist(), q.tolist(), strict=True)) / len(counted)
        agree += int(p.argmax() == q.argmax()) / len(counted)
    task = CausalLM()
    outputs = (ModelOutput(hidden=hidden, head=ours), ModelOutput(hidden=hidden, head=theirs))
    plain = (ModelOutput(ours(hidden)), ModelOutput(theirs(hidden)))
    for student, teacher in (outputs, plain):
        metrics = task.comparison()
        task.compare(metrics, student, teacher, batch)
        assert float(metrics["kl"].compute()) == pytest.approx(kl, rel=1e-4)
        assert float(metrics["agreement"].compute()) == pytest.approx(agree)


def test_predictions_are_each_samples_perplexity(states: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = states
    logits = Head(weight, bias)(hidden)
    batch, counted = batch_of()
    rows = CausalLM().predict(ModelOutput(logits), batch)
    for number, row in enumerate(rows):
        losses = nll(logits, [entry for entry in counted if entry[0] == number])
        assert row["tokens"] == len(losses)
        assert row["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_a_batch_without_tokens_is_named() -> None:
    with pytest.raises(ConfigurationError, match="input_ids"):
        CausalLM().batch((torch.zeros(2, 3), torch.zeros(2)))


def test_a_batch_of_ones_own_without_a_mask_counts_its_targets(states: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = states
    head, task = Head(weight, bias), CausalLM()
    whole, counted = batch_of()
    own = Batch(whole.inputs, whole.target, size=2)
    assert int(task.count(own)) == len(counted)
    expected = sum(nll(head(hidden), counted))
    for output in (ModelOutput(hidden=hidden, head=head), ModelOutput(head(hidden))):
        assert float(task.loss(output, own)) == pytest.approx(expected, rel=1e-5)


def test_a_mask_holds_with_full_logits_too(states: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = states
    logits = Head(weight, bias)(hidden)
    whole, counted = batch_of()
    mask = whole.mask.clone()
    mask[1] = False
    part = Batch(whole.inputs, whole.target, mask=mask, size=2)
    expected = sum(nll(logits, [entry for entry in counted if entry[0] == 0]))
    assert float(CausalLM().loss(ModelOutput(logits), part)) == pytest.approx(expected, rel=1e-5)
