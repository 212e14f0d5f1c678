"""The average of the weights: its values, who sees it, and a resume of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import TensorDataset

from kdlightning import (
    EMA,
    PSKD,
    BestCheckpoint,
    Classification,
    ConfigurationError,
    ConvNet,
    FeatureKD,
    FitNet,
    LatestCheckpoint,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    SelfDistillation,
    load_student,
)
from kdlightning.data.loader import ResumableLoader

HINT = {"stages.0": "stages.0"}


def net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet(5, widths=(width, 2 * width), dropout=0.2)


def module_of(mode: str) -> tuple[Any, list[Any]]:
    options: dict[str, Any] = {"task": Classification(5), "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
    if mode == "offline":
        return OfflineDistillation(net(4, 0), net(6, 1), **options), [FeatureKD(FitNet(), HINT)]
    if mode == "online":
        return OnlineDistillation(net(4, 0), [net(5, 1)], **options), [FeatureKD(FitNet(), HINT)]
    if mode == "pskd":
        return SelfDistillation(net(4, 0), PSKD(), **options), []
    return SelfDistillation(net(4, 0), MeanTeacher(0.5), **options), [FeatureKD(FitNet(), HINT)]


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 5)


class Weights(L.Callback):
    """Notes the student's first weights after each step, and during each validation."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    @staticmethod
    def read(module: Any) -> torch.Tensor:
        return module.student.fc.weight.detach().clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not self.trained or not torch.equal(self.trained[-1], self.read(pl_module)):
            self.trained.append(self.read(pl_module))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(self.read(pl_module))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_follows_its_formula_and_is_what_is_validated(
    accumulate: int, data: Any, trainer: Any, tmp_path: Path
) -> None:
    module, callbacks = module_of("offline")
    expected, weights = Weights.read(module), Weights()
    weights.trained.append(expected)
    runner = trainer(
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[EMA(0.6), *callbacks, weights, LatestCheckpoint(dirpath=str(tmp_path))],
    )
    loaders = [ResumableLoader(data, size, shuffle, seed=3) for size, shuffle in ((8, True), (24, False))]
    runner.fit(module, *loaders)
    averages = []
    for k, value in enumerate(weights.trained[1:], start=1):
        alpha = min(0.6, 1 - 1 / (k + 1))
        expected = alpha * expected + (1 - alpha) * value
        averages.append(expected)
    steps = len(averages)
    assert steps == (6 if accumulate == 1 else 4)
    assert torch.allclose(weights.validated[0], averages[steps // 2 - 1], atol=1e-6)
    assert torch.allclose(weights.validated[1], averages[-1], atol=1e-6)
    assert torch.equal(Weights.read(module), weights.validated[1])
    exported = load_student(tmp_path / "last.ckpt", student=net(4, 9))
    assert torch.equal(exported.fc.weight, weights.validated[1])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("mode", ["offline", "online", "pskd", "mean_teacher"])
def test_resumed_run_ends_where_the_undisturbed_one_ends(
    mode: str, first: bool, data: Any, trainer: Any, tmp_path: Path
) -> None:
    class Broken(Exception):
        pass

    class Break(L.Callback):
        def __init__(self, stop: int | None) -> None:
            self.stop = stop

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if self.stop is not None and trainer.global_step >= self.stop:
                raise Broken

    def run(name: str, stop: int | None = None) -> Any:
        last = tmp_path / name / "last.ckpt"
        module, callbacks = module_of(mode)
        module._seed = None if last.exists() else 11
        kept = [LatestCheckpoint(1, dirpath=str(last.parent)), BestCheckpoint(dirpath=str(last.parent))]
        averaging = [EMA(0.7)]
        listed = [*averaging, *callbacks, *kept] if first else [*callbacks, *kept, *averaging]
        loaders = [ResumableLoader(data, 8, shuffle, seed=3) for shuffle in (True, False)]
        runner = trainer(max_epochs=3, callbacks=[*listed, Break(stop)])
        try:
            runner.fit(module, *loaders, ckpt_path=str(last) if last.exists() else None)
        except Broken:
            assert stop is not None
        return module

    whole = run("whole")
    for stop in (2, 3, 7):
        run("cut", stop)
    resumed = run("cut")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(ends[0]["state_dict"][name], value) for name, value in ends[1]["state_dict"].items())


def test_the_teacher_is_left_alone(data: Any, trainer: Any) -> None:
    module, callbacks = module_of("offline")
    before = copy.deepcopy(module.teacher.network.state_dict())
    trainer(max_epochs=2, callbacks=[EMA(0.5), *callbacks]).fit(module, ResumableLoader(data, 8, True))
    after = module.teacher.network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_a_resume_without_the_callback_is_refused(data: Any, trainer: Any, tmp_path: Path) -> None:
    module, callbacks = module_of("offline")
    kept = LatestCheckpoint(dirpath=str(tmp_path))
    trainer(callbacks=[EMA(), kept, *callbacks]).fit(module, ResumableLoader(data, 8, True))
    module, callbacks = module_of("offline")
    runner = trainer(max_epochs=2, callbacks=[LatestCheckpoint(dirpath=str(tmp_path)), *callbacks])
    with (
        pytest.warns(UserWarning, match="EMA"),
        pytest.raises(ConfigurationError, match="averaged weights.*add kdlightning.callbacks.EMA"),
    ):
        runner.fit(module, ResumableLoader(data, 8, True), ckpt_path=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("mode", ["offline", "pskd"])
def test_lightnings_averaging_is_refused_where_it_would_go_wrong(mode: str, data: Any, trainer: Any) -> None:
    module, callbacks = module_of(mode)
    runner = trainer(callbacks=[*callbacks, EMAWeightAveraging(decay=0.5)])
    with pytest.raises(ConfigurationError, match=r"use kdlightning.callbacks.EMA"):
        runner.fit(module, ResumableLoader(data, 8, True))


def test_weights_are_put_back_if_a_validation_breaks_off(data: Any, trainer: Any) -> None:
    class Stop(L.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                raise KeyError("on purpose")

    module, callbacks = module_of("offline")
    weights = Weights()
    runner = trainer(callbacks=[EMA(0.5), *callbacks, weights, Stop()])
    with pytest.raises(KeyError, match="on purpose"):
        runner.fit(module, ResumableLoader(data, 8, True), ResumableLoader(data, 8, False))
    assert torch.equal(Weights.read(module), weights.trained[-1])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_is_a_share(decay: float) -> None:
    with pytest.raises(ConfigurationError, match="decay must be at least 0 and below 1"):
        EMA(decay)
