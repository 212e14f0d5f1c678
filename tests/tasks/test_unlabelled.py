"""Unlabelled: no target reaches a loss, embeddings are judged, labels serve the neighbours' score alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Batch, ConfigurationError, LoadedBatch, ModelOutput, Unlabelled
from kdlightning.tasks.unlabelled import embedding


@pytest.mark.parametrize("kind", ["alone", "list of one", "pair", "mapping", "batch"])
def test_no_batch_has_a_target(kind: str) -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    raw: Any = {"alone": x, "list of one": [x], "pair": (x, y), "mapping": {"x": x, "labels": y}, "batch": Batch(x, y)}
    task = Unlabelled()
    batch = task.batch(raw[kind])
    assert batch.target is None
    inputs = batch.inputs["x"] if kind == "mapping" else batch.inputs
    assert inputs is x
    assert (getattr(batch, "labels", None) is y) == (kind in ("pair", "mapping", "batch"))
    assert task.batch(batch) is batch


def test_loaded_batches_keep_numbers_and_views() -> None:
    x, y, index = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    for data, view in (((x, y), (x + 1, y)), (x, x + 1)):
        batch = Unlabelled().batch(LoadedBatch(data, index, torch.zeros_like(index), (view,)))
        assert batch.target is None
        assert batch.index is index
        assert torch.equal(batch.views[0], x + 1)
        assert batch.size == 4


def test_there_is_no_loss() -> None:
    with pytest.raises(ConfigurationError, match="Unlabelled has no loss of its own"):
        Unlabelled().loss(ModelOutput(torch.zeros(2, 3)), Batch(None))
    with pytest.raises(ConfigurationError, match="neighbours must be at least 0"):
        Unlabelled(neighbours=-1)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ModelOutput(torch.arange(6.0).view(2, 3)), [[0, 1, 2], [3, 4, 5]]),
        (ModelOutput(torch.arange(2.0)), [[0], [1]]),
        (ModelOutput(torch.arange(8.0).view(1, 2, 2, 2)), [[1.5, 5.5]]),
        (ModelOutput(torch.arange(6.0).view(1, 3, 2)), [[2, 3]]),
        (ModelOutput(hidden=torch.arange(6.0).view(1, 3, 2)), [[2, 3]]),
    ],
    ids=["vector", "number", "map", "tokens", "hidden"],
)
def test_embedding_is_one_vector_a_sample(output: ModelOutput, expected: list[list[float]]) -> None:
    assert embedding(output).tolist() == expected


def test_a_network_without_a_tensor_is_named() -> None:
    with pytest.raises(ConfigurationError, match="gave no tensor and no last hidden state"):
        embedding(ModelOutput())


def scores(task: Unlabelled, x: Tensor, labels: Any) -> dict[str, Any]:
    metrics = task.metrics()
    task.update(metrics, ModelOutput(x), task.batch((x, labels)))
    return {name: float(metric.compute()) for name, metric in metrics.items() if metric.update_called}


def test_neighbours_are_asked_only_of_class_numbers() -> None:
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    assert scores(Unlabelled(1), x, torch.tensor([0, 0, 1, 1])) == {"knn_acc": 1.0}
    assert scores(Unlabelled(1), x, torch.tensor([0, 1, 0, 1])) == {"knn_acc": 0.0}
    assert scores(Unlabelled(1), x, torch.rand(4)) == {}
    assert scores(Unlabelled(1), x, torch.rand(4, 3)) == {}
    assert scores(Unlabelled(0), x, torch.tensor([0, 0, 1, 1])) == {}


def test_networks_of_other_widths_are_compared() -> None:
    task, x = Unlabelled(), torch.randn(30, 4)
    rotated = x @ torch.linalg.qr(torch.randn(4, 4))[0] * 3 + 5
    wide = torch.cat([rotated, torch.zeros(30, 2)], dim=1)
    for other, expected in ((wide, 1.0), (torch.randn(30, 6), None)):
        metrics = task.comparison()
        assert task.comparable(ModelOutput(x), ModelOutput(other))
        for part in (slice(0, 20), slice(20, 30)):
            task.compare(metrics, ModelOutput(x[part]), ModelOutput(other[part]), Batch(None))
        value = float(metrics["cka"].compute())
        assert value == pytest.approx(1.0, abs=1e-5) if expected else value < 0.6


def test_predictions_are_embeddings() -> None:
    task, x = Unlabelled(), torch.tensor([[0.5, 1.5]])
    row = {"prediction": [0.5, 1.5], "probability": None}
    assert task.predict(ModelOutput(x), task.batch(x)) == [{**row, "target": None}]
    assert task.predict(ModelOutput(x), task.batch((x, torch.tensor([3])))) == [{**row, "target": 3}]
