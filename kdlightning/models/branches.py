"""Several networks on one trunk: copies of a network that share everything up to a split."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.models.trunk import Keep, Recall, Trunk, is_stateless


def make_branches(network: nn.Module, split: str, count: int, *, gradient_scale: float = 1.0) -> tuple[Trunk, Any]:
    """Copies of a network that share its modules up to a split; what lies behind is drawn anew in each copy.

    Drawn anew means that the values of each tensor are put into another random order, whatever its library has drawn
    them from: scales of zero or one, class tokens of zeros and the like stay as they are, and so does what is frozen.
    Give a network that is not trained yet. Parameters that the split's parents hold themselves, as a class token, are
    shared, and so is a head whose weight is tied to an embedding in front of the split.

    Args:
        network: the first branch; hooks are put on its shared modules.
        split: path of the last shared module, for example `layer3`. What is registered before it, on every level, is
            shared as well; of modules without state, as activations, what they answer before it.
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
    parents = [modules[".".join(split.split(".")[:depth])] for depth in range(split.count(".") + 1)]
    inside = {id(p): p for parent in parents for p in parent.parameters(recurse=False)}
    inside |= {id(p): p for name in shared for p in modules[name].parameters()}
    if not any(p.requires_grad and id(p) not in inside for p in network.parameters()):
        raise ConfigurationError(f"split: nothing is left to learn behind {split!r}: name a module further in front")
    branches = [_branch(network, trunk, shared, inside) for _ in range(count - 1)]
    for name in shared:
        modules[name].register_forward_hook(Keep(trunk, name, is_stateless(modules[name])))
    return trunk, branches


def _shared_modules(network: nn.Module, split: str) -> list[str]:
    """Paths of the largest modules that are done once the split is."""
    found, parent, prefix = [], network, ""
    for step in split.split("."):
        for name, child in parent.named_children():
            if name == step:
                break
            found += [prefix + name + rest for rest in _callable_parts(child)]
        prefix += f"{step}."
        parent = parent.get_submodule(step)
    return [*found, split]


def _callable_parts(module: nn.Module) -> list[str]:
    """The module itself, or what is inside if it is a list that nobody calls."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [""]
    return [f".{name}{rest}" for name, child in module.named_children() for rest in _callable_parts(child)]


def _branch(network: nn.Module, trunk: Trunk, shared: list[str], inside: dict[int, nn.Parameter]) -> nn.Module:
    # What is shared is not copied: the memo already has what stands in its place.
    memo: dict[int, Any] = dict(inside)
    for name in shared:
        module = network.get_submodule(name)
        memo[id(module)] = Recall(trunk, name, module)
    branch = copy.deepcopy(network, memo)
    for module in branch.modules():
        for name, parameter in list(module._parameters.items()):
            if id(parameter) in inside:
                # A plain attribute: the parameter is the first branch's, in state dicts and optimizers.
                del module._parameters[name]
                module.__dict__[name] = parameter
    draw_anew(branch)
    return branch


@torch.no_grad()
def draw_anew(network: nn.Module) -> None:
    """Puts the values of each tensor that learns into another random order, and resets running statistics."""
    for module in network.modules():
        reset: Any = None if type(module) is Recall else getattr(module, "reset_running_stats", None)
        if callable(reset):
            reset()
    for parameter in network.parameters():
        if parameter.requires_grad:
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
