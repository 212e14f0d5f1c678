"""The loss of one student that learns several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import ResponseLoss
from kdlightning.modules.names import is_of_other_network
from kdlightning.modules.step import DistillStep
from kdlightning.schedules import Weight
from kdlightning.tasks import Task


def check_tags(owner: str, tags: Mapping[str, Weight], given: Mapping[str, Weight]) -> None:
    """Tags are names of terms; where there are any, there is no term `task`.

    Args:
        owner: the method.
        tags: its weights, by tag.
        given: the user's weights, by term.

    Raises:
        ConfigurationError: a tag that cannot name a term, or a weight of the absent `task`.
    """
    for tag in tags:
        if not tag.isidentifier() or tag in ("task", "loss") or is_of_other_network(tag):
            raise ConfigurationError(f"{owner}: {tag!r} cannot be a tag: choose a word that names no other term")
    if tags and "task" in given:
        raise ConfigurationError(
            f"{owner} has a term for each of its tasks: weigh {' and '.join(tags)} instead of task"
        )


def tag_divergence(response: ResponseLoss, step: DistillStep, number: int) -> Tensor:
    """The mean divergence from the teacher over the counted tokens of one task's samples; 0 without any.

    Args:
        response: a sum over the tokens that `batch.mask` counts, such as `ForwardKL`.
        step: with the teacher's answer.
        number: of the tag.
    """
    batch, mask = step.batch, _tag_mask(step, number)
    value = response(step.student, step.teacher, batch=replace(batch, mask=mask), progress=step.progress)
    return value / mask.sum().clamp(min=1)


def tag_loss(task: Task, step: DistillStep, number: int) -> Tensor:
    """The student's mean loss over the counted tokens of one task's samples; 0, with zero gradient, without any."""
    mask = _tag_mask(step, number)
    return task.loss(step.student, replace(step.batch, mask=mask)) / mask.sum().clamp(min=1)


def _tag_mask(step: DistillStep, number: int) -> Tensor:
    batch = step.batch
    if batch.tags is None or batch.mask is None:
        raise ConfigurationError("a method of several tasks needs batches with tags, as BlackBoxData makes them")
    return batch.mask & (batch.tags == number)[:, None]
