"""Further metrics of classification and regression, against plain formulas over the whole set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import Classification, ConfigurationError, ModelOutput, Regression

GENERATOR = torch.Generator().manual_seed(2)


def scores(task: Any, answers: Tensor, target: Tensor) -> dict[str, float]:
    metrics = task.metrics()
    for part in (slice(0, 30), slice(30, None)):
        batch = task.batch((torch.zeros(len(answers[part]), 1), target[part]))
        task.update(metrics, ModelOutput(answers[part]), batch)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_and_matthews(classes: int) -> None:
    target = torch.randint(classes, (50,), generator=GENERATOR)
    logits = torch.randn(50, classes, generator=GENERATOR) + torch.nn.functional.one_hot(target, classes)
    found = scores(Classification(classes, metrics=["f1", "matthews", "f1"]), logits, target)
    assert list(found) == ["acc", "f1", "matthews"]
    guesses, truth = logits.argmax(1).tolist(), target.tolist()
    pairs = list(zip(guesses, truth, strict=True))
    each = [2 * sum(g == c == t for g, t in pairs) / (guesses.count(c) + truth.count(c)) for c in range(classes)]
    assert found["f1"] == pytest.approx(each[1] if classes == 2 else sum(each) / classes, rel=1e-5)
    right, n = sum(g == t for g, t in pairs), len(pairs)
    p, q = ([row.count(c) for c in range(classes)] for row in (guesses, truth))
    both = right * n - sum(a * b for a, b in zip(p, q, strict=True))
    spread = math.sqrt((n * n - sum(a * a for a in p)) * (n * n - sum(b * b for b in q)))
    assert found["matthews"] == pytest.approx(both / spread, rel=1e-5)
    assert list(Classification(classes).metrics()) == ["acc"]


def test_soft_targets_count_as_their_greatest_class() -> None:
    target = torch.randint(3, (50,), generator=GENERATOR)
    logits = torch.randn(50, 3, generator=GENERATOR)
    soft = 0.8 * torch.nn.functional.one_hot(target, 3) + 0.1
    task = Classification(3, metrics=("f1",))
    assert scores(task, logits, soft) == scores(task, logits, target)


def correlation(a: list[float], b: list[float]) -> float:
    x, y = sum(a) / len(a), sum(b) / len(b)
    top = sum((u - x) * (v - y) for u, v in zip(a, b, strict=True))
    return top / math.sqrt(sum((u - x) ** 2 for u in a) * sum((v - y) ** 2 for v in b))


def ranks(values: list[float]) -> list[float]:
    """Ranks, of equal values their mean."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


@pytest.mark.parametrize("shape", [(50, 1), (50,)])
def test_pearson_and_spearman(shape: tuple[int, ...]) -> None:
    target = (torch.rand(50, generator=GENERATOR) * 10).round() / 2
    answers = (target + torch.randn(50, generator=GENERATOR)).view(shape)
    found = scores(Regression(metrics=["pearson", "spearman"]), answers, target)
    ours, theirs = answers.flatten().tolist(), target.tolist()
    assert found["pearson"] == pytest.approx(correlation(ours, theirs), rel=1e-4)
    assert found["spearman"] == pytest.approx(correlation(ranks(ours), ranks(theirs)), rel=1e-4)
    assert found["rmse"] == pytest.approx(
        math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / 50), rel=1e-5
    )


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Classification: metrics are f1, matthews, not 'mathews'; did you"):
        Classification(2, metrics=["mathews"])
    with pytest.raises(ConfigurationError, match="Regression: metrics are pearson, spearman, not 'f1'"):
        Regression(metrics=["f1"])
    with pytest.raises(ConfigurationError, match="pearson is of single numbers, and num_outputs is 2: leave it out"):
        Regression(2, metrics=["pearson"])
