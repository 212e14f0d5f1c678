"""What a network answered, computed no further than somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdlightning.errors import ConfigurationError


@dataclass
class Head:
    """The last linear map of a language model: logits = softcap(scale·(h Wᵀ + b)).

    Attributes:
        weight: `(V, H)`.
        bias: `(V,)` or None.
        softcap: c in c·tanh(x/c), or None.
        logit_scale: factor before the cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0

    def __call__(self, hidden: Tensor) -> Tensor:
        """Full logits `(…, V)` of `hidden (…, H)`."""
        logits = hidden @ self.weight.to(hidden.dtype).T
        if self.bias is not None:
            logits = logits + self.bias.to(hidden.dtype)
        logits = logits * self.logit_scale if self.logit_scale != 1.0 else logits
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def detach(self) -> Head:
        """The same head outside the graph."""
        return Head(
            self.weight.detach(), None if self.bias is None else self.bias.detach(), self.softcap, self.logit_scale
        )


class ModelOutput:
    """One forward pass of one network.

    Attributes:
        taps: tensors from inside the network by tap name.
        hidden: `(B, T, H)` states before the head, where the network is a language model; else None.
        head: the head that turns `hidden` into logits; else None.
        exits: logits of early exits, shallow to deep.
    """

    __slots__ = ("_logits", "exits", "head", "hidden", "taps")

    def __init__(
        self,
        logits: Tensor | Callable[[], Tensor] | None = None,
        *,
        taps: dict[str, Tensor] | None = None,
        hidden: Tensor | None = None,
        head: Head | None = None,
        exits: Sequence[Tensor] = (),
    ) -> None:
        self._logits = logits
        self.taps = taps or {}
        self.hidden = hidden
        self.head = head
        self.exits = list(exits)

    @property
    def logits(self) -> Tensor:
        """The logits, computed on first access and kept.

        Raises:
            ConfigurationError: the pass ended before them, or the network has none.
        """
        if self._logits is None and self.hidden is not None and self.head is not None:
            self._logits = self.head(self.hidden)
        elif callable(self._logits) and not isinstance(self._logits, Tensor):
            self._logits = self._logits()
        if not isinstance(self._logits, Tensor):
            raise ConfigurationError("this network gave no logits: its output is no tensor and has no .logits")
        return self._logits

    @property
    def has_logits(self) -> bool:
        """Whether `logits` can be asked for."""
        return self._logits is not None or (self.hidden is not None and self.head is not None)

    def split(self, sizes: Sequence[int]) -> list[ModelOutput]:
        """The answers to parts of the batch of these sizes; logits are still computed once, when somebody asks."""
        return [self._part(number, list(sizes)) for number in range(len(sizes))]

    def _part(self, number: int, sizes: list[int]) -> ModelOutput:
        def rows(tensor: Tensor) -> Tensor:
            return tensor.split(sizes)[number]

        logits: Tensor | Callable[[], Tensor] | None = None
        if isinstance(self._logits, Tensor):
            logits = rows(self._logits)
        elif self._logits is not None:
            logits = lambda: rows(self.logits)  # noqa: E731
        return ModelOutput(
            logits,
            taps={name: rows(tensor) for name, tensor in self.taps.items()},
            hidden=None if self.hidden is None else rows(self.hidden),
            head=self.head,
            exits=[rows(tensor) for tensor in self.exits],
        )

    def detach(self) -> ModelOutput:
        """The same answer outside the graph, for a network that teaches; still lazy."""
        logits = self._logits.detach() if isinstance(self._logits, Tensor) else None
        if logits is None and callable(self._logits):
            compute = self._logits
            return ModelOutput(lambda: compute().detach(), taps=_detached(self.taps))
        return ModelOutput(
            logits,
            taps=_detached(self.taps),
            hidden=None if self.hidden is None else self.hidden.detach(),
            head=None if self.head is None else self.head.detach(),
            exits=[exit_logits.detach() for exit_logits in self.exits],
        )


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def logits_of(output: Any) -> Tensor | None:
    """The logits in what a model returned: the tensor itself, `.logits`, or the first of a tuple; else None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits")
    if isinstance(output, (tuple, list)):
        return output[0] if output and isinstance(output[0], Tensor) else None
    return getattr(output, "logits", None)
