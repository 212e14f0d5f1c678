"""Segmentation against plain loops: loss, metrics over the whole set, ignored pixels, sizes, rows, predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Batch, ConfigurationError, ModelOutput, Segmentation
from kdlightning.tasks.segmentation import decode_runs

GENERATOR = torch.Generator().manual_seed(5)


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def labels(*shape: int, classes: int = 4, void: float = 0.3) -> Tensor:
    target = torch.randint(classes, shape, generator=GENERATOR)
    return target.masked_fill(torch.rand(shape, generator=GENERATOR) < void, 255)


def pixels(logits: Tensor, target: Tensor) -> list[tuple[list[float], int]]:
    """All counted pixels, as (logits, label)."""
    found = []
    for image, classes in zip(logits.double(), target, strict=True):
        for i in range(classes.shape[0]):
            for j in range(classes.shape[1]):
                if int(classes[i, j]) != 255:
                    found.append((image[:, i, j].tolist(), int(classes[i, j])))
    return found


def scores(task: Segmentation, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    metrics = task.metrics()
    for logits, target in batches:
        task.update(metrics, ModelOutput(logits), task.batch((torch.zeros(len(logits), 1, 2, 2), target)))
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_loss_is_the_mean_cross_entropy_of_counted_pixels() -> None:
    logits, target = draws(3, 4, 5, 6), labels(3, 5, 6)
    counted = pixels(logits, target)
    expected = sum(math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in counted) / len(counted)
    task = Segmentation(4)
    batch = task.batch((logits, target))
    assert float(task.loss(ModelOutput(logits), batch)) == pytest.approx(expected, rel=1e-5)
    assert int(task.count(batch)) == len(counted)


def test_ignored_pixels_get_no_gradient_and_a_batch_of_them_is_zero() -> None:
    task, target = Segmentation(4), labels(2, 3, 3)
    logits = draws(2, 4, 3, 3).requires_grad_()
    task.loss(ModelOutput(logits), task.batch((logits, target))).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, target != 255)
    nothing = torch.full((2, 3, 3), 255)
    logits.grad = None
    loss = task.loss(ModelOutput(logits), task.batch((logits, nothing)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0


@pytest.mark.parametrize("ignore_index", [None, 255, 0])
def test_which_pixels_count_can_be_chosen(ignore_index: int | None) -> None:
    task, logits = Segmentation(3, ignore_index), draws(2, 3, 4, 4)
    target = labels(2, 4, 4, classes=3, void=0.0)
    kept = target != (-1 if ignore_index is None else ignore_index)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")[kept].mean()
    batch = task.batch((logits, target))
    assert torch.allclose(task.loss(ModelOutput(logits), batch), expected)
    assert int(task.count(batch)) == int(kept.sum())
    right = (logits.argmax(1) == target)[kept].float().mean()
    assert scores(task, [(logits, target)])["acc"] == pytest.approx(float(right))


def test_mean_iou_is_of_one_confusion_matrix_over_the_set() -> None:
    task = Segmentation(5)
    # Class 4 occurs nowhere and does not count; class 3 is predicted and never true.
    parts = [(draws(2, 5, 6, 5) - 100 * (torch.arange(5) == 4).view(5, 1, 1), labels(2, 6, 5, classes=3)) for _ in "ab"]
    overlap, union, right, total = [0] * 5, [0] * 5, 0, 0
    for logits, target in parts:
        for row, label in pixels(logits, target):
            guess = row.index(max(row))
            right, total = right + (guess == label), total + 1
            for c in range(5):
                overlap[c] += guess == c == label
                union[c] += c in (guess, label)
    assert union[4] == 0
    assert overlap[3] == 0 < union[3]
    found = scores(task, parts)
    assert found["miou"] == pytest.approx(sum(o / u for o, u in zip(overlap, union, strict=True) if u) / 4)
    assert found["acc"] == pytest.approx(right / total)
    each = [scores(task, [part])["miou"] for part in parts]
    assert found["miou"] != pytest.approx(sum(each) / 2, abs=1e-4), "no mean of means"


@pytest.mark.parametrize("size", [(2, 3), (4, 5), (12, 9)])
def test_logits_of_another_size_are_resized_to_the_target(size: tuple[int, int]) -> None:
    task, logits, target = Segmentation(4), draws(2, 4, *size), labels(2, 8, 10)
    whole = torch.nn.functional.interpolate(logits, size=(8, 10), mode="bilinear", align_corners=False)
    batch = task.batch((draws(2, 1, 8, 10), target))
    assert torch.equal(task.loss(ModelOutput(logits), batch), task.loss(ModelOutput(whole), batch))
    assert scores(task, [(logits, target)]) == scores(task, [(whole, target)])
    row = task.predict(ModelOutput(logits), batch)[0]
    assert torch.equal(decode_runs(row["prediction"], row["shape"]), whole[0].argmax(0))


def test_half_precision_is_computed_in_float32() -> None:
    task, logits, target = Segmentation(4), draws(2, 4, 3, 3).bfloat16(), labels(2, 6, 6)
    batch = task.batch((logits, target))
    loss = task.loss(ModelOutput(logits), batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, task.loss(ModelOutput(logits.float()), batch))


# -- what responses and the teacher's comparison see -------------------------------------------------------------------


def test_rows_are_the_counted_pixels_with_their_labels() -> None:
    task, ours, theirs, target = Segmentation(4), draws(2, 4, 3, 5), draws(2, 4, 3, 5), labels(2, 3, 5)
    student, teacher, batch = task.rows(ours, theirs, Batch(None, target, size=2))
    for rows, logits in ((student, ours), (teacher, theirs)):
        assert rows.tolist() == [pytest.approx(row) for row, _ in pixels(logits, target)]
    assert batch.target.tolist() == [label for _, label in pixels(ours, target)]
    student, teacher, batch = task.rows(ours, theirs, Batch(None, size=2))
    assert student.shape == teacher.shape == (30, 4)
    assert batch.target is None


def test_rows_of_coarse_logits_have_the_label_at_their_centre() -> None:
    task, target = Segmentation(60, ignore_index=None), torch.arange(2 * 6 * 5).view(2, 6, 5)
    ours = draws(2, 60, 2, 5)
    student, teacher, batch = task.rows(ours, draws(2, 60, 6, 10), Batch(None, target, size=2))
    assert student.shape == teacher.shape == (20, 60)
    assert batch.target.view(2, 2, 5)[0].tolist() == [target[0, 1].tolist(), target[0, 4].tolist()]


def test_agreement_and_kl_are_means_over_pixels() -> None:
    task, metrics = Segmentation(4), Segmentation(4).comparison()
    kl = agree = count = 0.0
    for size in (2, 1):
        ours, theirs, target = draws(size, 4, 3, 4), draws(size, 4, 3, 4), labels(size, 3, 4)
        task.compare(metrics, ModelOutput(ours), ModelOutput(theirs), Batch(None, target, size=size))
        for (a, _), (b, _) in zip(pixels(ours, target), pixels(theirs, target), strict=True):
            p, q = ([math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in (a, b))
            kl += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
            agree += a.index(max(a)) == b.index(max(b))
            count += 1
    assert float(metrics["kl"].compute()) == pytest.approx(kl / count, rel=1e-5)
    assert float(metrics["agreement"].compute()) == pytest.approx(agree / count)


def test_networks_of_other_sizes_are_comparable_and_of_other_classes_not() -> None:
    task, ours = Segmentation(4), ModelOutput(draws(1, 4, 3, 3))
    assert task.comparable(ours, ModelOutput(draws(1, 4, 6, 6)))
    assert not task.comparable(ours, ModelOutput(draws(1, 5, 3, 3)))
    assert not task.comparable(ours, ModelOutput(draws(1, 4)))


# -- predictions and refusals ------------------------------------------------------------------------------------------


def test_predictions_are_rows_of_runs() -> None:
    task, target = Segmentation(3), torch.tensor([[[0, 0, 1], [1, 255, 2]]])
    logits = 4.0 * torch.nn.functional.one_hot(torch.tensor([[[2, 2, 2], [2, 0, 1]]]), 3).movedim(-1, 1)
    (row,) = task.predict(ModelOutput(logits), task.batch((logits, target)))
    assert row["prediction"] == [[2, 4], [0, 1], [1, 1]]
    assert row["shape"] == [2, 3]
    assert row["target"] == [[0, 2], [1, 2], [255, 1], [2, 1]]
    assert row["probability"] == pytest.approx(math.e**4 / (math.e**4 + 2), rel=1e-5)
    assert decode_runs(row["target"], row["shape"]).tolist() == target[0].tolist()
    (row,) = task.predict(ModelOutput(logits), task.batch(draws(1, 1, 4, 6)))
    assert row["shape"] == [4, 6], "of the image, without a target"
    assert row["target"] is None


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (draws(2, 3, 4, 4), labels(2, 4, 4), r"\(2, 3, 4, 4\).* num_classes=4"),
        (draws(2, 4), labels(2, 4, 4), r"\(2, 4\) and the task, which reads \(batch, classes, height, width\)"),
        (draws(2, 4, 4, 4), torch.zeros(2).long(), r"targets \(batch, height, width\).* not torch.int64 \(2,\)"),
        (draws(2, 4, 4, 4), draws(2, 4, 4), "not torch.float32"),
        (draws(2, 4, 4, 4), None, "Segmentation needs labels"),
    ],
)
def test_what_does_not_fit_is_named(logits: Tensor, target: Any, message: str) -> None:
    task = Segmentation(4)
    with pytest.raises(ConfigurationError, match=message):
        task.loss(ModelOutput(logits), Batch(logits, target, size=2))


def test_one_class_is_none() -> None:
    with pytest.raises(ConfigurationError, match="num_classes must be at least 2"):
        Segmentation(1)
