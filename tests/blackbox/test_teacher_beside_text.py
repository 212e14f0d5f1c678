"""A white-box teacher beside the text of a method with one task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning.blackbox.answer_only import AnswerOnly
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.errors import ConfigurationError
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation


def make_network(seed: int) -> Any:
    torch.manual_seed(seed)
    config = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=config)


@pytest.fixture
def data(sums: Callable[[int], list], tmp_path: Path) -> BlackBoxData:
    """Sums with their answers."""
    return BlackBoxData(
        AnswerOnly(inference_tokens=2), sums(20), store=str(tmp_path / "text.sqlite"), vocab_size=300, progress=False
    )


def test_it_adds_its_divergence_on_the_labels(trainer: Any, data: BlackBoxData) -> None:
    module = BlackBoxDistillation(make_network(0), teacher=make_network(1), inference_every=0)
    run = trainer(max_steps=1, max_epochs=-1)
    run.fit(module, datamodule=data)
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    assert values["train/loss"] == pytest.approx(
        0.5 * values["train/loss_task"] + 0.5 * values["train/loss_forward_kl"]
    )
    assert values["train/loss_forward_kl"] > 0
    assert module.teacher is not None
    assert not module.labels_alone


def test_a_teacher_that_is_the_student_is_refused() -> None:
    network = make_network(0)
    with pytest.raises(ConfigurationError, match="the same object"):
        BlackBoxDistillation(network, teacher=network)
