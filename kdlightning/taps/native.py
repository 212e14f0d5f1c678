"""Features that timm and transformers models give by themselves, without hooks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.models.output import Head, ModelOutput, logits_of
from kdlightning.models.trunk import Recall
from kdlightning.taps.names import Tap, TapError


def call(model: nn.Module, inputs: Any, **options: Any) -> Any:
    """Calls a model with a tensor, a tuple (positional) or a mapping (by keyword)."""
    if isinstance(inputs, Mapping):
        return model(**inputs, **options)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs, **options)
    return model(inputs, **options)


class PlainSource:
    """The model as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, inputs: Any, *, logits: bool) -> ModelOutput:
        output = call(self.model, inputs)
        return ModelOutput(logits_of(output), hidden=getattr(output, "last_hidden_state", None))


class TimmSource(PlainSource):
    """`intermediates.N` of timm's `forward_intermediates`; stops after the deepest one if no logits are wanted."""

    def __init__(self, model: nn.Module, taps: list[Tap], *, hooked: bool) -> None:
        super().__init__(model)
        self.taps = sorted(taps, key=lambda tap: tap.index)
        self.hooked = hooked
        count = len(getattr(model, "feature_info", None) or getattr(model, "blocks", ()) or ())
        for tap in taps:
            if count and not -count <= tap.index < count:
                raise TapError(
                    f"tap {tap.text!r}: {type(model).__name__} has intermediates.0 to intermediates.{count - 1}"
                )
        self.depths = {tap.text: tap.index % count if count else tap.index for tap in taps}

    def __call__(self, inputs: Any, *, logits: bool) -> ModelOutput:
        model: Any = self.model
        depths = sorted(set(self.depths.values()))
        stop = not logits and not self.hooked
        result = model.forward_intermediates(inputs, indices=depths, stop_early=stop, intermediates_only=stop)
        final, features = (None, result) if stop else result
        taps = {name: features[depths.index(depth)] for name, depth in self.depths.items()}
        return ModelOutput(None if final is None else model.forward_head(final), taps=taps)


class TransformersSource(PlainSource):
    """`hidden_states.N` (0 is the embedding) and `attentions.N` (after softmax) of a transformers model.

    With `language=True` the model's trunk is run and its head kept apart, so that nobody pays for full logits unless
    they are asked for.
    """

    def __init__(self, model: nn.Module, taps: list[Tap], *, language: bool = False) -> None:
        super().__init__(model)
        self.taps = taps
        self.language = language
        self.options = {f"output_{kind}": True for kind in {str(tap.source) for tap in taps}}
        if "output_attentions" in self.options:
            if any(type(module) is Recall for module in model.modules()):
                raise TapError("attentions: a branch does not run the layers of its trunk: name a module path instead")
            # Fused attention has no probabilities to give; it would answer with an empty tuple.
            model.set_attn_implementation("eager")  # type: ignore[operator]
        if language:
            self.options["use_cache"] = False

    def __call__(self, inputs: Any, *, logits: bool) -> ModelOutput:
        if self.language:
            output = call(trunk_of(self.model), inputs, **self.options)
            result = ModelOutput(hidden=output.last_hidden_state, head=head_of(self.model))
        else:
            output = call(self.model, inputs, **self.options)
            result = ModelOutput(logits_of(output), hidden=getattr(output, "last_hidden_state", None))
        for tap in self.taps:
            result.taps[tap.text] = self._read(output, tap)
        return result

    def _read(self, output: Any, tap: Tap) -> Tensor:
        found = getattr(output, str(tap.source), None)
        if not found:
            raise TapError(
                f"tap {tap.text!r}: {type(self.model).__name__} returned no {tap.source}; name a module path"
            )
        if not -len(found) <= tap.index < len(found):
            raise TapError(
                f"tap {tap.text!r}: {type(self.model).__name__} has {tap.source}.0 to {tap.source}.{len(found) - 1}"
            )
        return found[tap.index]


class HeadInputSource(TransformersSource):
    """A language model that has layers of its own between trunk and head, as masked language models do.

    The whole model is run, and what goes into the head is kept; the head itself is given no position, so that nobody
    pays for full logits here either. A model that does not call its head (MobileBERT) gives its logits.
    """

    def __init__(self, model: nn.Module, taps: list[Tap]) -> None:
        super().__init__(model, taps)
        if "use_cache" in inspect.signature(model.forward).parameters:
            self.options["use_cache"] = False

    def __call__(self, inputs: Any, *, logits: bool) -> ModelOutput:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(args[0])
            return (args[0][..., :0, :], *args[1:])

        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(keep)
        try:
            output = call(self.model, inputs, **self.options)
        finally:
            hook.remove()
        result = ModelOutput(hidden=kept[0], head=head_of(self.model)) if kept else ModelOutput(logits_of(output))
        for tap in self.taps:
            result.taps[tap.text] = self._read(output, tap)
        return result


def language_source(model: nn.Module, taps: list[Tap]) -> TransformersSource:
    """What runs a transformers language model and keeps its head apart."""
    trunk, head = trunk_of(model), model.get_output_embeddings()  # type: ignore[operator]
    known = {id(parameter) for part in (trunk, head) for parameter in part.parameters()}
    known.add(id(getattr(head, "bias", None)))
    if all(id(parameter) in known for parameter in model.parameters()):
        return TransformersSource(model, taps, language=True)
    return HeadInputSource(model, taps)


def trunk_of(model: Any) -> nn.Module:
    """The decoder of a causal language model, without its head."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if decoder is not None and decoder is not model:
        return decoder
    return model.base_model


def head_of(model: Any) -> Head | None:
    """The head of a transformers language model with its soft cap and scale, or None if it has no plain linear one."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None
    config: Any = getattr(model, "config", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(weight, getattr(layer, "bias", None), None if cap is None else float(cap), scale / divisor)


def has_plain_head(model: nn.Module) -> bool:
    """Whether trunk and head of a transformers language model can be run apart."""
    head = head_of(model) if hasattr(model, "base_model") else None
    words = getattr(getattr(model, "config", None), "vocab_size", None)
    return head is not None and words in (None, len(head.weight))


@torch.no_grad()
def head_agrees(model: nn.Module, inputs: Any) -> bool:
    """Whether trunk and head taken apart give the model's own logits on a sample (in the mode the model is in)."""
    whole = logits_of(call(model, inputs))
    parts = language_source(model, [])(inputs, logits=True).logits
    return whole is not None and whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)
