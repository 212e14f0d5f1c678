"""What a loss is: a module whose networks, if any, are built once from shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdlightning.losses.layers import pointwise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LossContext:
    """What a loss may look at once, before training: networks whose parts it reads, and the training data.

    Attributes:
        student: the network that learns.
        teacher: the network that it learns from; None if the teacher is no single network.
        student_taps: names of the pairs' taps in the student, in the pairs' order.
        teacher_taps: names of the pairs' taps in the teacher.
        samples: number of training samples, 0 if unknown. `batch.index` counts from 0 to `samples` - 1.
        labels: `(samples,)` int64, or None where the data do not tell them without being read.
        num_classes: number of classes, or None.
        label_map: for each class of the student, the number of the teacher's class; None if they are the same.
        student_heads: number of attention heads of the layer that each of `student_taps` lies in; None where it is not
            the projection of an attention layer.
        teacher_heads: the same of `teacher_taps`.
        tokens: length of the texts that the shapes were taken from, where the batches have an attention mask; else 0.
    """

    student: nn.Module
    teacher: nn.Module | None
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    samples: int = 0
    labels: Tensor | None = None
    num_classes: int | None = None
    label_map: tuple[int, ...] | None = None
    student_heads: tuple[int | None, ...] = ()
    teacher_heads: tuple[int | None, ...] = ()
    tokens: int = 0


def term_name(cls: type) -> str:
    """The name of a class's term: `FitNet` is `fit_net`, `DKD` is `dkd`."""
    return _snake_case(cls.__name__)


@functools.cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class DistillationLoss(nn.Module):
    """Base of all losses that a configuration can name.

    Subclasses implement `forward(student, teacher, *, batch, progress)` and return a scalar without any outer weight.
    `batch` is the `Batch` of the step and `progress` the share of optimizer steps done, from 0 to 1.
    """

    default_weights: ClassVar[dict[str, float]] = {}
    """Weights of the paper by term name, the task's included; names left out weigh 1."""

    reads_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Batch` that the loss needs and a plain loader may lack ("index"); checked before training."""

    compares_samples: ClassVar[bool] = False
    """True if the value depends on which samples share a micro-batch."""

    @property
    def name(self) -> str:
        """The term's default name: the class's, in snake case."""
        return term_name(type(self))

    def after_optimizer_step(self, progress: float) -> None:
        """Called after each optimizer step, for losses with a state of their own."""


class ResponseLoss(DistillationLoss):
    """A loss on what the networks answer. Reads logits, or whole `ModelOutput`s if `reads` is "output"."""

    reads: ClassVar[str] = "logits"

    compares: ClassVar[Literal["any", "classes", "labels"]] = "any"
    """"classes": softmax over classes, one a sample; "labels": a sigmoid for each label. Tasks without are refused."""

    views: ClassVar[int] = 1
    """How many augmentations of each sample it reads. With several, `student` and `teacher` are lists of the answers to
    each, first view first, and the task's loss is the mean over the views."""

    strong_views: ClassVar[bool] = False
    """Whether the views after the first are to be augmented more strongly than it."""


class TapLoss(DistillationLoss):
    """A loss on tensors from inside the networks, given as channels first: `(B, C)`, `(B, C, L)`, `(B, C, H, W)`."""

    joint: ClassVar[bool] = False
    """False: each pair has a loss of its own, summed with the pairs' weights. True: one, called with lists of all."""

    spatial: ClassVar[str] = "pool_larger"
    """What to do when a pair's spatial sizes differ: "pool_larger" before the loss, or "any" (the loss does it)."""

    padding: ClassVar[Literal["refused", "rows", "masked"]] = "refused"
    """What becomes of padded texts `(B, C, T)`: "rows" hands the tokens over as rows `(N, C)`, before the adapter, for
    losses to which every position is a sample of its own; "masked" is for losses that read the batch's attention mask
    themselves; losses that would count padding are refused there."""

    layers: ClassVar[tuple[str, ...]] = ("hidden_states",)
    """What `LayerKD` pairs of each layer: native taps without their number."""

    layer_map: ClassVar[str] = "uniform"
    """Which of the teacher's layers `LayerKD` pairs with the student's, unless it is told."""

    with_embedding: ClassVar[bool] = False
    """Whether `LayerKD` pairs the networks' embeddings too."""

    deployed: ClassVar[bool] = False
    """True: `bind` puts parts of the teacher into the student, which ships them; then no adapter stands between."""

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """The adapter that the method prescribes for this pair of shapes (with batch dimension).

        Returns:
            None if the method needs none. The default prescribes an identity for equal widths and else a 1×1
            convolution (or a linear layer for vectors) from the student's width to the teacher's.
        """
        return channel_adapter(student, teacher)

    def bind(self, context: LossContext) -> None:
        """Called once, before `adapter` and `build`, for losses that read parts of the networks or the data's size.

        The context names the taps of the loss's own pair, or of all pairs if it is joint.
        The networks are not the loss's own: keep copies, or references outside the module tree.
        """

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Makes the networks that the loss owns, once, from the shapes of its pair (of all pairs if it is joint).

        The shapes are lists, with batch dimension; the student's are those after the adapters.
        """


class FeatureLoss(TapLoss):
    """Knowledge of single samples: hidden maps and vectors."""


class RelationLoss(TapLoss):
    """Knowledge of relations between samples or layers."""

    compares_samples: ClassVar[bool] = True

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """Relations compare samples inside each network, so widths need not agree: no adapter."""
        return None


def channel_adapter(student: Shape, teacher: Shape) -> nn.Module | None:
    """None for equal widths, else a linear map of the channels: 1×1 convolution, or a linear layer for vectors."""
    if student[1] == teacher[1]:
        return None
    return pointwise(len(student), student[1], teacher[1])


def pooled_adapter(student: Shape, teacher: Shape) -> nn.Module:
    """Averages the student's map and maps its channels to the width of the teacher's vector."""
    if len(student) < 3 or len(teacher) != 2:
        raise ValueError("adapter: pooled takes a student's map to a teacher's vector")
    pool: Any = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d}[len(student)]
    return nn.Sequential(pool(1), nn.Flatten(), nn.Linear(student[1], teacher[1]))


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless both are logits of one shape `(B, C)`."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            "student and teacher logits must have one shape (batch, classes): "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
