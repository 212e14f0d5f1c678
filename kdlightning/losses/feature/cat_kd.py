"""Class attention transfer: where the student sees each class, the teacher must see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.heads import classifier_of, parameters_of, teacher_classifier
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.spatial import Layout, channels_first, pool_to

_SMALLEST = 1e-12
"""Maps of a smaller norm have no direction: they become zeros, without gradient."""


@full_precision
def cat_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    resolution: int = 2,
    normalize: bool = True,
    layout: Layout = "channels_first",
) -> Tensor:
    """Class attention transfer: the mean over samples, classes and positions of (aˢ − aᵗ)².

    a is a class's activation map, average-pooled to `resolution` × `resolution` and divided by its L2 norm. Guo, Yan,
    Li & Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023. The authors' code agrees; its
    configurations of pairs of one family (ResNet-32x4 → ResNet-8x4 among them) turn the normalisation off, so their
    weights are of another scale there.

    Args:
        student: class activation maps `(B, classes, H, W)`, of signals `(B, classes, L)`, or `(B, N, classes)` of
            tokens with `layout="channels_last"`, pooled along the sequence: fold patches to their grid first. `CATKD`
            makes them from features.
        teacher: the same classes; its size may differ. No gradient flows into it.
        resolution: side of the pooled maps; 2 in the paper, 4 for ShuffleNets. Smaller maps are repeated.
        normalize: divide each map by its norm; a map of zeros stays as it is.
        layout: which dimension holds the classes, of both.

    Returns:
        A scalar; float32 or better.
    """
    _check_resolution(resolution)
    if student.ndim not in (3, 4) or student.ndim != teacher.ndim:
        raise ValueError(
            "CAT-KD needs two class activation maps (batch, classes, positions…): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = channels_first(student, layout), channels_first(teacher, layout).detach()
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "CAT-KD compares maps of the same samples and classes: "
            f"{tuple(student.shape[:2])} and {tuple(teacher.shape[:2])}"
        )
    ours, theirs = _pooled(student, resolution), _pooled(teacher, resolution)
    return F.mse_loss(_directions(ours), _directions(theirs)) if normalize else F.mse_loss(ours, theirs)


def _check_resolution(resolution: int) -> None:
    if resolution < 1:
        raise ValueError(f"resolution must be above 0, not {resolution}")


def _pooled(maps: Tensor, resolution: int) -> Tensor:
    return pool_to(maps, [resolution] * (maps.ndim - 2))


def _directions(maps: Tensor) -> Tensor:
    """Maps over their norms, `(B, C, positions)`."""
    maps = maps.flatten(2)
    norms = torch.linalg.vector_norm(maps, dim=2, keepdim=True)
    return maps / norms.masked_fill(norms < _SMALLEST, float("inf"))


class CATKD(FeatureLoss):
    """Class attention transfer; see `cat_kd_loss`.

    The taps are the last maps before pooling. A class activation map is what the network's own classifier says of each
    position: its weight as a 1×1 convolution, and its bias, so that a map's mean is the class's logit where the network
    averages and classifies. (The authors rebuild their networks so, and leave the bias out.) The student's classifier
    learns from the loss too; it stays the student's and is saved and optimised there alone. Of networks that normalise
    between pooling and classifier, or classify a class token, as most vision transformers do, the maps are what the
    classifier says of single positions, and their means are not the logits.

    Pooling and classifier change places, which alters nothing and saves the full maps. The paper has weights of 0.7 to
    600 by pair on CIFAR-100 beside cross-entropy 1 (15 for ResNet-32x4 → ResNet-8x4, without normalisation).
    """

    spatial = "any"

    def __init__(self, resolution: int = 2, normalize: bool = True) -> None:
        """
        Args:
            resolution: side of the pooled maps.
            normalize: divide each map by its norm.
        """
        super().__init__()
        _check_resolution(resolution)
        self.resolution = resolution
        self.normalize = normalize
        self._heads: tuple[nn.Linear, ...] = ()
        self.register_buffer("rows", None, persistent=False)
        self.rows: Tensor | None

    def adapter(self, student: Shape, teacher: Shape) -> None:
        """None: maps of classes are compared, and both networks have the same."""

    def bind(self, context: LossContext) -> None:
        """Finds both classifiers."""
        # In a tuple, and so no parts of this module.
        self._heads = classifier_of(context.student), teacher_classifier(context)
        self.rows = None if context.label_map is None else torch.tensor(context.label_map)
        ours, theirs = (head.out_features for head in self._heads)
        if self.rows is not None:
            theirs = len(self.rows)
        if ours != theirs:
            raise ValueError(
                f"CAT-KD compares the maps of the same classes, and the student has {ours}, the teacher {theirs}: "
                "give FrozenTeacher a label_map"
            )

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Checks that each classifier reads its tapped map."""
        for name, shape, head in zip(("student", "teacher"), (student[0], teacher[0]), self._heads, strict=True):
            if len(shape) not in (3, 4) or shape[1] != head.in_features:
                raise ValueError(
                    f"the {name}'s classifier reads {head.in_features} features and its tap gives {tuple(shape[1:])}: "
                    "tap its last map before pooling"
                )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of two last maps, a scalar."""
        own, other = (_pooled(features, self.resolution) for features in (student, teacher.detach()))
        ours = _activation_maps(own, *parameters_of(self._heads[0], own, learns=True))
        weight, bias = parameters_of(self._heads[1], other)
        if self.rows is not None:
            weight, bias = weight[self.rows], None if bias is None else bias[self.rows]
        theirs = _activation_maps(other, weight, bias)
        return cat_kd_loss(ours, theirs, resolution=self.resolution, normalize=self.normalize)


def _activation_maps(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a classifier says of each position."""
    convolve: Any = F.conv1d if features.ndim == 3 else F.conv2d
    return convolve(features, weight.reshape(*weight.shape, *[1] * (features.ndim - 2)), bias)
