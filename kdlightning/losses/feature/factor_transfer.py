"""Factor transfer: the student's factors follow those into which a paraphraser puts the teacher's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.feature.paraphraser import convolutions, read_encoder
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import pool_larger


@full_precision
def factor_transfer_loss(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Factor transfer: the mean over samples and elements of |Qˢ/‖Qˢ‖ − Qᵗ/‖Qᵗ‖|, each sample's factor flattened.

    Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, with p = 1; so
    do mmrazor and torchdistill (whose gradient is no number for a factor of zeros). The authors multiply by 500.
    RepDistiller averages the squares over the channels first and multiplies by 200: another loss.

    Args:
        student_factor: `(B, …)`, of any shape: the student's features after the translator.
        teacher_factor: the same shape: the teacher's after the paraphraser; no gradient flows into it.

    Returns:
        A scalar; float32 or better. Unit vectors of many elements have small ones, hence the large weight.
    """
    if student_factor.ndim < 2 or student_factor.shape != teacher_factor.shape:
        raise ValueError(
            "student and teacher factors must have one shape (batch, …): "
            f"{tuple(student_factor.shape)} and {tuple(teacher_factor.shape)}"
        )
    return F.l1_loss(_units(student_factor.flatten(1)), _units(teacher_factor.detach().flatten(1)))


def _units(rows: Tensor) -> Tensor:
    # What F.normalize does, by a multiplication, whose gradient takes fewer passes over the rows than a division's.
    return rows * torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12).reciprocal()


class FactorTransfer(FeatureLoss):
    """Factor transfer; see `factor_transfer_loss`.

    The method has two stages. First a `Paraphraser` is trained on the teacher's features, in a run of its own
    (`kdlightning fit -c supervised/mnist1d_paraphraser`; `kdlightning run factor_transfer` does it all). Then its
    encoder, frozen, makes the teacher's factors, and a translator, which is trained and saved with the run, the
    student's: three 3×3 convolutions to the factor's width, each with BatchNorm and a leaky ReLU of slope 0.1, as in
    RepDistiller, torchdistill and mmrazor (the authors' code has no BatchNorm). Of two sizes the larger factor is
    average-pooled.

    The paper takes the last stage, weight 500 beside task 1.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "factor_transfer": 500.0}
    spatial = "any"

    def __init__(self, paraphraser: str | None = None, key: str | None = None) -> None:
        """
        Args:
            paraphraser: the checkpoint of the run that trained the paraphraser on the same tap of the same teacher.
            key: where that run had several of one width: with what the names of its weights begin, such as
                `adapters.paraphraser.teacher.losses.1`.
        """
        super().__init__()
        # jsonargparse hands the null of a command line's nested option on as text.
        self.source = None if paraphraser == "None" else paraphraser
        self.key = key

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: the translator maps the channels."""

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Reads the paraphraser and makes the translator."""
        if self.source is None:
            raise ValueError(
                "give paraphraser, the checkpoint of the method's first stage: a run with the loss Paraphraser on the "
                "teacher's tap (kdlightning run factor_transfer shows both)"
            )
        (own,), (other,) = student, teacher
        self.paraphraser = read_encoder(self.source, other, self.key)
        width = self.paraphraser(torch.zeros(other)).shape[1]
        self.translator = convolutions(own, (own[1], own[1], width, width), batch_norm=True)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        with torch.no_grad():
            factor = self.paraphraser(teacher)
        return factor_transfer_loss(*pool_larger(self.translator(student), factor))


FT = FactorTransfer
