"""Public implementations of attention transfer."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import Generator, Tensor

from kdlightning.losses import attention_transfer_loss
from peers.base import Case, Peer, Shape, pair


def torchdistill(module: ModuleType, mode: str) -> Any:
    """Its loss, which reads tensors out of nested dictionaries."""
    place = {"io": "output", "path": "map"}
    loss = module.ATLoss({"pair": {"teacher": place, "student": place}}, mode=mode)
    return lambda student, teacher: loss({"map": {"output": student}}, {"map": {"output": teacher}})


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor]:
    return pair(shape, generator, wider=2)


CASES = (
    Case(
        method="attention_transfer",
        function="attention_transfer_loss",
        paper="Zagoruyko and Komodakis 2017",
        form="mean over samples and positions of squared differences of unit attention maps, p = 2",
        shapes=((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8)),
        inputs=_inputs,
        ours=attention_transfer_loss,
        peers=(
            Peer(
                "szagoruyko/attention-transfer",
                "893df5488f93691799f082a70e2521a9dc2ddf2d",
                "utils.py",
                lambda module: module.at_loss,
                note="the authors' code",
                stubs=("nested_dict",),
            ),
            Peer(
                "HobbitLong/RepDistiller",
                "b84f547c5db6a35318d4671d7d5c4de74c822403",
                "distiller_zoo/AT.py",
                lambda module: module.Attention().at_loss,
            ),
            Peer(
                "megvii-research/mdistiller",
                "a08d46f10d6102bd6e3f258ca5ac880b020ea259",
                "mdistiller/distillers/AT.py",
                lambda module: partial(module.single_stage_at_loss, p=2),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                lambda module: torchdistill(module, "code"),
                note='mode="code"',
            ),
            Peer(
                "open-mmlab/mmrazor",
                "90c7af1fdf35a606a2fceaaeb4b6be2f0dac4eb7",
                "mmrazor/models/losses/at_loss.py",
                lambda module: module.ATLoss(),
                stubs=("mmrazor", "mmrazor.registry"),
            ),
            Peer(
                "yoshitomo-matsubara/torchdistill",
                "3e4373c45214c5c56eebac481d5bfe8b8735aa05",
                "torchdistill/losses/mid_level.py",
                lambda module: torchdistill(module, "paper"),
                agrees=False,
                note='mode="paper": sums of the norms of the differences over B; the paper\'s equation, not its code',
            ),
            Peer(
                "AberHu/Knowledge-Distillation-Zoo",
                "65470c846c1300d555815da26999cbe2b51fc815",
                "kd_losses/at.py",
                lambda module: module.AT(2),
                agrees=False,
                note="1e-6 is added to the norms: equal but for that",
            ),
        ),
    ),
)
