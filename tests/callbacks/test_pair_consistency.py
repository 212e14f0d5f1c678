"""Right on both of a pair, as logged and as defined."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from kdlightning import Classification, DistillModule, TextClassification
from kdlightning.callbacks import PairConsistency
from kdlightning.errors import ConfigurationError
from kdlightning.metrics import PairScores


def test_scores_of_pairs_are_those_of_their_definition() -> None:
    metric = PairScores()
    # Pair 5 has two counterfactuals, pair 2 one, pair 9 none; rows come in any order, one of them twice.
    pair, index = torch.tensor([2, 5, 5, 9, 5, 2, 2]), torch.tensor([7, 1, 0, 8, 3, 6, 7])
    target = torch.tensor([1, 1, 0, 0, 2, 0, 1])
    probabilities = torch.tensor(
        [
            [0.1, 0.8, 0.1],
            [0.2, 0.7, 0.1],
            [0.6, 0.3, 0.1],
            [1, 0, 0],
            [0.5, 0.3, 0.2],
            [0.7, 0.2, 0.1],
            [0.1, 0.8, 0.1],
        ]
    )
    metric.update(pair[:3], index[:3], probabilities[:3], target[:3])
    metric.update(pair[3:], index[3:], probabilities[3:], target[3:])
    values = metric.compute()
    assert float(values["consistency"]) == pytest.approx(2 / 3)
    shifts = [(0.7 - 0.1) + (0.8 - 0.2), (0.6 - 0.2) + (0.7 - 0.3), (0.6 - 0.5) + (0.2 - 0.1)]
    assert float(values["sensitivity"]) == pytest.approx(sum(shifts) / 6)


def test_without_a_pair_there_is_no_score() -> None:
    metric = PairScores()
    one = torch.tensor([1])
    metric.update(one, one, torch.tensor([[0.5, 0.5]]), one)
    assert all(bool(value.isnan()) for value in metric.compute().values())


class Words(nn.Module):
    """Says class 1 to texts of more than four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        longer = (attention_mask.sum(dim=1) > 4).float()
        return torch.stack([1 - longer, longer], dim=1) * self.scale


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {"short": "a b", "long": "a b c d", "longer": "d c b a b"}
    pairs = [("short", "long"), ("short", "short"), ("long", "short"), ("short", "longer")]
    for name in ("train", "dev", "test"):
        rows = []
        for number, (one, other) in enumerate(pairs):
            rows += [
                {"pair_id": f"p{number}", "label": "no", "text": texts[one]},
                {"pair_id": f"p{number}", "label": "yes", "text": texts[other]},
            ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def trainer(path: Path, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=path,
    )  # fmt: skip


def data(folder: Path, **options: object) -> TextClassification:
    options = {"pair_field": "pair_id", "vocab_size": 30, "batch_size": 3, **options}
    return TextClassification(str(folder), **options)  # type: ignore[arg-type]


def test_validation_and_test_log_both_scores(folder: Path) -> None:
    module = DistillModule(Words(), task=Classification(2))
    run = trainer(folder, PairConsistency())
    run.fit(module, datamodule=data(folder))
    assert float(run.callback_metrics["val/consistency"]) == pytest.approx(0.5)
    (scores,) = run.test(module, datamodule=data(folder), verbose=False)
    assert scores["test/consistency"] == pytest.approx(0.5)
    assert scores["test/acc"] == pytest.approx(5 / 8)
    high, low = torch.tensor([0.0, module.student.scale.item()]).softmax(dim=0).flip(0).tolist()  # type: ignore[union-attr]
    assert scores["test/sensitivity"] == pytest.approx((2 * (high - low) + 0 - (high - low)) / 4, abs=1e-6)


def test_data_without_pairs_and_other_tasks_are_refused(folder: Path) -> None:
    plain = data(folder, pair_field=None)
    with pytest.raises(ConfigurationError, match="PairConsistency needs data with pairs"):
        trainer(folder, PairConsistency()).test(DistillModule(Words(), task=Classification(2)), datamodule=plain)


def test_pairs_are_numbered_and_originals_can_be_trained_on_alone(folder: Path) -> None:
    both, alone = data(folder), data(folder, originals_only=True, label_names=["no", "yes"])
    assert both.pairs("test").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # type: ignore[union-attr]
    assert [len(found.part("train")) for found in (both, alone)] == [8, 4]
    assert [len(found.part("val")) for found in (both, alone)] == [8, 8]
    with pytest.raises(ConfigurationError, match="training labels are all 'no'"):
        data(folder, originals_only=True).part("train")


def test_what_would_tear_pairs_apart_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="give val_path"):
        TextClassification(str(folder / "train.jsonl"), pair_field="pair_id").part("train")
    with pytest.raises(ConfigurationError, match="originals_only needs pair_field"):
        TextClassification(str(folder), originals_only=True)
    with pytest.raises(ConfigurationError, match="no field 'pair'"):
        data(folder, pair_field="pair").part("train")
