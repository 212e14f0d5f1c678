"""Shallower vision transformers of timm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.factories import timm_model

_BLOCK = re.compile(r"^blocks\.(\d+)\.(.*)$")


def is_vision_transformer(model: nn.Module) -> bool:
    """Whether it is timm's VisionTransformer or a subclass (DeiT)."""
    if not type(model).__module__.startswith("timm."):
        return False
    from timm.models import VisionTransformer

    return isinstance(model, VisionTransformer)


def vision_spec(model: Any, depth: int) -> dict[str, Any]:
    """How timm builds the same network with another depth.

    Raises:
        ConfigurationError: timm would build another one, since the network has options that it does not tell.
    """
    patch, block = model.patch_embed, model.blocks[0]
    options = {
        "depth": depth,
        "img_size": list(patch.img_size) if patch.img_size is not None else None,
        "patch_size": patch.patch_size[0],
        "embed_dim": model.embed_dim,
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
        "global_pool": model.global_pool,
    }
    name = str((model.pretrained_cfg or {}).get("architecture") or "")
    arguments = {
        "name": name,
        "num_classes": model.num_classes,
        "in_chans": patch.proj.in_channels,
        "options": {key: value for key, value in options.items() if value is not None},
    }
    wanted = {
        key: value.shape for key, value in model.state_dict().items() if (n := block_of(key)) is None or n < depth
    }
    with torch.device("meta"):
        built = {key: value.shape for key, value in timm_model(**arguments).state_dict().items()} if name else {}
    if built != wanted:
        raise ConfigurationError(
            f"student_from_teacher: timm does not build this {type(model).__name__} again from its name {name!r} and "
            "sizes; make the shallow one with timm_model and options {depth: …}, and start it with started_from"
        )
    return {"class_path": "kdlightning.timm_model", "init_args": arguments}


def shallower(model: nn.Module, layers: Sequence[int], fresh: bool = False) -> nn.Module:
    """A network of the same kind with some of its blocks and a copy of everything else, or with new weights."""
    spec = vision_spec(model, len(layers))
    student = timm_model(**spec["init_args"])
    student.__dict__["build_spec"] = spec
    if fresh:
        return student
    weights = model.state_dict()
    filled = {}
    for name in student.state_dict():
        number = block_of(name)
        old = name if number is None else _BLOCK.sub(rf"blocks.{layers[number]}.\2", name)
        filled[name] = weights[old].clone()
    student.load_state_dict(filled)
    return student


def block_of(name: str) -> int | None:
    """The number of the block that a parameter belongs to; None outside the blocks."""
    match = _BLOCK.match(name)
    return None if match is None else int(match[1])
