"""Strategies of online distillation, one a file."""

from kdlightning.strategies.base import OnlineStrategy
from kdlightning.strategies.branches import BranchStrategy
from kdlightning.strategies.clilr import CLILR
from kdlightning.strategies.codistillation import Codistillation
from kdlightning.strategies.dml import DML
from kdlightning.strategies.joint_training import JointTraining
from kdlightning.strategies.kdcl import KDCL
from kdlightning.strategies.okddip import OKDDip
from kdlightning.strategies.one import ONE

__all__ = [
    "BranchStrategy",
    "CLILR",
    "Codistillation",
    "OKDDip",
    "ONE",
    "DML",
    "JointTraining",
    "KDCL",
    "OnlineStrategy",
]
