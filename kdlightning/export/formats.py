"""How each format is written and loaded again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlightning.errors import ConfigurationError
from kdlightning.models.sentence_encoder import SentenceEncoder, sentence_encoder
from kdlightning.modules.loading import load_exported, load_student

FORMATS = ("auto", "timm", "transformers", "sentence-transformers", "safetensors", "onnx")


def load_line(kind: str, folder: Path, model: nn.Module) -> str:
    """Python that loads an export."""
    if kind == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if kind == "transformers":
        return f'transformers.{type(model).__name__}.from_pretrained("{folder}")'
    if kind == "sentence-transformers":
        return f'sentence_transformers.SentenceTransformer("{folder}")  # or kdlightning.sentence_encoder("{folder}")'
    if kind == "onnx":
        return f'onnxruntime.InferenceSession("{folder}/model.onnx")'
    return f'safetensors.torch.load_model(student, "{folder}/model.safetensors")  # student: a {type(model).__name__}'


def is_timm(model: nn.Module) -> bool:
    """Whether `timm.create_model` made it."""
    return type(model).__module__.startswith("timm.") and bool(getattr(model, "pretrained_cfg", None))


def is_transformers(model: nn.Module) -> bool:
    """Whether it is a model of transformers itself."""
    return type(model).__module__.startswith("transformers.") and hasattr(model, "save_pretrained")


def suitable(model: nn.Module, format: str) -> str:
    """The format that "auto" means, or the one that is asked for.

    Raises:
        ConfigurationError: the library of that name could not build the student.
    """
    if format == "auto" and isinstance(model, SentenceEncoder):
        return "sentence-transformers"
    if format == "auto":
        return "timm" if is_timm(model) else "transformers" if is_transformers(model) else "safetensors"
    name = type(model).__name__
    if format == "timm" and not is_timm(model):
        raise ConfigurationError(f"--format timm: {name} is no timm model, so timm could not build it; use safetensors")
    if format == "sentence-transformers" and not isinstance(model, SentenceEncoder):
        raise ConfigurationError(f"--format sentence-transformers: {name} is no sentence_encoder; use auto")
    if format == "transformers" and not is_transformers(model):
        raise ConfigurationError(
            f"--format transformers: {name} is not a transformers model, so transformers could not build it; "
            f"use {'timm' if is_timm(model) else 'safetensors'}"
        )
    return format


def merged(model: nn.Module) -> nn.Module:
    """A model with LoRA adapters becomes the plain model that they make."""
    merge = getattr(model, "merge_and_unload", None)
    return merge() if callable(merge) else model


def write(kind: str, model: Any, folder: Path, spec: Mapping[str, Any]) -> None:
    """Writes the student; `spec` says how a run from YAML builds it."""
    if kind == "timm":
        _write_timm(model, folder, spec)
    elif kind in ("transformers", "sentence-transformers"):
        with _no_bars():
            model.save_pretrained(folder)
    else:
        _write_safetensors(model, folder, spec)


def _write_timm(model: Any, folder: Path, spec: Mapping[str, Any]) -> None:
    from timm.models import save_for_hf

    options = dict(spec.get("init_args") or {}) if str(spec.get("class_path", "")).endswith("timm_model") else {}
    arguments = dict(options.get("options") or {})
    if "in_chans" in options:
        arguments["in_chans"] = options["in_chans"]
    save_for_hf(model, str(folder), model_args=arguments or None, safe_serialization=True)


def _write_safetensors(model: nn.Module, folder: Path, spec: Mapping[str, Any]) -> None:
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if spec:
        (folder / "student.json").write_text(json.dumps(spec, indent=2, default=str) + "\n", encoding="utf-8")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Inside, transformers shows no progress bars: they say nothing of a single file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load(kind: str, folder: Path, checkpoint: str | Path, which: str, built: nn.Module | None) -> nn.Module:
    """The export, loaded into a model that has seen nothing of the checkpoint's weights."""
    if kind == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    if kind == "transformers":
        with _no_bars():
            return load_exported(folder)
    if kind == "sentence-transformers":
        with _no_bars():
            return sentence_encoder(str(folder.resolve()))
    import copy

    from safetensors.torch import load_model

    model = copy.deepcopy(built) if built is not None else merged(load_student(checkpoint, which=which))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    load_model(model, str(folder / "model.safetensors"))
    return model
