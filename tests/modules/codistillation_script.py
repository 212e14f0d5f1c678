"""Two processes on CPU codistil; each writes down what it holds. Started by test_codistillation.py."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import kdlightning as kd
from kdlightning.data.loader import ResumableLoader

INTERVAL, BURN_IN, SEED, BROKEN_OFF = 4, 2, 11, 7
EPOCHS = {"plain": 2, "accumulated": 4}
ACCUMULATE = {"plain": 1, "accumulated": 2}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kd.ConvNet(5, widths=(3, 4), dropout=0.3)


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(22, 1, 8, 8, generator=generator), torch.randint(5, (22,), generator=generator))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Recorder(L.Callback):
    """Notes the network and the copies after every optimizer step, and keeps the checkpoint of one step in mid-run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own: dict[int, Any] = {}
        self.copies: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.own.setdefault(trainer.global_step, state(pl_module.student))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        copies = {rank: state(copy) for rank, copy in pl_module.strategy.copies.items()}
        self.copies.setdefault(trainer.global_step, copies)
        last, kept = self.folder / "last.ckpt", self.folder / "kept.ckpt"
        if trainer.is_global_zero and trainer.global_step == BROKEN_OFF and last.exists() and not kept.exists():
            shutil.copy(last, kept)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.own.setdefault(trainer.global_step, state(pl_module.student))


def run(name: str, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    os.environ.pop("PL_GLOBAL_SEED", None)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else int(os.environ.get("LOCAL_RANK", 0))
    # Without a seed for all, every process builds another network.
    student = network(100 * rank + (50 if resume else 0))
    module = kd.OnlineDistillation(
        student, task=kd.Classification(5), strategy=kd.Codistillation(INTERVAL, burn_in=BURN_IN), optimizer=sgd
    )
    module._seed = None if resume else SEED
    recorder = Recorder(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=EPOCHS[name],
        accumulate_grad_batches=ACCUMULATE[name],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[recorder, kd.LatestCheckpoint(1, dirpath=str(folder))],
    )
    loaders = [ResumableLoader(images(), 2, shuffle, seed=3) for shuffle in (True, False)]
    trainer.fit(module, *loaders, ckpt_path=None if resume is None else str(resume))
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    return {"own": recorder.own, "copies": recorder.copies, "last": state(module), "metrics": metrics}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for _name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(_name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    reports = {each: run(each, target / each) for each in EPOCHS}
    reports["resumed"] = run("plain", target / "resumed", resume=target / "plain" / "kept.ckpt")
    torch.save(reports, target / f"rank{torch.distributed.get_rank()}.pt")
