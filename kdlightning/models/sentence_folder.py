"""Folders in the layout of sentence-transformers, read and written without that library.

`modules.json` lists the modules in their order, each with a folder of its own: the transformer, the pooling
(`1_Pooling/config.json`), perhaps a linear map (`2_Dense`), perhaps `Normalize`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError

if TYPE_CHECKING:
    from kdlightning.models.sentence_encoder import SentenceEncoder

_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
_UNKNOWN_MODES = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken")
_IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass
class SentenceFolder:
    """What a folder holds.

    Attributes:
        encoder: the transformers encoder, with its weights.
        pooling: "mean", "cls" or "max".
        normalize: whether embeddings have unit length.
        projection: weights of the linear map behind the pooling, `weight` and `bias`; None without one.
    """

    encoder: nn.Module
    pooling: str = "mean"
    normalize: bool = True
    projection: dict[str, Tensor] | None = None


def read_sentence_folder(name: str) -> SentenceFolder:
    """A folder or hub name; of a plain transformers encoder the pooling is "mean", and embeddings have unit length.

    Raises:
        ConfigurationError: there is none, or it holds modules that are not known.
    """
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ConfigurationError(f"sentence_encoder: there is no folder {name}: give a folder or a hub name")
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    listed = _json(name, "modules.json")
    if listed is None:
        return SentenceFolder(_encoder(name, ""))
    found = SentenceFolder(nn.Identity(), normalize=False)
    for number, entry in enumerate(listed):
        kind, path = str(entry.get("type", "")).rsplit(".", 1)[-1], str(entry.get("path", ""))
        if kind == "Transformer" and number == 0:
            found.encoder = _encoder(name, path)
        elif kind == "Pooling" and number == 1:
            found.pooling = _pooling(name, path)
        elif kind == "Dense" and number == 2:
            found.projection = _projection(name, path)
        elif kind == "Normalize" and number == len(listed) - 1:
            found.normalize = True
        else:
            raise ConfigurationError(
                f"sentence_encoder: module {number} of {name} is {kind}: known are Transformer, Pooling, Dense and "
                "Normalize, in this order"
            )
    return found


def write_sentence_folder(model: SentenceEncoder, folder: Path) -> None:
    """Writes encoder, pooling, linear map and normalisation."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    encoder: Any = model.encoder
    encoder.save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write(folder / "1_Pooling", _pooling_config(model))
    if model.projection is not None:
        modules.append(("2_Dense", "Dense"))
        linear = model.projection
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features, "bias": True}
        _write(folder / "2_Dense", {**sizes, "activation_function": _IDENTITY})
        weights = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in linear.state_dict().items()}
        save_file(weights, str(folder / "2_Dense" / "model.safetensors"), metadata={"format": "pt"})
    if model.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        (folder / modules[-1][0]).mkdir(exist_ok=True)
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    _dump(folder / "modules.json", listed)
    _dump(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    # null: as many tokens as tokenizer and encoder allow.
    _dump(folder / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False})


def _pooling_config(model: SentenceEncoder) -> dict[str, Any]:
    modes = {key: mode == model.pooling for key, mode in _MODES.items()}
    return {"word_embedding_dimension": model.config.hidden_size, **modes, "pooling_mode_mean_sqrt_len_tokens": False}


def _write(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    _dump(folder / "config.json", config)


def _dump(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _file(name: str, file: str) -> str | None:
    """A file of a folder or of a hub's model; None if there is none."""
    if Path(name).is_dir():
        return str(Path(name) / file) if (Path(name) / file).is_file() else None
    from transformers.utils.hub import cached_file

    missing_is_none: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    try:
        return cached_file(name, file, **missing_is_none)
    except OSError as error:
        raise ConfigurationError(
            f"sentence_encoder: {name!r} is no folder, and cannot be fetched: {str(error).splitlines()[0][:200]}"
        ) from error


def _json(name: str, file: str) -> Any:
    found = _file(name, file)
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"sentence_encoder: {found} is not JSON") from error


def _encoder(name: str, path: str) -> nn.Module:
    from transformers import AutoModel

    if path and Path(name).is_dir():
        name, path = str(Path(name) / path), ""
    try:
        with _quiet():  # of a pooler that the folder lacks: it is taken off
            return AutoModel.from_pretrained(name, **({"subfolder": path} if path else {}))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigurationError(f"sentence_encoder: {name} holds no encoder of transformers: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _pooling(name: str, path: str) -> str:
    config = _json(name, f"{path}/config.json") or {}
    # Since its version 6 the library writes `pooling_mode`; before, a switch for each mode.
    modes = (
        [config["pooling_mode"]]
        if isinstance(config.get("pooling_mode"), str)
        else list(config.get("pooling_mode") or ())
    )
    if not modes:
        modes = [_MODES.get(key, key) for key in (*_MODES, *_UNKNOWN_MODES) if config.get(key)]
    if len(modes) != 1 or modes[0] not in _MODES.values():
        way = " and ".join(map(str, modes)) or "nothing"
        raise ConfigurationError(f"sentence_encoder: {name} pools by {way}: known are mean, cls and max")
    return modes[0]


def _projection(name: str, path: str) -> dict[str, Tensor]:
    config = _json(name, f"{path}/config.json") or {}
    activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation != "Identity":
        raise ConfigurationError(
            f"sentence_encoder: the Dense module of {name} ends with {activation}: only Identity is known"
        )
    from kdlightning.models.weights import read_weights

    file = _file(name, f"{path}/model.safetensors") or _file(name, f"{path}/pytorch_model.bin")
    if file is None:
        raise ConfigurationError(f"sentence_encoder: {name} has no weights in {path}")
    weights = {key.removeprefix("linear."): value for key, value in read_weights(file).items()}
    weights.setdefault("bias", torch.zeros(len(weights["weight"])))
    return weights
