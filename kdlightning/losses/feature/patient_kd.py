"""What a transformer says of a whole text, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, Shape
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.token_mask import token_mask


@full_precision
def patient_kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Patient knowledge distillation: the mean of (hˢ/‖hˢ‖ − hᵗ/‖hᵗ‖)² over samples, layers and channels.

    Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, whose equation sums the squares
    over samples, layers and channels; this is the mean of their code, to which their weights belong.

    Args:
        student: states of the first token `(B, layers, D)` (any leading dimensions).
        teacher: the same shape; no gradient flows into it.

    Returns:
        A scalar from 0 to 4/D; float32 or better.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            "states of student and teacher must have one shape (batch, layers, width): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return F.mse_loss(F.normalize(student, dim=-1), F.normalize(teacher.detach(), dim=-1))


class PatientKD(FeatureLoss):
    """Patient knowledge distillation of the first token ([CLS]; a vision transformer's class token), layer by layer.

    See `patient_kd_loss`. `LayerKD(PatientKD())` is PKD-Skip, which leaves the last layer to the loss on logits;
    `LayerKD(PatientKD(), layers={1: 7, 2: 8, 3: 9, 4: 10, 5: 11})` its PKD-Last for 6 layers of 12. All networks of the
    paper have one width; students of another get a linear map for each layer, which is trained with them.

    Default weight: 100. The paper tries 10, 100, 500 and 1,000 beside KD with temperatures of 5, 10 and 20 and chooses
    by validation.
    """

    joint = True
    spatial = "any"
    padding = "masked"
    layer_map: ClassVar[str] = "skip"
    default_weights = {"patient_kd": 100.0}

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList()

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """None: the loss has its own maps, of one token."""
        return None

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Makes the maps between layers of different widths."""
        if any(len(shape) != 3 for shape in (*student, *teacher)):
            raise ValueError("it reads the first token, and a tap holds none: use LayerKD, or name hidden_states")
        for ours, theirs in zip(student, teacher, strict=True):
            equal = ours[1] == theirs[1]
            self.maps.append(nn.Identity() if equal else nn.Linear(ours[1], theirs[1], bias=False))

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The mean over the pairs, a scalar; states `(B, D, L)`."""
        values = []
        for ours, theirs, mapped in zip(student, teacher, self.maps, strict=True):
            own, other = (_first_token(states, batch) for states in (ours, theirs))
            values.append(patient_kd_loss(mapped(own), other))
        return torch.stack(values).mean()


def _first_token(states: Tensor, batch: Any) -> Tensor:
    """`(B, D)`: the state of each text's first token, which padding may precede."""
    mask = token_mask(batch, states.shape[2])
    if mask is None:
        return states[:, :, 0]
    place = mask.to(torch.uint8).argmax(dim=1)
    return states.gather(2, place[:, None, None].expand(-1, states.shape[1], 1)).squeeze(2)
