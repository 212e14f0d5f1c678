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
from kdlightning.losses.relation.noise_contrast import Rows, log_mean_power, noise_contrast
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
    first batch. Then the rows of the batch's samples become norm(momentum·m + (1 − momentum)·v).

    Negatives are drawn on the device: each step puts all training samples into a random order, and each sample takes
    the first K of other classes in it. So its negatives are a draw without replacement, as in the authors' data set,
    but the batch shares the rows: `(B, M)` scores, M = K and the size of the largest class, instead of the
    `(B, K, dimensions)` that the authors gather. If the labels of the training data are unknown, other samples of any
    class are negatives; so they are for a sample whose label is below 0.

    The banks are buffers: on the device, in the checkpoint. With several processes each moves the rows of the samples
    of all, so that the banks stay equal (the authors' code would keep one for each); of a sample that is there twice,
    the first vector counts.

    Needs `batch.index`; mixed samples go under the number of the larger share. Default weights: task 1, crd 0.8, those
    of the CRD benchmark (with KD: task 1, kd 1, crd 0.8).
    """

    spatial = "any"
    compares_samples = False
    reads_fields: ClassVar[frozenset[str]] = frozenset({"index"})
    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "crd": 0.8}
    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor
    settled: Tensor
    labels: Tensor

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
        self.samples = self.count = self.reach = 0
        self._settled = False  # what `settled` holds, known without asking the device

    def bind(self, context: LossContext) -> None:
        """Takes the number of training samples and their classes."""
        self.samples = context.samples
        if self.samples < 2:
            raise ValueError(
                "CRD keeps a row for each training sample, and the loader does not say how many there are: use a "
                "map-style data set"
            )
        labels = torch.full((self.samples,), -1) if context.labels is None else context.labels
        alone = int(labels.max()) + 1 + torch.arange(self.samples)
        labels = torch.where(labels < 0, alone, labels)
        largest = int(labels.unique(return_counts=True)[1].max())
        if largest == self.samples:
            raise ValueError("CRD's negatives are of other classes, and all training samples have one class")
        self.count = min(self.negatives, self.samples - largest)
        self.reach = self.count + largest  # so far in any order there are K samples of other classes than any
        # What the data tell is no state of a run: not in the checkpoint.
        self.register_buffer("labels", labels, persistent=False)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """The embeddings, and the banks with random rows of about unit length."""
        self.student_embedding = nn.Linear(math.prod(student[0][1:]), self.dimensions)
        self.teacher_embedding = nn.Linear(math.prod(teacher[0][1:]), self.dimensions)
        bound = 1 / math.sqrt(self.dimensions / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, (2 * torch.rand(self.samples, self.dimensions) - 1) * bound)
        self.register_buffer("log_normalizers", torch.zeros(2))
        self.register_buffer("settled", torch.tensor(False))

    def forward(self, student: Tensor, teacher: Tensor, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The loss of one pair of features, a scalar."""
        index = batch.index
        own, other = self.embedded(*flat_samples(student, teacher))
        order = self.order()
        left_out = self.left_out(order, index)
        pairs = [
            (vectors, Rows(bank[index].to(vectors.dtype), bank[order].to(vectors.dtype), left_out))
            for vectors, bank in ((own, self.teacher_bank), (other, self.student_bank))
        ]
        noise = self.count / self.samples
        shifts = self._log_normalizers(pairs) + math.log(noise + EPS)
        losses = [noise_contrast(*pair, shift, self.temperature) for pair, shift in zip(pairs, shifts, strict=True)]
        if self.training:
            self._move(index, own, other)
        # The rest is what ε adds to the denominators of the negatives.
        return losses[0] + losses[1] + 2 * self.count * math.log1p(EPS / noise)

    @full_precision
    def embedded(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both vectors `(B, dimensions)` of unit length."""
        return F.normalize(self.student_embedding(student)), F.normalize(self.teacher_embedding(teacher))

    def order(self) -> Tensor:
        """Sample numbers `(M,)` in a random order, enough for K negatives of each sample."""
        return torch.randperm(self.samples, device=self.labels.device)[: self.reach]

    def left_out(self, order: Tensor, index: Tensor) -> Tensor:
        """Which samples of the order are no negatives of each sample, `(B, M)`: those of its class, those after K."""
        own_class = self.labels[order] == self.labels[index][:, None]
        before = (~own_class).cumsum(1, dtype=torch.int32)
        return own_class.logical_or_(before > self.count)

    @torch.no_grad()
    def _log_normalizers(self, pairs: Sequence[tuple[Tensor, Rows]]) -> Tensor:
        """log Z of both directions `(2,)`, settled by the first batch of all processes together."""
        if self._settled:
            return self.log_normalizers.to(pairs[0][0].dtype)
        means = torch.stack([log_mean_power(*pair, self.temperature) for pair in pairs])
        means = from_all_ranks(means[None])
        values = means.logsumexp(0) + math.log(self.samples / len(means))
        if self.training:
            self.log_normalizers.copy_(values)
            self.settled.fill_(True)
            self._settled = True
        return values

    @torch.no_grad()
    def _move(self, index: Tensor, own: Tensor, other: Tensor) -> None:
        """Moves the banks' rows of the samples of all processes."""
        index, vectors = from_all_ranks(index), from_all_ranks(torch.stack([own, other], 1))
        first = (index[:, None] == index).byte().argmax(1)  # one vector for a sample, however often it is there
        for bank, new in zip((self.student_bank, self.teacher_bank), vectors[first].unbind(1), strict=True):
            mixed = torch.lerp(new.to(bank.dtype), bank[index], self.momentum)
            bank.index_copy_(0, index, F.normalize(mixed))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "settled" in state_dict:
            self._settled = bool(state_dict[prefix + "settled"])
