"""On-the-fly native ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.layers import check_normalisable
from kdlightning.losses.peers import gated_logits
from kdlightning.losses.response.kd import kd_loss
from kdlightning.losses.spatial import position_mean
from kdlightning.models.output import ModelOutput
from kdlightning.models.parts import Parts
from kdlightning.strategies.branches import BranchStrategy, check_temperature
from kdlightning.taps import TapInfo, canonical_shape
from kdlightning.tasks import Task

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class ONE(BranchStrategy):
    """Knowledge distillation by an on-the-fly native ensemble (Lan, Zhu & Gong, NeurIPS 2018).

    Branches of one network learn from their gated ensemble z_e = Σ_i g_i z_i, g = softmax(ReLU(BN(W f + b))) of the
    split's tensor f, averaged over positions. Terms: `one` of each branch, T²·KL(softmax(z_e/T) ‖ softmax(z_i/T)) with
    the ensemble detached, and `one_ensemble`, the ensemble's own loss on the labels, which trains the gate. Default
    weights: 1 for all, the paper's. The authors' code ramps the weight of `one` up over the first 80 of 300 epochs,
    exp(−5(1−share)²): set `weights: {one: {class_path: kdlightning.SigmoidRampUp, …}}`; and it adds 1e-7 to the
    ensemble's probabilities, which is left out here. `val/acc_ensemble` is the gated ensemble's.

    Args:
        split: path of the last shared module; the paper shares all but the last stage.
        branches: number of branches; the paper has 3.
        temperature: T; the paper has 3.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "one": 1.0}
    shared_weights: ClassVar[dict[str, float]] = {"one_ensemble": 1.0}

    def __init__(self, split: str, branches: int = 3, temperature: float = 3.0) -> None:
        super().__init__(split, branches)
        check_temperature("ONE", temperature)
        self.tap = split
        self.temperature = temperature
        self.parts = Parts()
        # In a tuple, since a task may be a module: it is not the strategy's own.
        self._task: tuple[Task, ...] = ()

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Keeps the task: the ensemble learns from labels, too."""
        super().bind(networks, task)
        self._task = (task,)

    def taps(self, network: int) -> Sequence[str]:
        """The split's tensor, which the gate reads."""
        return (self.tap,) if network == 0 else ()

    def build(self, infos: Sequence[Mapping[str, TapInfo]]) -> None:
        """Makes the gate."""
        super().build(infos)
        if not len(self.parts):
            width = canonical_shape(infos[0][self.tap])[1]
            self.parts["scores"] = nn.Linear(width, self.branches)
            self.parts["norm"] = nn.BatchNorm1d(self.branches)

    def gates(self, outputs: Sequence[ModelOutput]) -> Tensor:
        """The share of each branch for each sample, `(B, K)`."""
        scores = self.parts["scores"](position_mean(self.feature(outputs, 0, self.tap)))
        if self.training:
            check_normalisable("ONE's gate", scores)
        return self.parts["norm"](scores).relu().softmax(dim=1)

    def terms(
        self, outputs: Sequence[ModelOutput], step: DistillStep, active: Callable[[str], bool]
    ) -> dict[str, Tensor]:
        """The pull of each branch to the ensemble, and the ensemble's own loss."""
        names = self.term_names(len(outputs))
        if not any(active(name) for name in (*names, "one_ensemble")):
            return {}
        together = gated_logits(self.gates(outputs), [output.logits for output in outputs])
        target = together.detach()
        terms = {
            name: kd_loss(output.logits, target, temperature=self.temperature)
            for name, output in zip(names, outputs, strict=True)
            if active(name)
        }
        if active("one_ensemble"):
            terms["one_ensemble"] = self._task[0].loss(ModelOutput(together), step.batch)
        return terms

    def rests(self, terms: Mapping[str, Tensor]) -> bool:
        """The gate learns from the ensemble's own loss alone."""
        return "one_ensemble" not in terms

    def ensemble(self, outputs: Sequence[ModelOutput]) -> ModelOutput:
        """The gated ensemble."""
        if not len(self.parts):
            raise ConfigurationError("ONE: the gate is not built yet: call fit, validate or test of a Trainer first")
        return ModelOutput(gated_logits(self.gates(outputs), [output.logits for output in outputs]))
