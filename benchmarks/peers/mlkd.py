"""Public implementations of multi-level logit distillation."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor

from kdlightning.losses import MLKD, batch_correlation_loss, class_correlation_loss
from peers.base import Case, Peer
from peers.kd import SHAPES, logits

AUTHORS = (
    "Jin-Ying/Multi-Level-Logit-Distillation",
    "5ee473fcf193dfb00a0598b64d0acfe6ad58a482",
    "mdistiller/distillers/KD_ours.py",
)
STANDARDIZED = (
    "sunshangquan/logit-standardization-KD",
    "f6e5aa5172bad618e801163c3385322eea673754",
    "mdistiller/distillers/MLKD.py",
)
STUBS = ("turtle", "termios")
DEPARTS = (
    "masks of samples and classes shrink the terms by their mean, two of five temperatures of the strong view read the "
    "weak logits, and the strong view's class and batch levels are thrown away"
)


def _views(shape: tuple[int, ...], generator: Generator) -> tuple[Tensor, ...]:
    students = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(2)]
    return (*students, *(3 * torch.randn(shape, generator=generator) for _ in range(2)))


class _Answers(torch.nn.Module):
    """A network that gives one tensor after the other."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.left = iter(logits)

    def forward(self, _: Tensor) -> tuple[Tensor, None]:
        return next(self.left), None


def _ours(standardize: bool) -> Any:
    loss = MLKD(standardize=standardize)
    return lambda weak, strong, teacher_weak, teacher_strong: loss([weak, strong], [teacher_weak, teacher_strong])


def _function(name: str) -> Any:
    def make(module: ModuleType) -> Any:
        return lambda student, teacher: getattr(module, name)(student, teacher, 4.0)

    return make


def _whole(name: str, standardize: bool) -> Any:
    """The three distillation terms of the class, with weight 1."""

    def make(module: ModuleType) -> Any:
        loss = SimpleNamespace(CE_WEIGHT=0.0, KD_WEIGHT=1.0)
        cfg = SimpleNamespace(
            KD=SimpleNamespace(TEMPERATURE=4.0, LOSS=loss), EXPERIMENT=SimpleNamespace(LOGIT_STAND=standardize)
        )

        def function(weak: Tensor, strong: Tensor, teacher_weak: Tensor, teacher_strong: Tensor) -> Tensor:
            made = getattr(module, name)(_Answers(weak, strong), _Answers(teacher_weak, teacher_strong), cfg)
            target = torch.zeros(len(weak), dtype=torch.int64)
            terms = made.forward_train(weak, strong, target)[1]
            return terms["loss_kd"] + terms["loss_cc"] + terms["loss_bc"]

        return function

    return make


CASES = (
    *(
        Case(
            method="mlkd",
            function=f"{level}_correlation_loss",
            paper="Jin et al. 2023",
            form=f"squared Frobenius norm over the number of {what}",
            shapes=SHAPES,
            inputs=logits,
            ours=ours,
            peers=(
                Peer(*AUTHORS, _function(name), note="the authors' code", stubs=STUBS),
                Peer(*STANDARDIZED, _function(name), note="a copy of the authors' code", stubs=STUBS),
            ),
        )
        for level, what, name, ours in (
            ("class", "classes", "cc_loss", class_correlation_loss),
            ("batch", "samples", "bc_loss", batch_correlation_loss),
        )
    ),
    *(
        Case(
            method="mlkd",
            function="MLKD(standardize=True)" if standardize else "MLKD",
            paper="Jin et al. 2023" + (", Sun et al. 2024" if standardize else ""),
            form="two views, five temperatures, three levels, masks by sample and class",
            shapes=SHAPES,
            inputs=_views,
            ours=_ours(standardize),
            peers=(Peer(*where, _whole(name, standardize), agrees=False, note=DEPARTS, stubs=STUBS),),
        )
        for standardize, where, name in ((False, AUTHORS, "KD_ours"), (True, STANDARDIZED, "MLKD"))
    ),
)
