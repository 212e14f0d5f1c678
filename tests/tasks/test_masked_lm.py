"""Masked language modelling: what counts, what a response sees, metrics and predictions against loops over tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Batch, ConfigurationError, Head, MaskedLM, ModelOutput

V, H = 7, 3
LABELS = torch.tensor([[-100, 2, -100, 4, -100], [6, -100, -100, -100, -100]])
CHOSEN = [(0, 1, 2), (0, 3, 4), (1, 0, 6)]
RAW = {
    "input_ids": torch.tensor([[1, 0, 3, 0, 5], [0, 2, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "labels": LABELS,
}


@pytest.fixture
def states() -> tuple[Tensor, Head]:
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(2, 5, H, **draw), Head(torch.randn(V, H, **draw), torch.randn(V, **draw))


def outputs(states: tuple[Tensor, Head]) -> list[ModelOutput]:
    """The same answer lazily and with full logits."""
    hidden, head = states
    return [ModelOutput(hidden=hidden, head=head), ModelOutput(head(hidden))]


def nll(states: tuple[Tensor, Head], row: int, place: int, token: int) -> float:
    values = states[1](states[0])[row, place].tolist()
    return math.log(sum(math.exp(value) for value in values)) - values[token]


def test_loss_sums_the_chosen_tokens_unshifted(states: Any) -> None:
    task = MaskedLM()
    batch = task.batch(RAW)
    assert torch.equal(batch.mask, LABELS != -100)
    assert "labels" not in batch.inputs
    assert task.batch(batch) is batch
    assert int(task.count(batch)) == 3
    expected = sum(nll(states, *entry) for entry in CHOSEN)
    for output in outputs(states):
        assert float(task.loss(output, batch)) == pytest.approx(expected, rel=1e-12)


def test_only_the_chosen_positions_get_gradients(states: Any) -> None:
    hidden = states[0].clone().requires_grad_()
    output = ModelOutput(hidden=hidden, head=states[1])
    MaskedLM().loss(output, MaskedLM().batch(RAW)).backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(2) > 0, LABELS != -100)
    assert output._logits is None, "nobody asked for full logits"


def test_metrics_weigh_tokens(states: Any) -> None:
    hidden, head = states
    task, right = MaskedLM(), sum(int(head(hidden)[r, p].argmax()) == t for r, p, t in CHOSEN)
    mean = sum(nll(states, *entry) for entry in CHOSEN) / 3
    for lazy in (True, False):
        metrics = task.metrics()
        for row in (0, 1):
            one = slice(row, row + 1)
            part = task.batch({name: value[one] for name, value in RAW.items()})
            output = ModelOutput(hidden=hidden[one], head=head) if lazy else ModelOutput(head(hidden[one]))
            task.update(metrics, output, part)
        assert float(metrics["perplexity"].compute()) == pytest.approx(math.exp(mean), rel=1e-5)
        assert float(metrics["acc"].compute()) == pytest.approx(right / 3)


def test_a_batch_without_a_mask_token_counts_nothing(states: Any) -> None:
    task, metrics = MaskedLM(), MaskedLM().metrics()
    batch = task.batch({**RAW, "labels": torch.full((2, 5), -100)})
    for output in outputs(states):
        assert float(task.loss(output, batch)) == 0
        task.update(metrics, output, batch)
        assert [row["prediction"] for row in task.predict(output, batch)] == [[], []]
    assert float(metrics["acc"].weight) == 0


def test_what_responses_see_can_be_chosen() -> None:
    batch = MaskedLM().batch(RAW)
    assert MaskedLM().distilled(batch) is batch
    seen = MaskedLM(distill_on="all").distilled(batch)
    assert torch.equal(seen.mask, RAW["attention_mask"] != 0)
    assert seen.target is batch.target
    bare = MaskedLM(distill_on="all").batch({"input_ids": RAW["input_ids"], "labels": LABELS})
    assert bool(MaskedLM(distill_on="all").distilled(bare).mask.all())


def test_predictions_are_the_tokens_behind_the_masks(states: Any) -> None:
    hidden, head = states
    task = MaskedLM()
    for output in outputs(states):
        first, second = task.predict(output, task.batch(RAW))
        guesses = head(hidden).argmax(-1)
        assert (first["prediction"], first["target"]) == ([int(guesses[0, 1]), int(guesses[0, 3])], [2, 4])
        assert (second["prediction"], second["target"], second["tokens"]) == ([int(guesses[1, 0])], [6], 1)
        expected = math.exp((nll(states, 0, 1, 2) + nll(states, 0, 3, 4)) / 2)
        assert first["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigurationError, match="distill_on is masked or all, not 'every'"):
        MaskedLM("every")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="mappings with input_ids"):
        MaskedLM().batch((torch.zeros(2, 3), torch.zeros(2)))
    with pytest.raises(ConfigurationError, match="MaskedLM needs labels"):
        MaskedLM().batch({"input_ids": RAW["input_ids"]})
    own = Batch({"input_ids": RAW["input_ids"]}, LABELS, size=2)
    assert int(MaskedLM().count(own)) == 3
