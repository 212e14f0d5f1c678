"""Public implementations of hard-label distillation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from kdlightning.losses import hard_label_loss
from peers.base import Case, Peer
from peers.kd import SHAPES, logits


def _authors(module: ModuleType) -> Any:
    loss = module.DistillationLoss(lambda outputs, labels: outputs.new_zeros(()), lambda x: x, "hard", 1.0, 1.0)
    return lambda student, teacher: loss(teacher, (student, student), None)


CASES = (
    Case(
        method="hard_label_kd",
        function="hard_label_loss",
        paper="Touvron et al. 2021",
        form="cross-entropy with the teacher's argmax",
        shapes=SHAPES,
        inputs=logits,
        ours=hard_label_loss,
        peers=(
            Peer(
                "facebookresearch/deit",
                "7e160fe43f0252d17191b71cbb5826254114ea5b",
                "losses.py",
                _authors,
                note="the authors' code, with all weight on the distilled part",
            ),
        ),
    ),
)
