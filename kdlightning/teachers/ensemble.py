"""Several trained networks that teach as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import LOWEST, widened
from kdlightning.models.output import ModelOutput
from kdlightning.tasks import Task
from kdlightning.teachers.base import Teacher
from kdlightning.teachers.frozen import FrozenTeacher


class EnsembleTeacher(Teacher):
    """Several frozen networks; their answers are averaged into one, `z = Σ_k w_k z_k`.

    The members are frozen as `FrozenTeacher` freezes one: bit for bit what they were, never in checkpoints, optimizers,
    averages or DDP, and moved by `.to()`. They need not be of one architecture; one of other classes or inputs brings
    its own `label_map` and normalisation. An ensemble provides logits alone: a tap names a tensor of one network.

    With `average="logits"`, the default, answers of every task can be averaged; for classifiers it is the geometric
    mean of their probabilities, at every temperature. With "probabilities" it is the arithmetic mean of softmax(z/T),
    given as the logits whose softmax at T it is: with `KD` at the same T the gradient is that of the weighted mean of
    the members' losses.

    `confidence=True` weighs the members for each sample by how close they are to its label (CA-MKD, Zhang et al.,
    ICASSP 2022): w_k = (1 − exp(CE_k) / Σ_j exp(CE_j)) / (K − 1) with CE_k = −log softmax(z_k) of the label, soft
    targets allowed. The authors divide the weighted sum of K losses by K once more, and add a term on features. Only
    training reads labels: in evaluation mode, and so in all scores of the teacher, the members count alike.

    Args:
        members: the networks, each a `FrozenTeacher` or a bare one; two or more.
        weights: one for each member, 0 or more; they are divided by their sum. None is the plain mean.
        confidence: weigh by the labels instead.
        average: what is averaged, "logits" or "probabilities".
        temperature: T of the averaged probabilities; that of the response.
    """

    constant: ClassVar[bool] = True
    reads_student: ClassVar[bool] = False

    def __init__(
        self,
        members: list[nn.Module],
        weights: Sequence[float] | None = None,
        confidence: bool = False,
        average: Literal["logits", "probabilities"] = "logits",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigurationError(f"EnsembleTeacher needs two members or more, not {len(members)}")
        for member in members:
            if not isinstance(member, nn.Module) or (isinstance(member, Teacher) and type(member) is not FrozenTeacher):
                raise ConfigurationError(
                    f"EnsembleTeacher: members are networks or FrozenTeacher, not {type(member).__name__}"
                )
        if average not in ("logits", "probabilities"):
            raise ConfigurationError(f"EnsembleTeacher: average must be logits or probabilities, not {average!r}")
        if not temperature > 0:
            raise ConfigurationError(f"EnsembleTeacher: temperature must be above 0, not {temperature}")
        if confidence and weights is not None:
            raise ConfigurationError("EnsembleTeacher: confidence makes its own weights: leave weights out")
        self.members = nn.ModuleList(m if isinstance(m, FrozenTeacher) else FrozenTeacher(m) for m in members)
        self.weights = _shares(weights, len(members))
        self.confidence = confidence
        self.average = average
        self.temperature = temperature

    def check_task(self, task: Task) -> None:
        """Refuses tasks whose answers have no probabilities of classes to average or to compare with a label."""
        kind = type(task).__name__
        if self.average == "probabilities" and (not task.class_probabilities or task.dense):
            raise ConfigurationError(
                f"EnsembleTeacher averages the samples' class probabilities, and {kind} has none: set average: logits"
            )
        if self.confidence and (not task.class_probabilities or task.dense or task.counts_tokens):
            raise ConfigurationError(
                f"EnsembleTeacher compares each sample's answer with its class, and {kind} has not one class a sample: "
                "leave confidence out"
            )

    def prepare(self, taps: Iterable[str], *, language: bool, logits: bool) -> None:
        """Readies the members; they give full logits, of language models too."""
        for member in self._frozen:
            member.prepare((), language=False, logits=logits)

    def close(self) -> None:
        """Undoes `prepare`."""
        for member in self._frozen:
            member.close()

    @property
    def _frozen(self) -> list[FrozenTeacher]:
        return [member for member in self.members if isinstance(member, FrozenTeacher)]

    @torch.no_grad()
    def forward(self, batch: Batch, student_output: ModelOutput | None, *, logits: bool = True) -> ModelOutput:
        """The average of the members' answers, or nothing if nobody reads it."""
        if not logits:
            return ModelOutput()
        answers = [widened(member(batch, None).logits) for member in self._frozen]
        for number, answer in enumerate(answers):
            if answer.shape != answers[0].shape:
                raise ConfigurationError(
                    f"EnsembleTeacher: member 0 gives logits {tuple(answers[0].shape)} and member {number} "
                    f"{tuple(answer.shape)}: the class counts differ; give one of them a label_map"
                )
        weights: Sequence[float | Tensor] = self.weights
        if self.confidence and self.training:
            weights = list(confidence_weights(answers, batch.target)[..., None])
        return ModelOutput(self._averaged(list(zip(weights, answers, strict=True))))

    def _averaged(self, weighted: list[tuple[float | Tensor, Tensor]]) -> Tensor:
        if self.average == "logits":
            parts = [weight * answer for weight, answer in weighted]
            return sum(parts[1:], parts[0])
        parts = [(answer / self.temperature).log_softmax(-1) + _log(weight) for weight, answer in weighted]
        return torch.stack(parts).logsumexp(0) * self.temperature


def confidence_weights(answers: Sequence[Tensor], target: Tensor | None) -> Tensor:
    """The weights of CA-MKD `(K, B)`, each sample's of sum 1, from K logits `(B, C)` and labels `(B,)` or `(B, C)`."""
    if target is None:
        raise ConfigurationError("EnsembleTeacher: confidence reads labels, and this batch has none: leave it out")
    target = target.to(answers[0].dtype) if target.is_floating_point() else target
    errors = torch.stack([functional.cross_entropy(answer, target, reduction="none") for answer in answers])
    # A member that forbids the label has an infinite error, and infinities cannot be compared.
    return (1 - errors.clamp(max=-LOWEST).softmax(0)) / (len(answers) - 1)


def _log(weight: float | Tensor) -> float | Tensor:
    if isinstance(weight, Tensor):
        return weight.log()
    return math.log(weight) if weight > 0 else -math.inf


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count:
        raise ConfigurationError(f"EnsembleTeacher: weights has {len(given)} entries for {count} members")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given) > 0:
        raise ConfigurationError(f"EnsembleTeacher: weights must be 0 or more and not all 0, not {given}")
    return [weight / sum(given) for weight in given]
