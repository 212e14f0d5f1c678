"""Tasks: batches in all their forms, losses and metrics against plain loops, predictions, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import (
    Batch,
    Classification,
    ConfigurationError,
    LoadedBatch,
    ModelOutput,
    MultiLabel,
    Regression,
    Task,
)

GENERATOR = torch.Generator().manual_seed(3)


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def scores(task: Task, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The task's metrics over batches of (logits, target)."""
    metrics = task.metrics()
    for logits, target in batches:
        task.update(metrics, ModelOutput(logits), task.batch((torch.zeros(len(logits), 1), target)))
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def comparison(task: Task, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The comparison's metrics over batches of (student's logits, teacher's)."""
    metrics = task.comparison()
    for ours, theirs in pairs:
        batch = Batch(None, size=len(ours))
        task.compare(metrics, ModelOutput(ours), ModelOutput(theirs), batch)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_pair_a_mapping_and_bare_inputs_are_read_alike() -> None:
    task, x, y = Classification(3), draws(4, 2), torch.tensor([0, 1, 2, 0])
    pair = task.batch((x, y))
    mapping = task.batch({"pixel_values": x, "labels": y})
    single = task.batch({"pixel_values": x, "label": y})
    assert pair.inputs is x
    assert pair.target is y
    assert pair.size == mapping.size == single.size == 4
    assert list(mapping.inputs) == list(single.inputs) == ["pixel_values"]
    assert mapping.target is single.target is y
    assert task.batch(x).target is None
    assert task.batch(pair) is pair


def test_a_loaded_batch_keeps_numbers_and_views() -> None:
    task, x, y = Classification(3), draws(4, 2), torch.tensor([0, 1, 2, 0])
    index, view = torch.tensor([7, 3, 5, 1]), torch.full((4,), 2)
    batch = task.batch(LoadedBatch((x, y), index, view, views=((x + 1, y),)))
    assert batch.index is index
    assert batch.view is view
    assert torch.equal(batch.views[0], x + 1)


def test_what_is_no_batch_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"reads \(inputs, target\) pairs.* yielded str"):
        Classification(3).batch("images")


def test_a_missing_target_is_named() -> None:
    task = Classification(3)
    with pytest.raises(ConfigurationError, match="needs labels"):
        task.loss(ModelOutput(draws(2, 3)), task.batch(draws(2, 5)))


# -- classification ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_loss_is_the_mean_cross_entropy(smoothing: float) -> None:
    logits, target = draws(5, 4).double(), torch.tensor([0, 3, 1, 1, 2])
    expected = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        for c, value in enumerate(row):
            share = (1 - smoothing) * (c == label) + smoothing / 4
            expected += share * (normaliser - value) / 5
    task = Classification(4, label_smoothing=smoothing)
    assert float(task.loss(ModelOutput(logits), task.batch((logits, target)))) == pytest.approx(expected, rel=1e-6)


def test_classification_takes_soft_targets_in_loss_and_metrics() -> None:
    task, logits = Classification(3), torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    soft = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.4, 0.6]])
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(task.loss(ModelOutput(logits), task.batch((logits, soft))), expected)
    assert scores(task, [(logits, soft)])["acc"] == 0.5


def test_accuracy_agreement_and_kl_weigh_samples_and_not_batches() -> None:
    task = Classification(4)
    ours, theirs, target = draws(7, 4), draws(7, 4), torch.randint(4, (7,), generator=GENERATOR)
    parts = [slice(0, 5), slice(5, 7)]
    right = sum(int(row.argmax() == label) for row, label in zip(ours, target, strict=True)) / 7
    assert scores(task, [(ours[p], target[p]) for p in parts])["acc"] == pytest.approx(right)
    found = comparison(task, [(ours[p], theirs[p]) for p in parts])
    agree = sum(int(a.argmax() == b.argmax()) for a, b in zip(ours, theirs, strict=True)) / 7
    kl = 0.0
    for a, b in zip(ours.double().softmax(1).tolist(), theirs.double().softmax(1).tolist(), strict=True):
        kl += sum(q * math.log(q / p) for p, q in zip(a, b, strict=True)) / 7
    assert found["agreement"] == pytest.approx(agree)
    assert found["kl"] == pytest.approx(kl, rel=1e-5)


def test_classification_predictions_are_rows_of_plain_data() -> None:
    task, logits = Classification(3), torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    rows = task.predict(ModelOutput(logits), task.batch((logits, torch.tensor([1, 2]))))
    assert [row["prediction"] for row in rows] == [0, 2]
    assert [row["target"] for row in rows] == [1, 2]
    assert rows[0]["probability"] == pytest.approx(math.e**2 / (math.e**2 + 2), rel=1e-6)
    assert [row["target"] for row in task.predict(ModelOutput(logits), task.batch(logits))] == [None, None]


@pytest.mark.parametrize("classes", [0, 1])
def test_one_class_is_none(classes: int) -> None:
    with pytest.raises(ConfigurationError, match="num_classes must be at least 2"):
        Classification(classes)


def test_another_number_of_logits_is_named() -> None:
    task = Classification(3)
    with pytest.raises(ConfigurationError, match=r"\(2, 4\) and the task has num_classes=3"):
        task.loss(ModelOutput(draws(2, 4)), task.batch((draws(2, 1), torch.tensor([0, 1]))))


# -- multi-label -------------------------------------------------------------------------------------------------------


def test_multi_label_loss_and_metrics_are_those_of_single_labels() -> None:
    task, logits = MultiLabel(3), draws(5, 3)
    target = torch.randint(2, (5, 3), generator=GENERATOR).float()
    expected, counts = 0.0, {c: [0, 0, 0] for c in range(3)}  # true positives, false positives, false negatives
    right = 0
    for row, labels in zip(logits.double().tolist(), target.tolist(), strict=True):
        for c, (value, label) in enumerate(zip(row, labels, strict=True)):
            p = 1 / (1 + math.exp(-value))
            expected -= (label * math.log(p) + (1 - label) * math.log(1 - p)) / 15
            chosen = p > 0.5
            right += chosen == bool(label)
            counts[c][0] += chosen and label == 1
            counts[c][1] += chosen and label == 0
            counts[c][2] += not chosen and label == 1
    f1 = [2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0 for tp, fp, fn in counts.values()]
    assert float(task.loss(ModelOutput(logits), task.batch((logits, target)))) == pytest.approx(expected, rel=1e-5)
    found = scores(task, [(logits[:4], target[:4]), (logits[4:], target[4:])])
    assert found["acc"] == pytest.approx(right / 15)
    assert found["f1"] == pytest.approx(sum(f1) / 3, rel=1e-5)


def test_multi_label_comparison_sums_bernoulli_divergences() -> None:
    ours, theirs = draws(3, 2), draws(3, 2)
    found = comparison(MultiLabel(2), [(ours[:1], theirs[:1]), (ours[1:], theirs[1:])])
    kl = agree = 0.0
    for a_row, b_row in zip(ours.double().tolist(), theirs.double().tolist(), strict=True):
        for a, b in zip(a_row, b_row, strict=True):
            p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
            kl += (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))) / 3
            agree += ((a > 0) == (b > 0)) / 6
    assert found["kl"] == pytest.approx(kl, rel=1e-5)
    assert found["agreement"] == pytest.approx(agree)


def test_multi_label_predictions_list_the_labels() -> None:
    logits = torch.tensor([[1.0, -1.0, 3.0], [-1.0, -1.0, -1.0]])
    task = MultiLabel(3)
    rows = task.predict(ModelOutput(logits), task.batch((logits, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))))
    assert [row["prediction"] for row in rows] == [[0, 2], []]
    assert [row["target"] for row in rows] == [[0], [2]]
    assert rows[0]["probability"] == pytest.approx([1 / (1 + math.exp(-x)) for x in (1, -1, 3)], rel=1e-5)


# -- regression --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_error_is_over_samples_and_outputs(outputs: int) -> None:
    task, prediction, target = Regression(outputs), draws(5, outputs), draws(5, outputs)
    squares = [
        (a - b) ** 2
        for row, other in zip(prediction.tolist(), target.tolist(), strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    mean = sum(squares) / len(squares)
    assert float(task.loss(ModelOutput(prediction), task.batch((prediction, target)))) == pytest.approx(mean, rel=1e-5)
    found = scores(task, [(prediction[:4], target[:4]), (prediction[4:], target[4:])])
    assert found["rmse"] == pytest.approx(math.sqrt(mean), rel=1e-5)
    assert comparison(task, [(prediction, target)])["mse_to_teacher"] == pytest.approx(mean, rel=1e-5)


def test_regression_reads_flat_targets_and_refuses_other_counts() -> None:
    task, prediction = Regression(), draws(4, 1)
    flat = task.loss(ModelOutput(prediction), task.batch((prediction, prediction[:, 0])))
    assert float(flat) == 0.0
    with pytest.raises(ConfigurationError, match="num_outputs=1"):
        task.loss(ModelOutput(draws(4, 2)), task.batch((prediction, prediction)))


def test_regression_predictions() -> None:
    prediction = torch.tensor([[1.5], [2.0]])
    task = Regression()
    rows = task.predict(ModelOutput(prediction), task.batch((prediction, torch.tensor([1.0, 2.0]))))
    assert rows == [
        {"prediction": 1.5, "probability": None, "target": 1.0},
        {"prediction": 2.0, "probability": None, "target": 2.0},
    ]


# -- a task of one's own -----------------------------------------------------------------------------------------------


def test_a_task_of_ones_own_needs_a_loss_and_no_more() -> None:
    class Absolute(Task):
        def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
            return (output.logits - self.with_target(batch)).abs().mean()

    task: Any = Absolute()
    batch = task.batch((draws(2, 1), torch.zeros(2, 1)))
    assert float(task.loss(ModelOutput(torch.ones(2, 1)), batch)) == 1.0
    assert task.metrics() == {}
    assert task.count(batch) == 2
    with pytest.raises(ConfigurationError, match="Absolute has no predictions"):
        task.predict(ModelOutput(torch.ones(2, 1)), batch)
    with pytest.raises(NotImplementedError, match="Task must define loss"):
        Task().loss(ModelOutput(), batch)


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (Classification(3), torch.tensor([0, 2])),
        (Classification(3), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])),
        (MultiLabel(3), torch.tensor([[1, 0, 1], [0, 0, 1]])),
        (Regression(3), torch.zeros(2, 3)),
    ],
    ids=["classes", "soft", "labels", "numbers"],
)
@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_losses_are_computed_in_float32_or_better(
    task: Task, target: Tensor, given: torch.dtype, computed: torch.dtype
) -> None:
    logits = draws(2, 3).to(given)
    loss = task.loss(ModelOutput(logits), task.batch((logits, target)))
    assert loss.dtype == computed


def test_multi_label_targets_of_another_shape_are_named() -> None:
    logits = draws(2, 3)
    with pytest.raises(ConfigurationError, match=r"targets are \(2,\) and the task has num_labels=3"):
        MultiLabel(3).loss(ModelOutput(logits), MultiLabel(3).batch((logits, torch.tensor([0, 1]))))
