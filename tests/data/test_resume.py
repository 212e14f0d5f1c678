"""A killed and resumed training sees the batches that the undisturbed one sees."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kdlightning.data.loader import ResumableLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)"),
    pytest.mark.filterwarnings("ignore:.*upgrade_checkpoint"),
]


def train(module: Any, data: Any, folder: Path, workers: int, persistent: bool, resume: bool, **options: Any) -> Any:
    torch.manual_seed(0)
    loaders = [
        ResumableLoader(
            data,
            batch_size=4,
            shuffle=shuffle,
            seed=5,
            num_workers=workers,
            persistent_workers=persistent and bool(workers),
        )
        for shuffle in (True, False)
    ]
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=1, enable_version_counter=False),
        ],
        **options,
    )
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(module, *loaders, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


@pytest.mark.parametrize(
    ("workers", "persistent", "die_at", "options"),
    [
        (0, False, 2, {}),
        (0, False, 5, {}),
        (0, False, 6, {}),
        (0, False, 7, {}),
        (0, False, 9, {"val_check_interval": 2}),
        (0, False, 8, {"accumulate_grad_batches": 2}),
        (0, False, 5, {"limit_train_batches": 4}),
        (2, False, 8, {}),
        (2, True, 8, {"val_check_interval": 3}),
    ],
)
def test_resumed_run_sees_the_same_batches(
    workers: int, persistent: bool, die_at: int, options: dict[str, Any], noisy: Any, recorder: Any, tmp_path: Path
) -> None:
    whole = train(recorder(), noisy(), tmp_path / "whole", 0, False, False, **options).seen
    first = train(recorder(die_at), noisy(), tmp_path / "cut", workers, persistent, False, **options).seen
    second = train(recorder(), noisy(), tmp_path / "cut", workers, persistent, True, **options).seen

    assert len(first) == die_at
    assert first + second == whole
    assert len(whole) == 3 * options.get("limit_train_batches", 6)
