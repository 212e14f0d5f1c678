"""How far a run is: with max_epochs, max_steps and loaders without a length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from kdlightning import PSKD, Classification, ConfigurationError, LinearSchedule, OfflineDistillation, SelfDistillation
from kdlightning.schedules import Schedule


class Notes(Schedule):
    """Notes the moments at which it is asked."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []

    def __call__(self, progress: float, epoch: float) -> float:
        if (progress, epoch) not in self.moments:
            self.moments.append((progress, epoch))
        return 1.0


class Stream(IterableDataset):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return iter([self.samples[number] for number in range(len(self.samples))])


@pytest.mark.parametrize(
    ("options", "progress", "epochs"),
    [
        # Four batches an epoch.
        ({"max_epochs": 2}, [i / 8 for i in range(8)], [i / 4 for i in range(8)]),
        ({"max_epochs": 100, "max_steps": 6}, [i / 6 for i in range(6)], [i / 4 for i in range(6)]),
        ({"max_epochs": -1, "max_steps": 6}, [i / 6 for i in range(6)], [i / 4 for i in range(6)]),
        ({"max_epochs": 2, "limit_train_batches": 2}, [i / 4 for i in range(4)], [i / 2 for i in range(4)]),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, [i / 4 for i in range(4)], [i / 2 for i in range(4)]),
    ],
)
def test_schedules_hear_the_share_of_the_run_and_the_epoch(
    options: dict[str, Any], progress: list[float], epochs: list[float], net: Any, loader: Any, trainer: Any
) -> None:
    notes = Notes()
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), weights={"kd": notes})
    trainer(**options).fit(module, loader())
    assert [moment[0] for moment in notes.moments] == pytest.approx(progress)
    assert [moment[1] for moment in notes.moments] == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({"max_epochs": 3}, 3), ({"max_epochs": -1, "max_steps": 9}, 3), ({"max_epochs": 100, "max_steps": 8}, 2)],
)
def test_ps_kd_counts_the_epochs_that_there_will_be(
    options: dict[str, Any], epochs: int, net: Any, resumable_loader: Any, trainer: Any
) -> None:
    module = SelfDistillation(net(4, 0), PSKD(), task=Classification(5))
    trainer(**options).fit(module, resumable_loader())
    assert module.teacher is not None
    assert module.teacher.total_epochs == epochs


def test_a_schedule_on_progress_needs_a_length(net: Any, samples: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), weights={"kd": LinearSchedule(0, 1)})
    with pytest.raises(ConfigurationError, match="without length.*unit: epochs"):
        trainer(max_epochs=2).fit(module, DataLoader(Stream(samples), 8))
    notes = Notes()
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), weights={"kd": notes})
    trainer(max_epochs=-1, max_steps=6).fit(module, DataLoader(Stream(samples), 8))
    assert [moment[0] for moment in notes.moments] == pytest.approx([i / 6 for i in range(6)])
    module = OfflineDistillation(
        net(4, 0), net(6, 1), task=Classification(5), weights={"kd": LinearSchedule(0, 1, until=2, unit="epochs")}
    )
    trainer(max_epochs=2).fit(module, DataLoader(Stream(samples), 8))
    assert torch.isfinite(module.trainer.callback_metrics["train/loss"])
