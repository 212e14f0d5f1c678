"""Networks that are built once shapes are known."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdlightning.models.weights import fill


class Parts(nn.ModuleDict):
    """Networks by name, empty until somebody has seen the shapes that they depend on.

    While it is empty, a checkpoint's networks are passed over instead of refused: whoever only predicts or exports has
    no use for them. Whoever builds them after that gets them as the checkpoint has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed_over: dict[str, Tensor] = {}

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Adds a network, with the weights of a checkpoint that was loaded before it was there."""
        super().add_module(name, module)
        prefix = f"{name}."
        found = {key[len(prefix) :]: value for key, value in self._passed_over.items() if key.startswith(prefix)}
        if module is not None and found:
            fill(module, found, f"the checkpoint's {name}")
        self._passed_over = {key: value for key, value in self._passed_over.items() if not key.startswith(prefix)}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        self._passed_over = {} if len(self) else own
        super()._load_from_state_dict(state_dict, prefix, metadata, strict and len(self) > 0, *lists)
