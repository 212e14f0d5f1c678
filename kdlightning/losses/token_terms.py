"""The divergences of language models as terms of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.linear_divergence import linear_divergence
from kdlightning.losses.numerics import check_positive, check_share
from kdlightning.losses.token import forward_kl, jensen_shannon, reverse_kl


class TokenDivergence(ResponseLoss):
    """Base: the sum of a divergence over the counted tokens of a micro-batch.

    The framework divides by the task's counted tokens over the whole accumulation window. Where both outputs give
    `hidden` and `head` the full logits are never formed (`linear_divergence`), else `logits` are compared. Vocabularies
    that differ by padded columns are cut to the smaller one; whether ids agree is checked where the models are made.
    """

    reads = "output"

    counts_tokens: ClassVar[bool] = True
    """The value is a sum over counted tokens, not a mean."""

    divergence: ClassVar[str]
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, temperature: float = 1.0, chunk_size: int | None = None) -> None:
        """
        Args:
            temperature: both logits are divided by it; there is no T² factor.
            chunk_size: positions whose logits are alive at a time; None chooses.
        """
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.chunk_size = chunk_size

    def options(self) -> dict[str, float]:
        """Options of the divergence besides the temperature."""
        return {}

    def forward(self, student: Any, teacher: Any, *, batch: Any, progress: float = 0.0) -> Tensor:
        """The sum over the positions that `batch.mask (B, T)` counts, of two `ModelOutput`s."""
        if any(output.hidden is None or output.head is None for output in (student, teacher)):
            return self._from_logits(student.logits, teacher.logits, batch.mask)
        own, other = student.head, teacher.head
        vocabulary = min(len(own.weight), len(other.weight))
        return linear_divergence(
            student.hidden,
            _cut(own.weight, vocabulary),
            teacher.hidden,
            _cut(other.weight, vocabulary),
            batch.mask,
            divergence=self.divergence,
            temperature=self.temperature,
            student_bias=_cut(own.bias, vocabulary),
            teacher_bias=_cut(other.bias, vocabulary),
            student_softcap=own.softcap,
            teacher_softcap=other.softcap,
            student_logit_scale=own.logit_scale,
            teacher_logit_scale=other.logit_scale,
            chunk_size=self.chunk_size,
            reduction="sum",
            **self.options(),
        )

    def _from_logits(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        vocabulary = min(student.shape[-1], teacher.shape[-1])
        return type(self).function(
            student[..., :vocabulary],
            teacher[..., :vocabulary],
            mask,
            temperature=self.temperature,
            reduction="sum",
            **self.options(),
        )


def _cut(tensor: Any, vocabulary: int) -> Any:
    return tensor if tensor is None or len(tensor) == vocabulary else tensor[:vocabulary]


class ForwardKL(TokenDivergence):
    """KL(teacher ‖ student) of each counted token; see `forward_kl`.

    Default weights: task 0.5 and forward_kl 0.5, the knowledge-distillation baseline of MiniLLM (`kd_ratio` 0.5) and
    Liger's default; DistiLLM leaves the labels out.
    """

    default_weights = {"task": 0.5, "forward_kl": 0.5}
    divergence = "forward_kl"
    function = forward_kl


class ReverseKL(TokenDivergence):
    """KL(student ‖ teacher) of each counted token; see `reverse_kl`.

    Default weights: task 0 and reverse_kl 1, as in TRL's distillation trainer (β = 1) and GKD.
    """

    default_weights = {"task": 0.0, "reverse_kl": 1.0}
    divergence = "reverse_kl"
    function = reverse_kl


class JensenShannon(TokenDivergence):
    """Generalised Jensen-Shannon divergence of each counted token; see `jensen_shannon`.

    Default weights: task 0 and jensen_shannon 1, as in GKD (Agarwal et al., ICLR 2024).
    """

    default_weights = {"task": 0.0, "jensen_shannon": 1.0}
    divergence = "jensen_shannon"
    function = jensen_shannon

    def __init__(self, beta: float = 0.5, temperature: float = 1.0, chunk_size: int | None = None) -> None:
        """
        Args:
            beta: weight of the teacher; 0 and 1 are forward and reverse KL.
            temperature: both logits are divided by it.
            chunk_size: positions whose logits are alive at a time; None chooses.
        """
        super().__init__(temperature, chunk_size)
        check_share("beta", beta)
        self.beta = beta

    def options(self) -> dict[str, float]:
        """The weight of the teacher."""
        return {"beta": self.beta}
