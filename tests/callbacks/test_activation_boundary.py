"""Activation boundaries in their two stages: the boundaries alone, then the labels alone, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kdlightning import (
    ActivationBoundary,
    Classification,
    DistillModule,
    FeatureKD,
    OfflineDistillation,
    StepSchedule,
)

PAIRS = [
    {"student": "stages.0.1", "teacher": "stages.0.1", "weight": 0.5},
    {"student": "stages.1.1", "teacher": "stages.1.1"},
]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


class Watch(L.Callback):
    """The terms and the weights after each step."""

    def __init__(self) -> None:
        self.terms: list[set[str]] = []
        self.students: list[dict[str, torch.Tensor]] = []
        self.adapters: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.terms.append(set(pl_module._last_terms) - {"loss"})
        self.students.append(state(pl_module.student))
        self.adapters.append(state(pl_module.adapters))


def staged(net: Any, at: float = 0.5) -> tuple[OfflineDistillation, FeatureKD]:
    module = OfflineDistillation(
        net(4),
        net(6, 1),
        task=Classification(5),
        response=None,
        optimizer=sgd,
        weights={"task": StepSchedule(0, 1, at)},
    )
    return module, FeatureKD(ActivationBoundary(), PAIRS, weight=StepSchedule(0.003, 0, at))


def test_first_the_boundaries_alone_are_trained_and_then_the_labels_alone(net: Any, images: Any, trainer: Any) -> None:
    module, callback = staged(net)
    watch = Watch()
    trainer(max_epochs=2, callbacks=[callback, watch]).fit(module, images())
    assert watch.terms == [{"activation_boundary"}] * 2 + [{"task"}] * 2
    begin = state(net(4))
    head = ("fc.weight", "fc.bias")
    for before, after in zip([begin, *watch.students], watch.students[:2], strict=False):
        assert not torch.equal(before["stages.0.0.weight"], after["stages.0.0.weight"])
        assert all(torch.equal(before[name], after[name]) for name in head)
    assert not torch.equal(watch.students[1]["fc.weight"], watch.students[2]["fc.weight"])
    trained = [name for name in watch.adapters[0] if "running" not in name and "tracked" not in name]
    assert any(not torch.equal(watch.adapters[0][name], watch.adapters[1][name]) for name in trained)
    assert same(watch.adapters[1], watch.adapters[3])


def test_the_second_stage_is_a_run_on_labels_alone_from_the_first_ones_weights(
    net: Any, images: Any, trainer: Any
) -> None:
    module, callback = staged(net)
    watch = Watch()
    trainer(max_epochs=2, callbacks=[callback, watch]).fit(module, images())
    student = net(4)
    student.load_state_dict(watch.students[1])
    alone = DistillModule(student, task=Classification(5), optimizer=sgd)
    trainer(max_epochs=1).fit(alone, images())
    assert same(state(student), watch.students[3])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumed_in_either_stage_ends_where_the_undisturbed_one_ends(
    epoch: int, net: Any, images: Any, trainer: Any, tmp_path: Path
) -> None:
    module, callback = staged(net)
    kept = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(max_epochs=3, callbacks=[callback, kept]).fit(module, images())
    again, callback = staged(net)
    trainer(max_epochs=3, callbacks=[callback]).fit(again, images(), ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"))
    assert same(state(module), state(again))


def test_without_schedules_the_term_counts_three_thousandths_beside_the_task(
    net: Any, images: Any, trainer: Any
) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5), response=None)
    runner = trainer(max_steps=1, callbacks=[FeatureKD(ActivationBoundary(), PAIRS)])
    runner.fit(module, images())
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    total = metrics["train/loss_task"] + 0.003 * metrics["train/loss_activation_boundary"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)
