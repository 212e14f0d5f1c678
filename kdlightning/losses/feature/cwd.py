"""Channel-wise distillation: where each channel responds, as a distribution over the positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlightning.losses.base import FeatureLoss
from kdlightning.losses.feature.maps import common_maps
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.response.softened import softened_kl
from kdlightning.losses.spatial import Layout


@full_precision
def cwd_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, layout: Layout = "channels_first"
) -> Tensor:
    """Channel-wise distillation: T²/(B·C) · Σ_{b,c} KL(teacher ‖ student) of softmaxes over the positions.

    Each channel's map, divided by T, becomes a distribution over its H·W positions. Shu et al., "Channel-wise
    Knowledge Distillation for Dense Prediction", ICCV 2021; so are the authors' code (which takes the logarithm of
    a softmax: infinite where features lie far apart) and mmrazor's `ChannelWiseDivergence`.

    Args:
        student: `(B, C, L)`, `(B, C, H, W)`, or tokens `(B, N, D)` with `layout="channels_last"`. The formula has no
            meaning for vectors, which have no positions.
        teacher: as many dimensions and channels; no gradient flows into it. Of two sizes the larger is average-pooled
            (mmrazor refuses them).
        temperature: T > 0; 1 is the default of both.
        layout: which dimension holds the channels, of both.

    Returns:
        A scalar; float32 or better.
    """
    check_positive("temperature", temperature)
    student, teacher = common_maps("CWD", student, teacher, layout, same_channels=True)
    return softened_kl(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature)


class CWD(FeatureLoss):
    """Channel-wise distillation; see `cwd_loss`. A student of another width gets a 1×1 convolution as adapter.

    Made for dense prediction. Default weight 5, mmrazor's for a segmenter's logits with T = 1; it has 10 for the levels
    of a detector's pyramid.
    """

    default_weights = {"cwd": 5.0}

    def __init__(self, temperature: float = 1.0) -> None:
        """
        Args:
            temperature: T > 0 of both softmaxes over the positions.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of maps, a scalar."""
        return cwd_loss(student, teacher, temperature=self.temperature)
