"""Several networks on one trunk: copies of a network that share everything up to a split."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, autograd, nn

from kdlightning.errors import ConfigurationError, nearest


class Trunk:
    """What the shared modules answered in the pass that runs, to be recalled by the other branches.

    Args:
        split: path of the last shared module.
        gradient_scale: factor of the gradient that flows from all branches into the trunk.
    """

    def __init__(self, split: str, gradient_scale: float = 1.0) -> None:
        self.split = split
        self.gradient_scale = gradient_scale
        self.kept: dict[str, Any] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the branches run: the first one fills, the others recall."""
        self.kept = {}
        try:
            yield
        finally:
            self.kept = None

    def keep(self, name: str, answer: Any) -> Any:
        """Keeps what a shared module answered to the first branch."""
        if self.kept is None:
            return answer
        if name in self.kept or self.split in self.kept:
            raise ConfigurationError(
                f"split: {name!r} stands before {self.split!r} and runs "
                + ("twice in one pass" if name in self.kept else "after it")
                + ": name a module by which all before it is done, or one inside it"
            )
        if name == self.split and self.gradient_scale != 1.0:
            answer = _scaled(answer, self.gradient_scale)
        self.kept[name] = answer
        return answer


class _Keep:
    """The hook on a shared module; an object, so that copies of a network keep in the copy of its trunk."""

    def __init__(self, trunk: Trunk, name: str) -> None:
        self.trunk = trunk
        self.name = name

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> Any:
        return self.trunk.keep(self.name, answer)


class Recall(nn.Module):
    """Stands where a branch has a shared module: gives what that answered in this pass, or asks it."""

    def __init__(self, trunk: Trunk, name: str, module: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.name = name
        self._shared = (module,)  # in a tuple: the module belongs to the first branch

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The shared module's answer."""
        kept = self.trunk.kept
        if kept is not None and self.name in kept:
            return kept[self.name]
        (module,) = self._shared
        if kept is not None:
            raise ConfigurationError(
                f"split: {self.name!r} did not run in the student's pass, and a branch calls it: name another split"
            )
        modes = [(part, part.training) for part in module.modules()]
        module.train(self.training)
        try:
            return module(*arguments, **options)
        finally:
            for part, training in modes:
                part.training = training


class _ScaleGradient(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def _scaled(answer: Any, scale: float) -> Any:
    if isinstance(answer, Tensor):
        return _ScaleGradient.apply(answer, scale)
    if isinstance(answer, (tuple, list)):
        return type(answer)(_scaled(part, scale) for part in answer)
    return answer


def make_branches(network: nn.Module, split: str, count: int, *, gradient_scale: float = 1.0) -> tuple[Trunk, Any]:
    """Copies of a network that share its modules up to a split; what lies behind is drawn anew in each copy.

    Args:
        network: the first branch; hooks are put on its shared modules.
        split: path of the last shared module, for example `layer3`. What is registered before it, on every level, and
            has parameters or buffers, is shared as well.
        count: number of branches, the first included; at least 2.
        gradient_scale: factor of the gradient that flows into the split.

    Returns:
        The trunk, in whose `running()` the branches must be called, the network first; and `count` − 1 copies. A copy
        that is called alone asks the shared modules itself.

    Raises:
        ConfigurationError: no such module, nothing left to learn behind it, or fewer than two branches.
    """
    if count < 2:
        raise ConfigurationError(f"branches must be at least 2, not {count}")
    modules = dict(network.named_modules())
    if split not in modules or not split:
        raise ConfigurationError(f"split: the student has no module {split!r}{nearest(split, list(modules))}")
    shared = _shared_modules(network, split)
    trunk = Trunk(split, gradient_scale)
    inside = {id(p) for name in shared for p in modules[name].parameters()}
    if all(id(parameter) in inside for parameter in network.parameters()):
        raise ConfigurationError(f"split: nothing is left to learn behind {split!r}: name a module further in front")
    branches = [_branch(network, trunk, shared) for _ in range(count - 1)]
    for name in shared:
        modules[name].register_forward_hook(_Keep(trunk, name))
    return trunk, branches


def _shared_modules(network: nn.Module, split: str) -> list[str]:
    """Paths of the largest modules that are done once the split is."""
    found, parent, prefix = [], network, ""
    steps = split.split(".")
    for depth, step in enumerate(steps):
        for name, child in parent.named_children():
            if name == step:
                break
            if any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                found.append(prefix + name)
        prefix += f"{step}."
        parent = parent.get_submodule(step)
        if depth == len(steps) - 1:
            found.append(split)
    return found


def _branch(network: nn.Module, trunk: Trunk, shared: list[str]) -> nn.Module:
    # The shared modules are not copied: the memo already has what stands in their places.
    memo: dict[int, Any] = {}
    for name in shared:
        module = network.get_submodule(name)
        memo[id(module)] = Recall(trunk, name, module)
    branch = copy.deepcopy(network, memo)
    for module in branch.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return branch
