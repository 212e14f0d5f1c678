"""All taps of a model with their shapes, for people who choose one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError
from kdlightning.taps.attention import PROJECTIONS
from kdlightning.taps.hooks import first_tensor
from kdlightning.taps.layouts import describe
from kdlightning.taps.names import TapInfo, native_names
from kdlightning.taps.native import call
from kdlightning.taps.reader import TapReader, untouched


def list_taps(model: nn.Module, inputs: Any) -> list[TapInfo]:
    """Every module that gives one tensor in one pass, in the order in which they run, then the native taps.

    Args:
        model: the network; left as it was.
        inputs: a batch of two samples.
    """
    names = {module: name for name, module in model.named_modules() if name}
    seen: dict[str, TapInfo] = {}
    repeated: set[str] = set()

    def read(module: nn.Module, _: Any, output: Any) -> None:
        tensor, name = first_tensor(output), names[module]
        if name in seen:
            repeated.add(name)
        elif tensor is not None:
            seen[name] = describe(model, name, tensor, module, None)

    handles = [module.register_forward_hook(read) for module in names]
    try:
        with untouched(model), torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    infos = [info for name, info in seen.items() if name not in repeated]
    for kind in ("intermediates", "hidden_states", *PROJECTIONS, "pre_logits", "logits"):
        infos += _native(model, inputs, [name for name in native_names(model) if name.split(".")[0] == kind])
    return infos


def _native(model: nn.Module, inputs: Any, names: list[str]) -> list[TapInfo]:
    if not names:
        return []
    reader = TapReader(model, names)
    try:
        return list(reader.probe(inputs).values())
    except (ConfigurationError, NotImplementedError, AttributeError):
        # Some timm models declare forward_intermediates without supporting every index; modules remain.
        return []
    finally:
        reader.close()


def example_inputs(model: nn.Module) -> Tensor | dict[str, Tensor]:
    """Two made-up samples of the shape that a timm or transformers model states.

    Raises:
        ConfigurationError: the model states no input shape; name a configuration with data instead.
    """
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or getattr(model, "input_size", None)
    if size is not None:
        patches = getattr(getattr(model, "patch_embed", None), "img_size", None)
        channels = next((p.shape[1] for p in model.parameters() if p.ndim == 4), size[0])
        return torch.zeros(2, channels, *(patches or size[1:]))
    config: Any = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) is not None:
        tokens = torch.ones(2, 8, dtype=torch.long)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if getattr(config, "image_size", None) is not None:
        side = config.image_size
        return torch.zeros(2, getattr(config, "num_channels", 3), *((side, side) if isinstance(side, int) else side))
    raise ConfigurationError(
        f"{type(model).__name__} states no input shape: run `kdlightning taps -c CONFIG` with data"
    )
