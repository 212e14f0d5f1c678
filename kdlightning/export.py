"""The student alone, in a form that its own library loads without kdlightning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.modules.loading import built_as, load_exported, load_student, plain_spec, read_checkpoint

FORMATS = ("auto", "timm", "transformers", "safetensors")
_MARK = "kdlightning_export.json"
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it lies.
        format: timm, transformers or safetensors.
        load_line: Python that loads it.
        difference: largest absolute difference of the logits after loading it again.
    """

    folder: Path
    format: str
    load_line: str
    difference: float


def export_student(
    checkpoint: str | Path,
    output: str | Path,
    *,
    format: str = "auto",
    which: str = "student",
    student: nn.Module | None = None,
    inputs: Any = None,
) -> Exported:
    """Writes the student of a checkpoint, loads it with its library alone, and compares the answers.

    Args:
        checkpoint: a checkpoint of a run.
        output: the folder to write; new, empty, or an earlier export.
        format: "timm", "transformers", "safetensors", or "auto": what the student's own library loads.
        which: "student", or "peer1", "peer2", … of online distillation.
        student: of a run from Python, the built network.
        inputs: input shapes as `result.json` has them; by default the model's own or its run's.

    Raises:
        ConfigurationError: a format that does not suit the student, a folder in use, or answers that differ by more
            than 1e-6; nothing is written then.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"--format {format}{nearest(format, FORMATS)}")
    target = Path(output)
    _check_folder(target)
    kept = read_checkpoint(checkpoint)
    model = _merged(load_student(checkpoint, student, which=which))
    kind = _suitable(model, format)
    example = _example(model, inputs, Path(checkpoint))
    expected = _logits(model, example)
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        spec = _spec(kept.get("hyper_parameters", {}), built_as(kept, which))
        _WRITERS[kind](model, beside, spec)
        _copy_tokenizer(Path(checkpoint).parent.parent / "tokenizer", beside)
        fresh = _load(kind, beside, checkpoint, which, model if student is not None else None)
        difference = float((_logits(fresh, example) - expected).abs().max())
        if not difference <= _TOLERANCE:
            raise ConfigurationError(
                f"the exported {kind} student answers differently from the checkpoint's (by {difference:.1e}); nothing "
                "was written"
            )
        mark = {"format": kind, "checkpoint": str(checkpoint), "which": which, "difference": difference}
        (beside / _MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(target, kind, load_line(kind, target, model), difference)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """A language model's tokenizer goes with it where its run kept one."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _spec(settings: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """How a run from YAML says that a network is built; nothing of a run from Python."""
    peers = settings.get("peers") or []
    number = int(which.removeprefix("peer")) - 1 if which.startswith("peer") else -1
    found = settings.get("student") if number < 0 else peers[number] if number < len(peers) else None
    return plain_spec(found) if isinstance(found, Mapping) else {}


def load_line(kind: str, folder: Path, model: nn.Module) -> str:
    """Python that loads an export."""
    if kind == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if kind == "transformers":
        return f'transformers.{type(model).__name__}.from_pretrained("{folder}")'
    return f'safetensors.torch.load_model(student, "{folder}/model.safetensors")  # student: a {type(model).__name__}'


def _check_folder(target: Path) -> None:
    if target.is_file():
        raise ConfigurationError(f"--output {target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / _MARK).is_file():
        raise ConfigurationError(f"--output {target} holds other files: name a new folder")


def is_timm(model: nn.Module) -> bool:
    """Whether `timm.create_model` made it."""
    return type(model).__module__.startswith("timm.") and bool(getattr(model, "pretrained_cfg", None))


def is_transformers(model: nn.Module) -> bool:
    """Whether it is a model of transformers itself."""
    return type(model).__module__.startswith("transformers.") and hasattr(model, "save_pretrained")


def _suitable(model: nn.Module, format: str) -> str:
    if format == "auto":
        return "timm" if is_timm(model) else "transformers" if is_transformers(model) else "safetensors"
    name = type(model).__name__
    if format == "timm" and not is_timm(model):
        raise ConfigurationError(f"--format timm: {name} is no timm model, so timm could not build it; use safetensors")
    if format == "transformers" and not is_transformers(model):
        raise ConfigurationError(
            f"--format transformers: {name} is not a transformers model, so transformers could not build it; "
            f"use {'timm' if is_timm(model) else 'safetensors'}"
        )
    return format


def _merged(model: nn.Module) -> nn.Module:
    """A model with LoRA adapters becomes the plain model that they make."""
    merge = getattr(model, "merge_and_unload", None)
    return merge() if callable(merge) else model


def _example(model: nn.Module, shapes: Any, checkpoint: Path) -> Any:
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
def _logits(model: nn.Module, inputs: Any) -> Tensor:
    from kdlightning.taps.native import call

    output = call(model.float().eval(), inputs)
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output[0] if isinstance(output, (tuple, list)) else output


def _write_timm(model: Any, folder: Path, spec: Mapping[str, Any]) -> None:
    from timm.models import save_for_hf

    options = dict(spec.get("init_args") or {}) if str(spec.get("class_path", "")).endswith("timm_model") else {}
    arguments = dict(options.get("options") or {})
    if "in_chans" in options:
        arguments["in_chans"] = options["in_chans"]
    save_for_hf(model, str(folder), model_args=arguments or None, safe_serialization=True)


def _write_transformers(model: Any, folder: Path, spec: Mapping[str, Any]) -> None:
    with _no_bars():
        model.save_pretrained(folder)


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


def _write_safetensors(model: nn.Module, folder: Path, spec: Mapping[str, Any]) -> None:
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if spec:
        (folder / "student.json").write_text(json.dumps(spec, indent=2, default=str) + "\n", encoding="utf-8")


_WRITERS: dict[str, Any] = {
    "timm": _write_timm,
    "transformers": _write_transformers,
    "safetensors": _write_safetensors,
}


def _load(kind: str, folder: Path, checkpoint: str | Path, which: str, built: nn.Module | None) -> nn.Module:
    """The export, loaded into a model that has seen nothing of the checkpoint's weights."""
    if kind == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    if kind == "transformers":
        with _no_bars():
            return load_exported(folder)
    import copy

    from safetensors.torch import load_model

    model = copy.deepcopy(built) if built is not None else _merged(load_student(checkpoint, which=which))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    load_model(model, str(folder / "model.safetensors"))
    return model
