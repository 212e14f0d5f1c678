"""Where the channels of a tensor are, and the one form in which losses get it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from kdlightning.taps.attention import PROJECTIONS
from kdlightning.taps.names import Layout, TapError, TapInfo

_CHANNELS_FIRST = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.ConvTranspose1d)
_CHANNELS_LAST = (nn.LayerNorm, nn.MultiheadAttention, nn.RNNBase, nn.Embedding)


def describe(model: nn.Module, name: str, tensor: Tensor, module: nn.Module | None, source: str | None) -> TapInfo:
    """What can be told of a tapped tensor from its shape, its module and its model."""
    shape = tuple(tensor.shape)
    kind = module.__class__.__name__ if module is not None else str(source)
    if len(shape) == 3 and name.split(".")[0] in PROJECTIONS:
        return TapInfo(name, shape, "channels_last", kind=kind)  # all tokens: attention joins them
    if source == "attentions" or len(shape) not in (3, 4):
        return TapInfo(name, shape, "channels_first", kind=kind)
    if len(shape) == 4:
        # timm's models and patch embeddings say so themselves; the latter by an enumeration.
        formats = (str(getattr(owner, "output_fmt", "")) for owner in (model, module))
        last = source is None and any(form.endswith("NHWC") for form in formats)
        return TapInfo(name, shape, "channels_last" if last else "channels_first", kind=kind)
    if module is not None and (_convolves(module) or (_convolves(model) and not _reads_tokens(model))):
        return TapInfo(name, shape, "channels_first", kind=kind)
    if not _has_tokens(model, shape[2]):
        return TapInfo(name, shape, None, kind=kind)
    prefix = prefix_tokens(model)
    patches = _patches(model)
    if prefix and (shape[1] == patches or (patches is None and math.isqrt(shape[1]) ** 2 == shape[1])):
        prefix = 0  # before the class token joins
    return TapInfo(name, shape, "channels_last", prefix, _grid(model, shape[1] - prefix), kind)


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(part, _CHANNELS_FIRST) for part in module.modules())


def _reads_tokens(model: nn.Module) -> bool:
    """Whether anything inside wants its channels last; then an activation between may have either layout."""
    return any(isinstance(part, _CHANNELS_LAST) for part in model.modules())


def _has_tokens(model: nn.Module, width: int) -> bool:
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "hidden_size", None) is not None:
        return width == config.hidden_size
    return hasattr(model, "num_prefix_tokens") and width == getattr(model, "embed_dim", width)


def prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens in front of a vision transformer's patches."""
    if hasattr(model, "num_prefix_tokens"):
        return int(model.num_prefix_tokens)  # type: ignore[arg-type]
    if not hasattr(getattr(model, "config", None), "patch_size"):
        return 0
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    if "class_embedding" in names:  # CLIP's name for it
        names.add("cls_token")
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)  # type: ignore[union-attr]
    return len(names & {"cls_token", "distillation_token"}) + registers


def _patches(model: nn.Module) -> int | None:
    """Number of patches that a vision transformer makes of an image of its own size, if it says so."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None:
        return int(grid[0]) * int(grid[1])
    config: Any = getattr(model, "config", None)
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return (image // patch) ** 2 if isinstance(image, int) and isinstance(patch, int) else None


def _grid(model: nn.Module, patches: int) -> tuple[int, int] | None:
    embedding: Any = getattr(model, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if grid is not None and grid[0] * grid[1] == patches:
        return int(grid[0]), int(grid[1])
    is_image = embedding is not None or hasattr(getattr(model, "config", None), "patch_size")
    side = math.isqrt(max(patches, 0))
    return (side, side) if is_image and side * side == patches else None


def channels_first(tensor: Tensor, info: TapInfo, layout: Layout | None = None) -> Tensor:
    """The tensor as `(B, C)`, `(B, C, L)` or `(B, C, H, W)`, without class tokens, patches folded to their grid.

    Args:
        tensor: the tapped tensor.
        info: what the probe learned of the tap.
        layout: what the user says of it; beats what was learned. "tokens" are all tokens `(B, C, N)` of a tensor with
            its channels last: class tokens stay, and patches are not folded.
    """
    layout = layout or info.layout
    if layout is None:
        raise TapError(
            f"tap {info.name!r} has shape {info.shape} and its layout cannot be told: say layout: channels_first or "
            "channels_last in its pair"
        )
    if layout == "channels_first" or tensor.ndim == 2:
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2)
    if layout == "tokens":
        return tensor.transpose(1, 2)
    tensor = tensor[:, info.prefix_tokens :].transpose(1, 2)
    if info.grid is not None and tensor.shape[2] == info.grid[0] * info.grid[1]:
        return tensor.unflatten(2, info.grid)
    return tensor


def canonical_shape(info: TapInfo, layout: Layout | None = None) -> tuple[int, ...]:
    """The shape of `channels_first` of a tap, from its probe alone."""
    import torch

    return tuple(channels_first(torch.empty(info.shape, device="meta"), info, layout).shape)
