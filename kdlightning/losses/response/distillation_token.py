"""A second head that learns from the teacher alone: DeiT's distillation token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.numerics import check_positive
from kdlightning.losses.response.hard_label_kd import hard_label_loss
from kdlightning.losses.response.kd import kd_loss


class DistillationToken(FeatureLoss):
    """The distillation head of a DeiT learns the teacher's decisions (or its softened answers), its class head labels.

    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021. For timm's
    distilled vision transformers (`deit_tiny_distilled_patch16_224` and kin; `options` of `timm_model` make them
    smaller). Its pair is the student's distillation head and the teacher's answer:

        >>> from kdlightning import DistillationToken
        >>> from kdlightning.callbacks import FeatureKD
        >>> FeatureKD(DistillationToken(), {"head_dist": "logits"}).name
        'distillation_token'

    in an `OfflineDistillation` with `response=None`. In training the two heads answer apart, so that the task's loss
    reaches the class head alone; in evaluation, and exported, the student answers with the mean of both, as timm's
    models do (the paper adds their softmaxes up).

    Values are `hard_label_loss` or `kd_loss` (with T²) of the second head. Default weights: task 0.5 and
    distillation_token 0.5, the paper's for hard labels; for soft ones it has T = 3, task 0.9 and distillation_token
    0.1.
    """

    spatial = "any"
    default_weights = {"task": 0.5, "distillation_token": 0.5}

    def __init__(self, soft: bool = False, temperature: float = 3.0) -> None:
        """
        Args:
            soft: learn the softened answers instead of the decisions.
            temperature: T > 0 of the softened answers.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.soft, self.temperature = soft, temperature
        self.register_buffer("rows", None, persistent=False)
        self.rows: Tensor | None

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """None: both answer about the same classes."""
        return None

    def bind(self, context: LossContext) -> None:
        """Tells the student to answer with both heads apart while it is trained."""
        student: Any = context.student
        if not hasattr(student, "set_distilled_training"):
            raise ValueError(
                f"{type(student).__name__} has no distillation token: give a distilled model of timm, such as "
                "deit_tiny_distilled_patch16_224, or use HardLabelKD or KD"
            )
        student.set_distilled_training(True)
        self.rows = None if context.label_map is None else torch.tensor(context.label_map)

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of logits `(B, C)`, a scalar."""
        teacher = teacher if self.rows is None else teacher[:, self.rows]
        return (
            kd_loss(student, teacher, temperature=self.temperature) if self.soft else hard_label_loss(student, teacher)
        )
