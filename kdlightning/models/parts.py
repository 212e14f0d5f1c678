"""Networks that are built once shapes are known."""

from __future__ import annotations

from typing import Any

from torch import nn


class Parts(nn.ModuleDict):
    """Networks by name, empty until somebody has seen the shapes that they depend on.

    While it is empty, a checkpoint's networks are passed over instead of refused: whoever only predicts or exports has
    no use for them.
    """

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict and len(self) > 0, *lists)
