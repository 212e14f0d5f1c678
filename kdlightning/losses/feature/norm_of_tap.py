"""The BatchNorm whose output a tap reads."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that do not change the distribution of what passes through them in a frozen network."""


def norm_of_tap(model: nn.Module, tap: str) -> _BatchNorm:
    """The BatchNorm whose output `tap` reads: the tapped module, the end of a tapped chain, or what feeds `…:input`.

    What feeds an input is taken to be the module before it among its parent's, in the order in which they were made.

    Raises:
        ValueError: the tap reads something else; the sentence names the nearest one that would do.
    """
    path, _, side = tap.partition(":")
    modules = dict(model.named_modules())
    if path not in modules or not path:
        raise ValueError(
            f"teacher tap {tap!r} is no module, and the margin comes from a BatchNorm: tap the BatchNorm before the "
            "activation, or set margin: running"
        )
    found = _before(modules, path) if side == "input" else _last(modules[path])
    if found is None:
        raise ValueError(
            f"teacher tap {tap!r} is not the output of a BatchNorm{_suggestion(modules, path)}, or set margin: running"
        )
    return found


def _last(module: nn.Module) -> _BatchNorm | None:
    """The BatchNorm whose output a module's output is."""
    if isinstance(module, _BatchNorm):
        return module if isinstance(getattr(module, "act", nn.Identity()), nn.Identity) else None
    if isinstance(module, nn.Sequential):
        for child in reversed(module):
            if not isinstance(child, _PASSING):
                return _last(child)
    return None


def _before(modules: dict[str, nn.Module], path: str) -> _BatchNorm | None:
    """The BatchNorm whose output is a module's input."""
    parent = modules[path.rpartition(".")[0]]
    children = list(parent.children())
    at = next(number for number, child in enumerate(children) if child is modules[path])
    for child in reversed(children[:at]):
        if not isinstance(child, _PASSING):
            return _last(child)
    # timm's BatchNormAct2d is a BatchNorm that holds its activation.
    return parent if isinstance(parent, _BatchNorm) else None


def _suggestion(modules: dict[str, nn.Module], path: str) -> str:
    """The tap of the last BatchNorm inside a module, or of the one that follows it."""
    inside = [name for name, module in modules.items() if isinstance(module, _BatchNorm) and _within(name, path)]
    after = [name for name, module in modules.items() if isinstance(module, _BatchNorm)]
    names = list(modules)
    after = [name for name in after if names.index(name) > names.index(path)]
    if not inside and not after:
        return ": tap one"
    name = inside[-1] if inside else after[0]
    held = isinstance(getattr(modules[name], "act", None), nn.Module)
    return f": tap {name}.act:input" if held else f": tap {name}"


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
