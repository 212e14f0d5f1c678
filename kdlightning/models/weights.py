"""Weights from files: plain state dicts, Lightning checkpoints, safetensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, nearest


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file; of a kdlightning checkpoint or a Lightning one, the model's part.

    Reads `.safetensors`, plain state dicts, and dictionaries that hold one under `state_dict`, `model` or `model_ema`.
    Of a Lightning checkpoint only what lies under `student.` (or `model.`) is taken, without the prefix. Nothing is
    unpickled but tensors and plain data.

    Raises:
        ConfigurationError: no such file, or no weights in it.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"no checkpoint at {file}{_beside(file)}")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found = read_plain(file)
    for key in ("state_dict", "model", "model_ema"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ConfigurationError(f"{file} holds no state dict")
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in ("student.", "model."):
        part = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        if part:
            return part
    return weights


def read_plain(file: Path) -> Any:
    """What `torch.save` wrote: tensors and plain data, nothing else is unpickled.

    Raises:
        ConfigurationError: it holds something else, or is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file):  # whole, as torch.save writes it
            raise ConfigurationError(
                f"{file} holds more than plain tensors, which is not unpickled: save a state_dict() and name that"
            ) from error
        raise _damaged(file) from error
    except (RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} is damaged, or no file of torch.save: copy or write it again, or name another")


def load_weights(model: nn.Module, path: str | Path, key_map: Mapping[str, str | None] | None = None) -> nn.Module:
    """Loads a file into a model, strictly.

    Args:
        model: the network.
        path: see `read_weights`.
        key_map: old prefix to new prefix of the key names in the file, for example `{"module.": ""}`; None leaves such
            keys out, for example `{"head.": None}` where the model has no classifier.

    Raises:
        ConfigurationError: keys or shapes differ; the sentence names the first ones.
    """
    weights = read_weights(path)
    for old, new in (key_map or {}).items():
        if new is None or new == "None":  # jsonargparse hands the null of a nested option on as text
            weights = {name: value for name, value in weights.items() if not name.startswith(old)}
            continue
        weights = {new + name[len(old) :] if name.startswith(old) else name: value for name, value in weights.items()}
    return fill(model, weights, str(path), hint=" Map prefixes with key_map.")


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: str, *, hint: str = "") -> nn.Module:
    """Loads a state dict into a model, strictly; `path` names it in messages, `hint` ends them.

    Raises:
        ConfigurationError: keys or shapes differ; the sentence names the first ones.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        example = (unexpected or missing)[0]
        raise ConfigurationError(
            f"{path} does not fit {type(model).__name__}: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"for example {example!r}{nearest(example, missing if unexpected else weights, most=1)}{hint}"
        )
    for name, value in weights.items():
        if wanted[name].shape != value.shape:
            raise ConfigurationError(
                f"{path}: {name} has shape {tuple(value.shape)} but {type(model).__name__} has "
                f"{tuple(wanted[name].shape)}; build the model with the options (classes, widths) that the file was "
                "made with"
            )
    model.load_state_dict(weights)
    return model


def _beside(file: Path) -> str:
    return (
        nearest(file.name, [path.name for path in file.parent.iterdir()])
        if file.parent.is_dir()
        else "; no such folder"
    )
