"""Real SIGKILLs: the process is gone without a word, in the middle of whatever it did."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    PSKD,
    BestCheckpoint,
    Classification,
    Digits,
    FeatureKD,
    FitNet,
    LatestCheckpoint,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    SelfDistillation,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, which spares their imports")


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; the number of the signal that ended it, 0 if none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.fixture
def train(trainer: Any, tmp_path: Path) -> Any:
    """Trains on digits, resuming if there is a checkpoint; kills itself at optimizer step `kill`."""

    def module(mode: str, net: Any) -> tuple[Any, list[Any]]:
        hint = [FeatureKD(FitNet(), {"stages.0": "stages.0"})]
        task = Classification(10)
        if mode == "offline":
            return OfflineDistillation(net(4, 0, dropout=0.3), net(6, 1), task=task), hint
        if mode == "online":
            return OnlineDistillation(net(4, 0, dropout=0.3), [net(5, 1)], task=task), hint
        teacher = PSKD() if mode == "pskd" else MeanTeacher(0.6)
        return SelfDistillation(net(4, 0, dropout=0.3), teacher, task=task), []

    def run(
        mode: str, name: str, kill: int | None = None, *, workers: int = 0, writing: bool = False, **options: Any
    ) -> None:
        import lightning as L

        from kdlightning import ConvNet

        def net(width: int, seed: int, **more: Any) -> Any:
            torch.manual_seed(seed)
            return ConvNet(10, widths=(width, 2 * width), **more)

        class Kill(L.Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step == kill and not writing:
                    os.kill(os.getpid(), signal.SIGKILL)

        folder = tmp_path / name
        last = folder / "last.ckpt"
        resumed = last.exists()
        L.seed_everything(1, verbose=False)
        module_, callbacks = module(mode, net)
        torch.manual_seed(77 if resumed else 1)
        checkpoints = [LatestCheckpoint(3, dirpath=str(folder)), BestCheckpoint(dirpath=str(folder))]
        runner = trainer(**{"max_epochs": 3, "callbacks": [*callbacks, *checkpoints, Kill()], **options})
        if writing:
            _kill_in_write(runner, kill)
        data = Digits(augment=True, batch_size=32, train_limit=200, num_workers=workers)
        runner.fit(module_, datamodule=data, ckpt_path=str(last) if resumed else None)
        torch.save(module_.state_dict(), tmp_path / f"{name}.pt")

    return run


def _kill_in_write(trainer: Any, kill: int | None) -> None:
    """Dies when half of the checkpoint of step `kill` has reached the disk."""
    from fsspec.implementations.local import LocalFileOpener

    plain = LocalFileOpener.write

    def write(self: Any, data: bytes) -> Any:
        if trainer.global_step == kill:
            plain(self, data[: len(data) // 2])
            self.f.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, data)

    LocalFileOpener.write = write


@pytest.mark.parametrize(
    ("mode", "kills", "options"),
    [
        # Seven steps an epoch; the latest checkpoint at every third step and at each epoch's end.
        ("offline", (2, 5, 13), {}),
        ("offline", (7, 14), {"workers": 2}),
        ("online", (10,), {"val_check_interval": 3}),
        ("pskd", (8, 11), {}),
        ("mean_teacher", (4,), {"accumulate_grad_batches": 2}),
    ],
)
def test_killed_run_ends_where_the_undisturbed_one_ends(
    mode: str, kills: tuple[int, ...], options: dict[str, Any], train: Any, tmp_path: Path
) -> None:
    assert in_child(lambda: train(mode, "whole", **options)) == 0
    for kill in kills:
        assert in_child(lambda kill=kill: train(mode, "cut", kill, **options)) == signal.SIGKILL
    assert in_child(lambda: train(mode, "cut", **options)) == 0
    whole, cut = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_killed_while_it_writes_a_checkpoint(train: Any, tmp_path: Path) -> None:
    assert in_child(lambda: train("offline", "whole")) == 0
    assert in_child(lambda: train("offline", "cut", 6, writing=True)) == signal.SIGKILL
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == 3
    assert in_child(lambda: train("offline", "cut")) == 0
    whole, cut = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
