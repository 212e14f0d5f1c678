"""Strategies whose networks are branches of one trunk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.branches import make_branches
from kdlightning.models.trunk import Trunk
from kdlightning.strategies.base import OnlineStrategy
from kdlightning.tasks import Task
from kdlightning.tasks.base import check_class_probabilities


class BranchStrategy(OnlineStrategy):
    """Base: the peers are copies of the student that share it up to a split, and are drawn anew behind.

    K branches cost one pass of the trunk and K of what lies behind. Each is a complete network for callbacks and
    exports: `kdlightning export --which peer1`. A callback's taps must lie behind the split, or be the split itself.

    Args:
        split: path of the last shared module, for example `layer3`; None for networks of their own, where they will do.
        branches: number of branches, the student's included.
    """

    needs_split: ClassVar[bool] = True
    """Whether networks of their own will not do."""

    def __init__(self, split: str | None, branches: int) -> None:
        super().__init__()
        name = type(self).__name__
        if not split and (split is not None or self.needs_split):
            raise ConfigurationError(f"{name}: split must name the last shared module, for example layer3")
        if split is not None and (not isinstance(branches, int) or branches < self.fewest):
            raise ConfigurationError(f"{name}: branches must be at least {self.fewest} and whole, not {branches}")
        self.split = split
        self.branches = branches
        self.trunk: Trunk | None = None

    @property
    def fewest(self) -> int:
        """The smallest number of networks, the student included."""
        return 2

    @property
    def gradient_scale(self) -> float:
        """Factor of the gradient that flows from all branches into the trunk."""
        return 1.0

    def make_peers(self, student: nn.Module) -> list[nn.Module]:
        """The other branches, unless there is no split."""
        if self.split is None:
            return []
        if self.trunk is not None:
            raise ConfigurationError(f"this {type(self).__name__} has branches already: build one for each student")
        self.trunk, peers = make_branches(student, self.split, self.branches, gradient_scale=self.gradient_scale)
        return peers

    def bind(self, networks: Sequence[nn.Module], task: Task) -> None:
        """Refuses tasks without class probabilities, and too few networks."""
        name = type(self).__name__
        check_class_probabilities(name, task)
        if len(networks) < self.fewest:
            raise ConfigurationError(
                f"{name} needs at least {self.fewest} networks, the student included, not {len(networks)}: give more "
                "peers"
            )

    def running(self) -> AbstractContextManager[None]:
        """While the branches run, the trunk's answers are kept."""
        return nullcontext() if self.trunk is None else self.trunk.running()


def check_temperature(name: str, temperature: float) -> None:
    """Raises ConfigurationError unless it is above zero."""
    if not temperature > 0:
        raise ConfigurationError(f"{name}: temperature must be above 0, not {temperature}")
