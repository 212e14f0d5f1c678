"""One network, run once, with the tensors inside that somebody asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.data.seeding import restored_generators
from kdlightning.models.output import ModelOutput
from kdlightning.taps.hooks import HookCollector
from kdlightning.taps.layouts import describe
from kdlightning.taps.names import TapError, TapInfo, resolve
from kdlightning.taps.native import PlainSource, TimmSource, TransformersSource


class TapReader:
    """Runs a network and reads its taps; without taps it just calls the network and installs nothing.

    Args:
        model: the network.
        taps: names of taps; see `kdlightning.taps.names.resolve`.
        language: run a causal language model's trunk and keep its head apart (`ModelOutput.hidden` and `.head`).
    """

    def __init__(self, model: nn.Module, taps: Iterable[str] = (), *, language: bool = False) -> None:
        self.model = model
        self.taps = [resolve(model, text) for text in dict.fromkeys(taps)]
        self.hooks = HookCollector(model, self.taps)
        native = [tap for tap in self.taps if tap.source not in (None, "logits")]
        kinds = {tap.source for tap in native}
        self.source: PlainSource
        if kinds == {"intermediates"}:
            self.source = TimmSource(model, native, hooked=bool(self.hooks.taps))
        elif language or kinds:
            self.source = TransformersSource(model, native, language=language)
        else:
            self.source = PlainSource(model)
        self._checked = not self.taps

    def __call__(self, inputs: Any, *, logits: bool = True) -> ModelOutput:
        """One forward pass.

        Args:
            inputs: a tensor, a tuple (positional) or a mapping (by keyword).
            logits: False lets the network stop after the deepest tap, where it can.
        """
        if not self.taps:
            return self.source(inputs, logits=logits)
        with self.hooks.armed() as hooked:
            output = self.source(inputs, logits=logits)
        output.taps.update(hooked)
        for tap in self.taps:
            if tap.source == "logits":
                output.taps[tap.text] = output.logits
        if not self._checked:
            self._check(output)
        return output

    def _check(self, output: ModelOutput) -> None:
        self.hooks.check_fired()
        if any(p.requires_grad for p in self.model.parameters()):
            if not (self.model.training and torch.is_grad_enabled()):
                return  # a sanity check in evaluation mode says nothing of gradients
            for name, tensor in output.taps.items():
                if tensor.is_floating_point() and not tensor.requires_grad:
                    raise TapError(
                        f"tap {name!r} carries no gradient: its part of the student is frozen or under reentrant "
                        "activation checkpointing; name another tap or use non-reentrant checkpointing"
                    )
        self._checked = True

    @torch.no_grad()
    def probe(self, inputs: Any) -> dict[str, TapInfo]:
        """Shapes and layouts of the taps from one pass that leaves no trace in the network or in random generators.

        Also finds taps whose tensors are overwritten in place after they were read; those are cloned from then on.
        """
        with untouched(self.model), self.hooks.armed() as hooked:
            before: dict[str, int] = {}
            original = self.hooks._keep

            def keep(tap: Any, tensor: Tensor | None) -> None:
                original(tap, tensor)
                if tensor is not None:
                    before[tap.text] = tensor._version

            self.hooks._keep = keep  # type: ignore[method-assign]
            try:
                output = self.source(inputs, logits=True)
            finally:
                del self.hooks._keep
        self.hooks.check_fired()
        overwritten = {name for name, version in before.items() if hooked[name]._version != version}
        self.hooks.clone |= overwritten
        output.taps.update(hooked)
        modules = dict(self.model.named_modules())
        infos = {}
        for tap in self.taps:
            tensor = output.logits if tap.source == "logits" else output.taps[tap.text]
            module = None if tap.module is None else modules[tap.module]
            infos[tap.text] = describe(self.model, tap.text, tensor, module, tap.source)
        return infos

    def close(self) -> None:
        """Removes the hooks."""
        self.hooks.close()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, buffers and random generators are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with restored_generators():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
