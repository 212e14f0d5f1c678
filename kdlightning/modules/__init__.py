"""Modes: who teaches, when each network runs, what the optimizer gets."""

from kdlightning.modules.base import DistillModule
from kdlightning.modules.knowledge import TapPair, TermSpec
from kdlightning.modules.loading import load_student
from kdlightning.modules.offline import OfflineDistillation
from kdlightning.modules.on_policy import GKD, OnPolicyDistillation
from kdlightning.modules.online import OnlineDistillation
from kdlightning.modules.self_distillation import SelfDistillation
from kdlightning.modules.step import DistillStep

__all__ = [
    "GKD",
    "DistillModule",
    "DistillStep",
    "OfflineDistillation",
    "OnPolicyDistillation",
    "OnlineDistillation",
    "SelfDistillation",
    "TapPair",
    "TermSpec",
    "load_student",
]
