"""Online distillation with diverse peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.losses.peers import attended_logits, learned_target_kl
from kdlightning.losses.spatial import position_mean
from kdlightning.models.output import ModelOutput
from kdlightning.models.parts import Parts
from kdlightning.strategies.branches import BranchStrategy, check_temperature
from kdlightning.taps import TapInfo, canonical_shape


class OKDDip(BranchStrategy):
    """Online knowledge distillation with diverse peers (Chen et al., AAAI 2020).

    The peers are auxiliary; the student leads the group and is what is shipped. Term of peer a: T²·KL(t_a ‖ p_a) with
    t_a = Σ_b α_ab z_b over all peers, α_ab = softmax_b(⟨W_q h_a, W_k h_b⟩), h the peer's vector before the classifier.
    Term of the student: T²·KL(mean of the peers' logits ‖ p). Default weights: task 1, okddip 1; the authors' code
    ramps okddip up over the first 80 of 300 epochs, see `SigmoidRampUp`.

    As in the authors' code, logits are mixed (the paper mixes softened probabilities), and targets are not detached:
    the projections learn only so, and the peers move towards those who learn from them. The 1e-7 that it adds to the
    targets' probabilities is left out. Peers of several widths have projections of their own for each width.
    `val/acc_ensemble` is that of the peers' mean logits, without the student's.

    Args:
        split: path of the last shared module of branches of one network; None for `peers` of their own.
        branches: number of branches, the student included; the paper has 4.
        temperature: T; the paper has 3.
        factor: how many times narrower than the vectors the projections are; the authors' code has 8.
        tap: the peer's vector; a map is averaged over positions.
        constant_targets: keep the peers' answers in the targets constant; the projections learn all the same.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "okddip": 1.0}
    needs_split: ClassVar[bool] = False

    def __init__(
        self,
        split: str | None = None,
        branches: int = 4,
        temperature: float = 3.0,
        factor: int = 8,
        tap: str = "pre_logits",
        constant_targets: bool = False,
    ) -> None:
        super().__init__(split, branches)
        check_temperature("OKDDip", temperature)
        if not isinstance(factor, int) or factor < 1:
            raise ConfigurationError(f"OKDDip: factor must be at least 1 and whole, not {factor}")
        self.temperature = temperature
        self.factor = factor
        self.tap = tap
        self.constant_targets = constant_targets
        self.parts = Parts()

    @property
    def name(self) -> str:
        """Name of the term."""
        return "okddip"

    @property
    def fewest(self) -> int:
        """A student and two peers: a single one has nobody to listen to."""
        return 3

    def taps(self, network: int) -> Sequence[str]:
        """The peers' vectors."""
        return (self.tap,) if network else ()

    def build(self, infos: Sequence[Mapping[str, TapInfo]]) -> None:
        """Makes the projections, all to one width."""
        super().build(infos)
        if len(self.parts):
            return
        widths = sorted({canonical_shape(info[self.tap])[1] for info in infos[1:]})
        for width in widths:
            for side in ("query", "key"):
                self.parts[f"{side}{width}"] = nn.Linear(width, max(widths[0] // self.factor, 1), bias=False)

    def project(self, side: str, vectors: Sequence[Tensor]) -> Tensor:
        """Queries or keys of all peers, `(B, P, D)`."""
        return torch.stack([self.parts[f"{side}{vector.shape[1]}"](vector) for vector in vectors], dim=1)

    def forward(self, outputs: Sequence[ModelOutput], *, batch: Batch, progress: float) -> list[Tensor]:
        """The student's loss, and one for each peer."""
        vectors = [position_mean(self.feature(outputs, number, self.tap)) for number in range(1, len(outputs))]
        logits = [output.logits for output in outputs[1:]]
        answers = [answer.detach() for answer in logits] if self.constant_targets else logits
        targets = attended_logits(self.project("query", vectors), self.project("key", vectors), answers)
        mean = torch.stack([widened(answer) for answer in answers]).mean(0)
        pairs = zip([outputs[0].logits, *logits], [mean, *targets], strict=True)
        return [learned_target_kl(own, target, temperature=self.temperature) for own, target in pairs]

    def rests(self, terms: Mapping[str, Tensor]) -> bool:
        """The projections learn from the peers' terms."""
        return not any(name.startswith("okddip_peer") for name in terms)

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput:
        """The peers' mean logits."""
        return ModelOutput(torch.stack([widened(output.logits) for output in outputs[1:]]).mean(0))
