"""Contrastive representation distillation: the student's sample is the teacher's sample, and no other class's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses.base import LossContext, RelationLoss, Shape
from kdlightning.losses.distributed import from_all_ranks
from kdlightning.losses.numerics import check_positive, check_share, full_precision
from kdlightning.losses.relation.samples import flat_samples

EPS = 1e-7
"""Added to denominators, as in the authors' code."""


class CRD(RelationLoss):
    """Contrastive representation distillation (Tian, Krishnan & Isola, ICLR 2020), in the form of the authors' code.

    Both features pass a linear layer to `dimensions` and are L2-normalised. Two banks hold such a vector of each
    network for each training sample. With v one network's vector of sample i, m the other network's bank, K negatives
    from other classes, n samples, Pₙ = 1/n and p(j) = exp(v·m_j / T) / Z,

        −[log p(i)/(p(i) + K·Pₙ + ε) + Σ_k log K·Pₙ/(p(k) + K·Pₙ + ε)], ε = 1e-7,

    is averaged over the batch and added up over the two directions. Z is n times the mean of the exponentials in the
    first batch. After the optimizer's step the rows of the window's samples become norm(momentum·m + (1 − momentum)·v).

    The banks are buffers: on the device, in the checkpoint. With several processes each updates them by the samples of
    all, so that they stay equal (reference code keeps a bank for each). Negatives are drawn on the device, with
    replacement; reference code draws without, in the data set. If the labels of the training data are unknown, other
    samples of any class are negatives. Scores of a whole bank cost one matrix product; the vectors of K negatives,
    which reference code gathers, would be `(B, K, dimensions)`.

    Needs `batch.index`. Default weights: task 1, crd 0.8, those of the CRD benchmark (with KD: task 1, kd 1, crd 0.8).
    """

    spatial = "any"
    reads_fields: ClassVar[frozenset[str]] = frozenset({"index"})
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "crd": 0.8}
    student_bank: Tensor
    teacher_bank: Tensor
    normalizers: Tensor
    labels: Tensor
    by_class: Tensor
    class_start: Tensor
    class_size: Tensor

    def __init__(
        self, dimensions: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        """
        Args:
            dimensions: width of the embeddings.
            negatives: K; at most as many as the smallest number of samples of other classes.
            temperature: T > 0.
            momentum: share of the old row in a bank's update, 0 to 1 (1 excluded).
        """
        super().__init__()
        check_positive("temperature", temperature)
        check_share("momentum", momentum, one_allowed=False)
        if dimensions < 1 or negatives < 1:
            raise ValueError(f"dimensions and negatives must be at least 1, not {dimensions} and {negatives}")
        self.dimensions = dimensions
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.samples = 0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def bind(self, context: LossContext) -> None:
        """Takes the number of training samples and their classes."""
        if context.samples < 2:
            raise ValueError(
                "CRD keeps a row for each training sample, and the loader does not say how many there are: use a "
                "map-style data set"
            )
        self.samples = context.samples
        labels = torch.zeros(0, dtype=torch.int64) if context.labels is None else context.labels
        classes = torch.bincount(labels) if len(labels) else torch.ones(1, dtype=torch.int64)
        if int(classes.max()) == self.samples:
            raise ValueError("CRD's negatives are of other classes, and all training samples have one class")
        starts = classes.cumsum(0) - classes
        # What the data tell is no state of a run: not in the checkpoint.
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", labels.argsort(stable=True), persistent=False)
        self.register_buffer("class_start", starts, persistent=False)
        self.register_buffer("class_size", classes, persistent=False)
        self.count = min(self.negatives, self.samples - int(classes.max()))

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The embeddings, and the banks with random rows of about unit length."""
        self.student_embedding = nn.Linear(math.prod(student[0][1:]), self.dimensions)
        self.teacher_embedding = nn.Linear(math.prod(teacher[0][1:]), self.dimensions)
        bound = 1 / math.sqrt(self.dimensions / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, (2 * torch.rand(self.samples, self.dimensions) - 1) * bound)
        self.register_buffer("normalizers", torch.full((2,), -1.0))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        index = batch.index
        student, teacher = flat_samples(student, teacher)
        own, other = self.embedded(student, teacher)
        chosen = torch.cat([index[:, None], self.draw(index)], 1)
        loss = self._contrast(own, self.teacher_bank, chosen, 0) + self._contrast(other, self.student_bank, chosen, 1)
        if self.training:
            self._waiting.append((from_all_ranks(index), from_all_ranks(own), from_all_ranks(other)))
        return loss

    @full_precision
    def embedded(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both vectors `(B, dimensions)` of unit length."""
        return F.normalize(self.student_embedding(student)), F.normalize(self.teacher_embedding(teacher))

    @torch.no_grad()
    def draw(self, index: Tensor) -> Tensor:
        """Sample numbers `(B, K)` of other classes than each sample's; of other samples where labels are unknown."""
        numbers = torch.rand(len(index), self.count, device=index.device)
        if not len(self.labels):
            places = (numbers * (self.samples - 1)).long().clamp(max=self.samples - 2)
            return places + (places >= index[:, None])
        label = self.labels[index]
        start, size = self.class_start[label][:, None], self.class_size[label][:, None]
        # Places among the samples of other classes; those of the own class are stepped over.
        places = torch.minimum((numbers * (self.samples - size)).long(), self.samples - size - 1)
        return self.by_class[places + size * (places >= start)]

    @full_precision
    def _contrast(self, vectors: Tensor, bank: Tensor, chosen: Tensor, direction: int) -> Tensor:
        powers = ((vectors @ bank.to(vectors.dtype).T).gather(1, chosen) / self.temperature).exp()
        probability = powers / self._normalizer(powers, direction)
        noise = self.count / self.samples
        positive = probability[:, 0]
        right = (positive / (positive + noise + EPS)).log()
        rest = (noise / (probability[:, 1:] + noise + EPS)).log()
        return -(right.sum() + rest.sum()) / len(vectors)

    @torch.no_grad()
    def _normalizer(self, powers: Tensor, direction: int) -> Tensor:
        """Z, settled by the first batch (of all processes together)."""
        mean = from_all_ranks(powers.mean()[None]).mean() * self.samples
        old = self.normalizers[direction]
        settled = torch.where(old < 0, mean.to(old.dtype), old)
        if self.training:
            self.normalizers[direction] = settled
        return settled.to(powers.dtype)

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Moves the rows of the samples seen since the last step; before it, they are still needed for gradients."""
        for index, own, other in self._waiting:
            for bank, vectors in ((self.student_bank, own), (self.teacher_bank, other)):
                mixed = self.momentum * bank[index] + (1 - self.momentum) * vectors.to(bank.dtype)
                bank[index] = F.normalize(mixed)
        self._waiting.clear()
