"""Public implementations of the relation to a queue."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kdlightning.losses import queue_softmax_loss
from peers.base import Case, Peer, Shape, pair


def _inputs(shape: Shape, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = pair(shape, generator)
    return student, teacher, F.normalize(torch.randn(16 * shape[0], shape[1], generator=generator))


def _lightly_train(module: ModuleType) -> Any:
    loss = module.DistillationLoss(temperature=0.07)
    return lambda student, teacher, queue: loss(F.normalize(teacher), F.normalize(student), queue)


CASES = (
    Case(
        method="queue_softmax",
        function="queue_softmax_loss",
        paper="Fang et al. 2021",
        form="softmax of cosines to a queue, temperature 0.07",
        shapes=((16, 64), (64, 256), (128, 512)),
        inputs=_inputs,
        ours=queue_softmax_loss,
        peers=(
            Peer(
                "lightly-ai/lightly-train",
                "8f5a75c4107743fc9fdbd77e6fbc45664a014fd0",
                "src/lightly_train/_methods/distillation/distillation_loss.py",
                _lightly_train,
                note="takes embeddings that are normalised already; empty rows of its queue count as zeros",
            ),
        ),
    ),
)
