"""Strategies of online distillation, one a file."""

from kdlightning.strategies.base import OnlineStrategy
from kdlightning.strategies.dml import DML

__all__ = ["DML", "OnlineStrategy"]
