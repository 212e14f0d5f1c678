"""ReduceLROnPlateau is judged by a metric in the direction in which it is better."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import lr_scheduler

from kdlightning import Classification, ConfigurationError, DistillModule


@pytest.mark.parametrize(
    ("scheduler", "monitor"),
    [
        (partial(lr_scheduler.ReduceLROnPlateau), "val/loss"),
        (partial(lr_scheduler.ReduceLROnPlateau, mode="max"), "val/acc"),
        (partial(ReduceLROnPlateau, monitor="val/acc", mode="max"), "val/acc"),
        (partial(ReduceLROnPlateau, monitor="val/kl"), "val/kl"),
    ],
)
def test_plateau_watches_what_its_mode_is_for(scheduler: Any, monitor: str, net: Any) -> None:
    module = DistillModule(net(4, 0), task=Classification(5), lr_scheduler=scheduler)
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == monitor


@pytest.mark.parametrize(("monitor", "mode", "better"), [("val/acc", "min", "max"), ("val/loss", "max", "min")])
def test_a_mode_in_the_wrong_direction_is_refused(monitor: str, mode: str, better: str, net: Any) -> None:
    scheduler = partial(ReduceLROnPlateau, monitor=monitor, mode=mode)
    module = DistillModule(net(4, 0), task=Classification(5), lr_scheduler=scheduler)
    with pytest.raises(ConfigurationError, match=f"{monitor} is better.*set mode: {better}"):
        module.configure_optimizers()
