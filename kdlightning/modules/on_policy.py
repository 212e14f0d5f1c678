"""A student that is taught on what it writes itself."""

from __future__ import annotations

import random
from typing import ClassVar

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from kdlightning.data.batch import Batch
from kdlightning.data.seeding import mix
from kdlightning.errors import ConfigurationError
from kdlightning.generation.sampler import StudentSampler
from kdlightning.losses.token_terms import JensenShannon
from kdlightning.modules.offline import OfflineDistillation
from kdlightning.modules.step import DistillStep
from kdlightning.schedules import Weight
from kdlightning.tasks import MaskedLM, Task
from kdlightning.teachers import Teacher


class GKD(JensenShannon):
    """Generalized knowledge distillation (Agarwal et al., ICLR 2024).

    The generalized Jensen–Shannon divergence on response tokens; with probability `student_share` a step's responses
    are the student's own, else the data's. No gradient flows through sampling. The divergence is at temperature 1
    whatever the sampling temperature, as in the paper and in public code. Default weights: task 0, gkd 1.

    Args:
        beta: weight of the teacher in the mixture; 0 is forward KL, 1 reverse KL.
        student_share: λ of the paper: share of steps on the student's own text, 0 to 1.
    """

    default_weights: ClassVar[dict[str, float]] = {"task": 0.0, "gkd": 1.0}

    def __init__(self, beta: float = 0.5, student_share: float = 0.5) -> None:
        super().__init__(beta=beta)
        if not 0 <= student_share <= 1:
            raise ConfigurationError(f"GKD: student_share must be between 0 and 1, not {student_share}")
        self.student_share = student_share


class OnPolicyDistillation(OfflineDistillation):
    """On-policy distillation of causal language models: the student writes, the teacher judges each token.

    Terms: `task` (weight 0 by default, and left out in steps on the student's own text, which has no labels) and the
    objective's (`gkd`).

    Args:
        student: the causal language model that is trained and shipped.
        teacher: a trained causal language model with the same vocabulary, or a `Teacher`.
        task: `CausalLM()`.
        objective: what is minimised, and how often the student writes.
        generator: how the student writes.
        optimizer: makes the optimizer from parameters; AdamW with learning rate 1e-3 by default.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name, numbers or schedules, merged over the objective's.
    """

    runs_views: ClassVar[bool] = False

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None = None,
        *,
        task: Task,
        objective: GKD | None = None,
        generator: StudentSampler | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        weights: dict[str, Weight] | None = None,
    ) -> None:
        if not task.counts_tokens or isinstance(task, MaskedLM):
            raise ConfigurationError(
                f"OnPolicyDistillation writes text: the task must be CausalLM, not {type(task).__name__}"
            )
        if not hasattr(student, "generate"):
            raise ConfigurationError(
                f"OnPolicyDistillation: {type(student).__name__} has no generate(); use a transformers model"
            )
        objective = GKD() if objective is None else objective
        super().__init__(
            student,
            teacher,
            task=task,
            response=objective,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            weights=weights,
        )
        self.objective = objective
        self._on_own_text = False
        self.generator = StudentSampler() if generator is None else generator

    def make_step(self, batch: Batch, stage: str) -> DistillStep:
        """Lets the student write the batch, if this step is its own."""
        self._on_own_text = stage == "train" and self.writes_itself()
        if self._on_own_text:
            batch = self.generator(self.student, batch)
        return super().make_step(batch, stage)

    def is_active(self, name: str, step: DistillStep) -> bool:
        """See `DistillModule.is_active`; on its own text the student has no labels."""
        return super().is_active(name, step) and not (name == "task" and self._on_own_text)

    def writes_itself(self) -> bool:
        """Whether this step is on the student's own text: one toss for all ranks and a whole accumulation window."""
        return random.Random(mix(self._seed or 0, 1, self.global_step)).random() < self.objective.student_share
