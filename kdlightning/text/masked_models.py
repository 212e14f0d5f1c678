"""Masked language models with the head that they were trained with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlightning.errors import ConfigurationError


def load_masked_model(name: str, owner: str) -> nn.Module:
    """A masked language model, all of whose weights are in its files, in evaluation mode.

    Args:
        name: hub name or folder.
        owner: who asks, for messages.

    Raises:
        ConfigurationError: there is none, or it has no head that predicts tokens.
    """
    from transformers import AutoModelForMaskedLM

    path = Path(name).expanduser()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not path.is_dir():
        raise ConfigurationError(f"{owner}: there is no folder {name}: give a hub name or a saved model")
    try:
        given = str(path) if path.is_dir() else name
        model, report = AutoModelForMaskedLM.from_pretrained(given, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ConfigurationError(f"{owner}: {name!r} cannot be loaded as a masked language model ({reason})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigurationError(
            f"{owner}: {name!r} has no head that predicts masked words ({missing[0]} is missing): name the model as it "
            "was before fine-tuning"
        )
    found: nn.Module = model
    return found


def content_digest(model: nn.Module, tokenizer: Any) -> str:
    """A hash of a model's weights and of its tokenizer."""
    digest = hashlib.sha256(json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.mask_token_id]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(b"" if backend is None else backend.to_str().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """A hash of a file's content."""
    digest = hashlib.sha256()
    with Path(path).expanduser().open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
