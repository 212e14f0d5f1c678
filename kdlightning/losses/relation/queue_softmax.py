"""Relations to a queue of earlier samples, for distillation without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import LossContext, RelationLoss, Shape, channel_adapter
from kdlightning.losses.distributed import from_all_ranks
from kdlightning.losses.numerics import check_positive, full_precision
from kdlightning.losses.response.softened import softened_kl
from kdlightning.losses.spatial import position_mean

_SIZES = ((50, 16), (100, 32), (250, 64), (500, 128), (1000, 256), (2000, 512), (4000, 1024), (10000, 2048))
LARGEST = 8192


@full_precision
def queue_softmax_loss(student: Tensor, teacher: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """(1/B) Σ_i KL(softmax(Q x̂ᵗ_i / T) ‖ softmax(Q x̂ˢ_i / T)), x̂ = x/‖x‖.

    The rows of Q are teacher embeddings, of this and of earlier batches: pseudo-classes in place of labels. The form is
    that of LightlyTrain's first distillation method; similar relations are in SEED (Fang et al., ICLR 2021). There is
    no T² factor.

    Args:
        student: `(B, D)`, in the teacher's width.
        teacher: `(B, D)`; no gradient flows into it.
        queue: `(Q, D)`, rows of unit length; rows of zeros count as absent.
        temperature: T > 0; 0.07 in the reference.

    Returns:
        A scalar; float32 or better. It is 0 as long as the queue has fewer than two rows.
    """
    check_positive("temperature", temperature)
    if student.ndim != 2 or student.shape != teacher.shape or queue.ndim != 2 or queue.shape[1] != student.shape[1]:
        raise ValueError(
            f"the queue relates embeddings (batch, width) of one width, not of shapes {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(queue.shape)}: map the student's first (adapter: linear)"
        )
    rows = queue.detach().to(student.dtype)
    absent = -1e4 * (rows.abs().amax(1) == 0).to(rows.dtype)
    own, other = (torch.addmm(absent, F.normalize(vectors), rows.T) for vectors in (student, teacher.detach()))
    return softened_kl(own, other, temperature) / temperature**2


class QueueSoftmax(RelationLoss):
    """Relations to a queue of teacher embeddings; see `queue_softmax_loss`. It needs no labels.

    Maps are averaged over their positions. A student of another width gets a linear adapter. The queue is a buffer: on
    the device, in the checkpoint; the teacher's embeddings of each batch, of all processes, go in first and push the
    oldest out, so that it is the same in each process (LightlyTrain's are independent). Default weights: task 1,
    queue_softmax 1.
    """

    spatial = "any"
    queue: Tensor
    place: Tensor

    def __init__(self, size: int | None = None, temperature: float = 0.07) -> None:
        """
        Args:
            size: rows of the queue; by default a quarter to a half of the training samples, at most 8192.
            temperature: T > 0.
        """
        super().__init__()
        check_positive("temperature", temperature)
        if size is not None and size < 2:
            raise ValueError(f"size must be at least 2, not {size}")
        self.size = size
        self.temperature = temperature
        self.samples = 0

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """A linear map of the channels where the widths differ."""
        if len(student) == len(teacher):
            return channel_adapter(student, teacher)
        return None if student[1] == teacher[1] else channel_adapter(student, (*student[:1], teacher[1], *student[2:]))

    def bind(self, context: LossContext) -> None:
        """Takes the number of training samples."""
        self.samples = context.samples

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The queue, empty."""
        size = self.size or next((size for most, size in _SIZES if 0 < self.samples <= most), _largest(self.samples))
        self.register_buffer("queue", torch.zeros(size, teacher[0][1]))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any = None, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        own, other = position_mean(student), position_mean(teacher.detach())
        if self.training:
            self._add(other)
        return queue_softmax_loss(own, other, self.queue, temperature=self.temperature)

    @torch.no_grad()
    def _add(self, embeddings: Tensor) -> None:
        size = len(self.queue)
        rows = F.normalize(from_all_ranks(embeddings).to(self.queue.dtype))[:size]
        places = (self.place + torch.arange(len(rows), device=rows.device)) % size
        self.queue[places] = rows
        self.place.copy_((self.place + len(rows)) % size)


def _largest(samples: int) -> int:
    return 4096 if 0 < samples <= 20000 else LARGEST
