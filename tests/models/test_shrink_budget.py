"""The largest student that fits a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import SizeBudget, student_from_teacher, transformers_model
from kdlightning.errors import ConfigurationError
from kdlightning.models.shrink import budget as budget_module

CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "num_labels": 2,
}


@pytest.fixture(scope="module")
def teacher() -> Any:
    return transformers_model(model_type="bert", config=CONFIG)


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_largest_of_the_family(teacher: Any) -> None:
    family = {
        (depth, width): size(student_from_teacher(teacher, layers=depth, hidden_size=width))
        for depth in (1, 2, 3)
        for width in (4, 8, 12, 16)
    }
    for limit in (size(teacher), size(teacher) - 1, 3000, min(family.values())):
        student = student_from_teacher(teacher, budget=SizeBudget(parameters=limit))
        assert size(student) == max(count for count in family.values() if count <= limit)
    fixed = student_from_teacher(teacher, layers=[2], budget=SizeBudget(parameters=3000, hidden_sizes=[4, 12]))
    assert (fixed.config.num_hidden_layers, fixed.config.hidden_size) == (1, 12)
    with pytest.raises(ConfigurationError, match="nothing fits; the smallest of the family"):
        student_from_teacher(teacher, budget=SizeBudget(parameters=min(family.values()) - 1))
    with pytest.raises(ConfigurationError, match="give parameters or latency_ms"):
        student_from_teacher(teacher, budget=SizeBudget())


def test_a_budget_of_milliseconds(teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert student_from_teacher(teacher, budget=SizeBudget(latency_ms=1e6)).config.num_hidden_layers == 3
    # As if each layer and unit took its time.
    monkeypatch.setattr(
        budget_module.SizeBudget, "_milliseconds", lambda self, encoder, sizes: len(sizes.layers) * sizes.hidden / 10
    )
    file = tmp_path / "choice" / "sizes.json"
    budget = SizeBudget(latency_ms=2.5, file=str(file))
    chosen = student_from_teacher(teacher, budget=budget)
    # 2 layers of width 12 have more parameters than 3 of 8, and take as long.
    assert (chosen.config.num_hidden_layers, chosen.config.hidden_size) == (2, 12)
    monkeypatch.setattr(budget_module.SizeBudget, "_milliseconds", lambda *arguments: 99.0)
    again = student_from_teacher(teacher, budget=budget)
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), again.parameters(), strict=True))
    with pytest.raises(ConfigurationError, match="nothing fits"):
        student_from_teacher(teacher, budget=SizeBudget(latency_ms=2.5))
    file.write_text("{}")
    with pytest.raises(ConfigurationError, match="holds no choice: delete it"):
        student_from_teacher(teacher, budget=budget)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="let one process choose"):
        student_from_teacher(teacher, budget=SizeBudget(latency_ms=2.5))
