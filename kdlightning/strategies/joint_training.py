"""A student that learns from networks which are trained beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.collaborative import mean_probability_logits
from kdlightning.losses.response.kd import kd_loss
from kdlightning.models.output import ModelOutput
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.tasks import Task

if TYPE_CHECKING:
    from kdlightning.modules.step import DistillStep


class JointTraining(OnlineStrategy):
    """Teacher and student trained together from scratch: distillation without a first stage.

    Term `joint_training` of the student: T²·KL(p_t ‖ p_s), batch mean, p_t the mean of the peers' probabilities at
    temperature T, detached. One way, the peers are teachers that learn from labels alone, as if the student were not
    there. Two ways, each peer learns from the student as well, T²·KL(p_s ‖ p_j) as `joint_training_peer1`, …; with one
    peer that is `DML`. Default weights: task 1, joint_training 1.

    The loss is that of Hinton, Vinyals & Dean (2015) with a teacher that is still learning. Anil et al. ("Large scale
    distributed neural network training through online distillation", ICLR 2018) train so, two ways, towards the mean of
    the others' probabilities, with peers that are some steps old; Zhou et al. ("Rocket launching", AAAI 2018) one way,
    with shared layers and squared differences of logits, which are not done here.

    Args:
        two_way: whether the peers learn from the student too.
        temperature: T > 0; 4 as in `KD`, whose trained teacher this does without.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 1.0, "joint_training": 1.0}

    def __init__(self, two_way: bool = False, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"JointTraining: temperature must be above 0, not {temperature}")
        self.two_way = two_way
        self.student_only = not two_way
        self.temperature = temperature

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without class probabilities."""
        if task.num_classes is None or not task.class_probabilities:
            raise ConfigurationError("JointTraining compares class probabilities: it needs a task like Classification")

    def terms(
        self, outputs: Sequence[ModelOutput], step: DistillStep, active: Callable[[str], bool]
    ) -> dict[str, Tensor]:
        """The student's term, and the peers' if they learn too."""
        terms = {}
        student, *peers = [output.logits for output in outputs]
        own, *theirs = self.term_names(len(outputs))
        if active(own):
            target = mean_probability_logits(peers, temperature=self.temperature)
            terms[own] = kd_loss(student, target, temperature=self.temperature)
        for name, peer in zip(theirs, peers, strict=True) if self.two_way else ():
            if active(name):
                terms[name] = kd_loss(peer, student, temperature=self.temperature)
        return terms
