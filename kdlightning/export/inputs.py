"""Inputs that are made up from shapes, to compare answers with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError


def example_of(model: nn.Module, shapes: Any, checkpoint: Path) -> Any:
    """Inputs of the shapes that are given, or that the checkpoint's run has seen, or that the model states.

    Raises:
        ConfigurationError: nobody knows them.
    """
    from kdlightning.taps import example_inputs

    result = checkpoint.parent.parent / "result.json"
    if shapes is None and result.is_file():
        shapes = json.loads(result.read_text(encoding="utf-8")).get("student", {}).get("inputs")
    if shapes is not None:
        return made_up_inputs(shapes)
    try:
        return example_inputs(model)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{type(model).__name__} states no input shape to compare answers with, and {result} is missing: "
            "pass inputs to export_student"
        ) from error


def input_shapes(inputs: Any) -> Any:
    """Shape without the batch, and type, of every input tensor; enough to make up inputs later."""
    if isinstance(inputs, Tensor):
        return {"shape": list(inputs.shape[1:]), "dtype": str(inputs.dtype).removeprefix("torch.")}
    if isinstance(inputs, Mapping):
        return {"named": {str(name): input_shapes(value) for name, value in inputs.items()}}
    return {"positional": [input_shapes(value) for value in inputs]}


def made_up_inputs(shapes: Mapping[str, Any], samples: int = 2) -> Any:
    """Random inputs of the shapes that `input_shapes` wrote; integers are 1, which every vocabulary has."""
    if "named" in shapes:
        return {name: made_up_inputs(value, samples) for name, value in shapes["named"].items()}
    if "positional" in shapes:
        return tuple(made_up_inputs(value, samples) for value in shapes["positional"])
    kind = getattr(torch, shapes["dtype"])
    size = (samples, *shapes["shape"])
    if kind.is_floating_point:
        return torch.rand(size, generator=torch.Generator().manual_seed(0)).to(kind)
    return torch.ones(size, dtype=kind)


@torch.no_grad()
def answers(model: nn.Module, inputs: Any) -> Tensor:
    """What the network answers in evaluation mode and single precision: logits, or the last hidden states."""
    from kdlightning.taps.native import call

    return answer_in(call(model.float().eval(), inputs))


def answer_in(output: Any) -> Tensor:
    """The tensor that counts in what a network returned."""
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output[0] if isinstance(output, (tuple, list)) else output
