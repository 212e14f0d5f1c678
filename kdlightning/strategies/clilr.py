"""Collaborative learning with shared intermediate representations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from kdlightning.data.batch import Batch
from kdlightning.losses.peers import mean_of_others
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.strategies.branches import BranchStrategy, check_temperature


class CLILR(BranchStrategy):
    """Collaborative learning, CL-ILR (Song & Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018).

    Term of branch i: T²·KL(softmax(q_i/T) ‖ softmax(z_i/T)), q_i the mean logits of the other branches, detached. The
    gradient that flows from all branches into the split is divided by their number, so that the trunk learns at the
    pace of a single network. Default weights: task 0.5 and clilr 0.5, the paper's β = 0.5.

    The paper writes the cross-entropy with q_i, which has the same gradients, and splits in a tree; here all branches
    leave at one place, as in the public PyTorch code of OKDDip, which weighs both terms 1, takes T = 3 and ramps the
    second up. T² is that code's; a public TensorFlow version has no such factor, which `weights: {clilr: 0.125}`
    gives at T = 2.

    Args:
        split: path of the last shared module.
        branches: number of branches; the paper has 2 and 4.
        temperature: T; the paper has 2.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 0.5, "clilr": 0.5}

    def __init__(self, split: str, branches: int = 4, temperature: float = 2.0) -> None:
        super().__init__(split, branches)
        check_temperature("CLILR", temperature)
        self.temperature = temperature

    @property
    def gradient_scale(self) -> float:
        """One over the number of branches."""
        return 1 / self.branches

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """One loss for each branch."""
        targets = mean_of_others([output.logits.detach() for output in outputs])
        return [
            kd_loss(output.logits, target, temperature=self.temperature)
            for output, target in zip(outputs, targets, strict=True)
        ]
