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
from kdlightning.taps.names import Tap, TapError, TapInfo, resolve
from kdlightning.taps.native import PlainSource, TimmSource, TransformersSource, has_plain_head, language_source


class TapReader:
    """Runs a network and reads its taps; without taps it just calls the network and installs nothing.

    Args:
        model: the network.
        taps: names of taps; see `kdlightning.taps.names.resolve`.
        language: keep a language model's head apart (`ModelOutput.hidden` and `.head`), if it is one of transformers;
            others give their logits.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str] = (), *, language: bool = False) -> None:
        self.model = model
        self.language = language and has_plain_head(model)
        self.taps = [resolve(model, text) for text in dict.fromkeys(taps)]
        if self.language:
            # The head's module is not called; what goes into it is the last hidden state.
            self.taps = [Tap(t.text, None, source="pre_logits") if _is_pre_logits(t) else t for t in self.taps]
        self.hooks = HookCollector(model, self.taps)
        native = [tap for tap in self.taps if tap.source not in (None, "logits", "pre_logits")]
        kinds = {tap.source for tap in native}
        self.source: PlainSource
        if kinds == {"intermediates"}:
            self.source = TimmSource(model, native, hooked=bool(self.hooks.taps))
        elif self.language:
            self.source = language_source(model, native)
        elif kinds:
            self.source = TransformersSource(model, native)
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
        logits = logits or any(tap.source == "logits" for tap in self.taps)
        with self.hooks.armed() as hooked:
            output = self.source(inputs, logits=logits)
        output.taps.update(hooked)
        output.taps |= self._answers(output)
        if not self._checked:
            self._check(output)
        return output

    def _answers(self, output: ModelOutput) -> dict[str, Tensor]:
        """The taps that name what the network answers."""
        found = {tap.text: output.logits for tap in self.taps if tap.source == "logits"}
        if output.hidden is not None:
            found |= {tap.text: output.hidden for tap in self.taps if tap.source == "pre_logits"}
        return found

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
        learns = self.model.training
        with untouched(self.model), self.hooks.armed() as hooked:
            output = self.source(inputs, logits=True)
            self.hooks.check_fired()
            self.hooks.clone_overwritten()
            output.taps.update(hooked)
            if learns and self.hooks.taps:
                # Some write in place in training alone, as dropout does.
                self.model.train()
                with self.hooks.armed():
                    self.source(inputs, logits=True)
                    self.hooks.clone_overwritten()
        output.taps |= self._answers(output)
        modules = dict(self.model.named_modules())
        infos = {}
        for tap in self.taps:
            tensor = output.taps[tap.text]
            module = None if tap.module is None else modules[tap.module]
            infos[tap.text] = describe(self.model, tap.text, tensor, module, tap.source)
        return infos

    def close(self) -> None:
        """Removes the hooks."""
        self.hooks.close()


def _is_pre_logits(tap: Tap) -> bool:
    return tap.text.partition(":")[0] == "pre_logits"


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
