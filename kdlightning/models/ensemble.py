"""Several networks that answer as one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.models.output import logits_of


class Ensemble(nn.Module):
    """The mean of several classifiers' probabilities, given as its logarithm.

    `kdlightning test` measures trained networks together as such a student, each one `started_from` its checkpoint; for
    an ensemble that teaches there is `EnsembleTeacher`.

    Args:
        members: the networks, one or more, of any architectures.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ConfigurationError("Ensemble: members is empty: give one network or more")
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Log-probabilities `(B, num_classes)`."""
        logits = [logits_of(member(*inputs, **named)) for member in self.members]
        shapes = {None if answer is None else tuple(answer.shape) for answer in logits}
        if len(shapes) > 1 or None in shapes:
            raise ConfigurationError(f"Ensemble: the members' logits differ in shape: {', '.join(map(str, shapes))}")
        answers = torch.stack([widened(answer).log_softmax(-1) for answer in logits])
        return answers.logsumexp(0) - math.log(len(logits))
