"""Hooks that are installed once and armed for one forward pass at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kdlightning.taps.names import Tap, TapError


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written; tensors of inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version


class HookCollector:
    """Reads the taps that name modules.

    While no pass is armed a hook returns at once, so recomputation in a backward pass and evaluation cost and store
    nothing.
    """

    def __init__(self, model: nn.Module, taps: Iterable[Tap]) -> None:
        self.taps = [tap for tap in taps if tap.module is not None]
        self.store: dict[str, Tensor] | None = None
        self.fired: dict[str, int] = {}
        self.clone: set[str] = set()
        self.versions: dict[str, int] = {}
        self._handles: list[Any] = []
        if self.taps:
            _refuse_compiled(model, self.taps[0])
        for tap in self.taps:
            self._install(model.get_submodule(str(tap.module)), tap)

    def _install(self, module: nn.Module, tap: Tap) -> None:
        if tap.side == "input":

            def read_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if self.store is not None:
                    self._keep(tap, first_tensor(args) if args else first_tensor(kwargs))

            self._handles.append(module.register_forward_pre_hook(read_input, with_kwargs=True))
        else:

            def read_output(_: nn.Module, __: Any, output: Any) -> None:
                if self.store is not None:
                    self._keep(tap, first_tensor(output))

            self._handles.append(module.register_forward_hook(read_output))

    def _keep(self, tap: Tap, tensor: Tensor | None) -> None:
        if self.store is None:
            return
        if tensor is None:
            raise TapError(f"tap {tap.text!r} gave no tensor: name a module inside or around it")
        if tap.third is not None:
            tensor = tensor.chunk(3, dim=-1)[tap.third]
        self.fired[tap.text] = self.fired.get(tap.text, 0) + 1
        self.store[tap.text] = tensor.clone() if tap.text in self.clone else tensor
        self.versions[tap.text] = version_of(self.store[tap.text])

    @contextmanager
    def armed(self) -> Iterator[dict[str, Tensor]]:
        """Arms the hooks for one pass and gives the dictionary that they fill."""
        self.store = {}
        self.fired = {}
        try:
            yield self.store
        finally:
            self.store = None

    def clone_overwritten(self) -> None:
        """Has taps cloned from now on whose tensors were overwritten in this pass after they were read."""
        store = self.store or {}
        self.clone |= {name for name, tensor in store.items() if version_of(tensor) != self.versions[name]}

    def check_fired(self) -> None:
        """Raises TapError unless every tap of the last pass fired exactly once."""
        for tap in self.taps:
            count = self.fired.get(tap.text, 0)
            if count == 0:
                raise TapError(
                    f"tap {tap.text!r} did not fire in this pass: its module is not called in this mode or was "
                    "compiled before the taps were installed; name a module that runs, or compile later"
                )
            if count > 1:
                raise TapError(
                    f"tap {tap.text!r} fired {count} times in one pass: its module is shared or called in a loop; "
                    "name the module around it"
                )

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _refuse_compiled(model: nn.Module, tap: Tap) -> None:
    if any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    ):
        raise TapError(
            f"tap {tap.text!r}: hooks do not fire in a model that is already compiled; pass the model as it is and "
            "compile it in configure_model"
        )
