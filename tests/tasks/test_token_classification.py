"""Token classification against plain loops: loss, gradients, metrics, entities, rows, predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdlightning import Batch, ConfigurationError, ModelOutput, TokenClassification
from kdlightning.tasks.entities import EntityF1

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TARGET = torch.tensor([[-100, 1, 2, -100, 0, -100], [-100, 3, 0, 4, -100, -100]])
ATTENDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
COUNTED = [(i, j, int(TARGET[i, j])) for i in range(2) for j in range(6) if TARGET[i, j] != -100]


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def batch_of(task: TokenClassification, target: Tensor | None = TARGET) -> Batch:
    labels = {} if target is None else {"labels": target}
    return task.batch({"input_ids": torch.ones_like(ATTENDED), "attention_mask": ATTENDED, **labels})


def test_loss_is_the_mean_cross_entropy_of_counted_tokens() -> None:
    task, logits = TokenClassification(5), draws(2, 6, 5).requires_grad_()
    expected = 0.0
    for row, place, label in COUNTED:
        values = logits[row, place].tolist()
        expected += math.log(sum(math.exp(v) for v in values)) - values[label]
    batch = batch_of(task)
    loss = task.loss(ModelOutput(logits), batch)
    assert float(loss.detach()) == pytest.approx(expected / len(COUNTED), rel=1e-12)
    assert int(task.count(batch)) == len(COUNTED)
    loss.backward()
    assert logits.grad is not None
    for row in range(2):
        for place in range(6):
            grad = logits.grad[row, place]
            if TARGET[row, place] == -100:
                assert not grad.any()
            else:
                one = torch.nn.functional.one_hot(TARGET[row, place], 5)
                assert torch.allclose(grad, (logits[row, place].detach().softmax(0) - one) / len(COUNTED))


def test_more_padding_changes_nothing_and_no_counted_token_is_zero() -> None:
    task, logits = TokenClassification(5, TAGS), draws(2, 6, 5)
    padded = torch.cat([logits, torch.full((2, 3, 5), torch.nan)], dim=1)
    wider = {"input_ids": torch.ones(2, 9), "labels": torch.nn.functional.pad(TARGET, (0, 3), value=-100)}
    values = []
    for answer, batch in ((logits, batch_of(task)), (padded, task.batch(wider))):
        metrics = task.metrics()
        task.update(metrics, ModelOutput(answer), batch)
        values.append([float(task.loss(ModelOutput(answer), batch)), *(float(m.compute()) for m in metrics.values())])
    assert values[0] == values[1]
    nothing = batch_of(task, torch.full((2, 6), -100))
    free = logits.clone().requires_grad_()
    loss = task.loss(ModelOutput(free), nothing)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not free.grad.any()  # type: ignore[union-attr]
    task.update(task.metrics(), ModelOutput(logits), nothing)


def test_accuracy_and_macro_f1_are_of_the_whole_set() -> None:
    task = TokenClassification(5)
    metrics = task.metrics()
    assert "entity_f1" not in metrics
    logits = draws(2, 6, 5)
    for row in range(2):
        one = slice(row, row + 1)
        task.update(metrics, ModelOutput(logits[one]), batch_of(task, TARGET[one]))
    guesses = [int(logits[r, p].argmax()) for r, p, _ in COUNTED]
    truth = [label for *_, label in COUNTED]
    assert float(metrics["acc"].compute()) == pytest.approx(sum(map(int.__eq__, guesses, truth)) / len(truth))
    scores = []
    for c in sorted({*guesses, *truth}):
        both = sum(g == c == t for g, t in zip(guesses, truth, strict=True))
        scores.append(2 * both / (guesses.count(c) + truth.count(c)))
    assert float(metrics["f1"].compute()) == pytest.approx(sum(scores) / len(scores), rel=1e-5)


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """Begin, last word and type of each entity, by a state machine."""
    found, begin, kind = set(), None, None
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag.startswith("I-") and tag[2:] == kind
        if kind is not None and not goes_on:
            found.add((begin, place - 1, kind))
            kind = None
        if tag != "O" and not goes_on:
            begin, kind = place, tag[2:]
    return found  # type: ignore[return-value]


texts = st.lists(st.lists(st.tuples(st.sampled_from(range(5)), st.sampled_from(range(5))), min_size=1), min_size=1)


@given(texts)
def test_entity_f1_counts_whole_entities(made: list[list[tuple[int, int]]]) -> None:
    metric, right, predicted, true = EntityF1(TAGS), 0, 0, 0
    for part in (made[::2], made[1::2]):
        rows = [(guess, label, number) for number, text in enumerate(part) for guess, label in text]
        columns = torch.tensor(rows, dtype=torch.int64).view(-1, 3).unbind(1)
        metric.update(*columns)
        for text in part:
            ours, theirs = (entities([TAGS[pair[k]] for pair in text]) for k in (0, 1))
            right, predicted, true = right + len(ours & theirs), predicted + len(ours), true + len(theirs)
    expected = 2 * right / max(predicted + true, 1)
    assert float(metric.compute()) == pytest.approx(expected)


def test_entity_f1_reads_counted_tokens_alone() -> None:
    task, metrics = TokenClassification(5, TAGS), TokenClassification(5, TAGS).metrics()
    guess = TARGET.masked_fill(TARGET == -100, 1)
    task.update(metrics, ModelOutput(torch.nn.functional.one_hot(guess, 5).float()), batch_of(task))
    assert float(metrics["entity_f1"].compute()) == 1


def test_rows_are_the_counted_tokens_with_their_classes() -> None:
    task, ours, theirs = TokenClassification(5), draws(2, 6, 5), draws(2, 6, 5) + 1
    student, teacher, batch = task.rows(ours, theirs, batch_of(task))
    assert batch.target.tolist() == [label for *_, label in COUNTED]
    for rows, logits in ((student, ours), (teacher, theirs)):
        assert torch.equal(rows, torch.stack([logits[r, p] for r, p, _ in COUNTED]))
    student, _, batch = task.rows(ours, theirs, batch_of(task, None))
    assert len(student) == int(ATTENDED.sum())
    assert batch.target is None


def test_agreement_and_kl_are_means_over_tokens() -> None:
    task, metrics = TokenClassification(5), TokenClassification(5).comparison()
    ours, theirs = draws(2, 6, 5), draws(2, 6, 5).flip(0)
    assert task.comparable(ModelOutput(ours), ModelOutput(theirs))
    assert not task.comparable(ModelOutput(ours), ModelOutput(theirs[:, :5]))
    task.compare(metrics, ModelOutput(ours), ModelOutput(theirs), batch_of(task))
    kl = agree = 0.0
    for row, place, _ in COUNTED:
        p, q = (logits[row, place].softmax(0).tolist() for logits in (theirs, ours))
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(COUNTED)
        agree += (p.index(max(p)) == q.index(max(q))) / len(COUNTED)
    assert float(metrics["kl"].compute()) == pytest.approx(kl, rel=1e-5)
    assert float(metrics["agreement"].compute()) == pytest.approx(agree)


def test_predictions_are_one_record_a_text() -> None:
    task, logits = TokenClassification(5), draws(2, 6, 5)
    first, second = task.predict(ModelOutput(logits), batch_of(task))
    assert first["prediction"] == [int(logits[0, p].argmax()) for p in (1, 2, 4)]
    assert first["target"] == [1, 2, 0]
    assert second["target"] == [3, 0, 4]
    assert first["probability"] == pytest.approx([float(logits[0, p].softmax(0).max()) for p in (1, 2, 4)])
    _, second = task.predict(ModelOutput(logits), batch_of(task, None))
    assert len(second["prediction"]) == 5
    assert second["target"] is None


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (draws(2, 6, 4), TARGET, r"\(2, 6, 4\).* num_classes=5"),
        (draws(2, 5), TARGET, r"reads \(batch, tokens, classes\)"),
        (draws(2, 5, 5), TARGET, r"a class for each of the \(2, 5\) tokens, and the targets are \(2, 6\)"),
        (draws(2, 6, 5), None, "TokenClassification needs labels"),
    ],
)
def test_what_does_not_fit_is_named(logits: Tensor, target: Any, message: str) -> None:
    task = TokenClassification(5)
    with pytest.raises(ConfigurationError, match=message):
        task.loss(ModelOutput(logits), batch_of(task, target))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_classes must be at least 2"):
        TokenClassification(1)
    with pytest.raises(ConfigurationError, match="there are 5 tags and num_classes is 4"):
        TokenClassification(4, TAGS)
    with pytest.raises(ConfigurationError, match="tagged O, B-… and I-…, not 'NOUN': leave tags out"):
        TokenClassification(2, ["O", "NOUN"])
    task = TokenClassification(5)
    with pytest.raises(ConfigurationError, match=r"the teacher gives logits of shape \(2, 5\)"):
        task.rows(draws(2, 6, 5), draws(2, 5), batch_of(task))
    with pytest.raises(ConfigurationError, match="labels, or an attention_mask"):
        task.count(Batch(torch.ones(2, 3), size=2))
