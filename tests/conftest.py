"""Quiet and quick runs for every test."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Of the processes that tests start too: several tests run at a time, and threads that wait for a core spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# A job in a shell's background ignores interrupts, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """Lightning's notes on devices and tips would fill the output of failing tests."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _own_seed() -> Iterator[None]:
    """Each test starts from the same random state, and leaves no seed of a run behind."""
    before = os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(0)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    if before is not None:
        os.environ["PL_GLOBAL_SEED"] = before


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; tests that need it are skipped without it."""
    folder = os.environ.get("KDLIGHTNING_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KDLIGHTNING_DATA names no folder of real data sets")
    return Path(folder)


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Makes a bare Trainer: CPU, no logger, no progress bar, no checkpoint unless asked for."""
    import lightning as L

    def make(**options: Any) -> L.Trainer:
        options = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": any("Checkpoint" in type(c).__name__ for c in options.get("callbacks", [])),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
            "log_every_n_steps": 1,
        } | options
        return L.Trainer(**options)

    return make


@pytest.fixture
def fit_until(trainer: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trains under a name for two epochs, or until optimizer step `stop`, where the run breaks off as if killed.

    A second call of the same name goes on from its `last.ckpt`, in a process that begins elsewhere: other random
    states, no seed. `make` gives the module, `data` what `fit` takes; further options are the Trainer's.
    """
    import lightning as L

    from kdlightning import BestCheckpoint, LatestCheckpoint

    class Broken(Exception):
        """On purpose."""

    class Break(L.Callback):
        def __init__(self, stop: int | None) -> None:
            self.stop = stop

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if self.stop is not None and trainer.global_step >= self.stop:
                raise Broken

    def run(
        name: str,
        make: Callable[[], Any],
        *data: Any,
        stop: int | None = None,
        callbacks: Any = (),
        best: bool = True,
        datamodule: Any = None,
        **options: Any,
    ) -> Any:
        last = tmp_path / name / "last.ckpt"
        resumed = last.exists()
        begin = 99 if resumed else 0
        torch.manual_seed(begin)
        module = make()
        torch.manual_seed(begin)  # making it may have seeded
        module._seed = None if resumed else 11
        kept = [LatestCheckpoint(1, dirpath=str(last.parent))]
        kept += [BestCheckpoint(dirpath=str(last.parent))] if best else []
        runner = trainer(**{"max_epochs": 2, "callbacks": [*callbacks, *kept, Break(stop)], **options})
        try:
            runner.fit(module, *data, datamodule=datamodule, ckpt_path=str(last) if resumed else None)
        except Broken:
            assert stop is not None
        return module

    return run
