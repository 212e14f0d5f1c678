"""Writes the student of a checkpoint, and sees that it answers as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.export.formats import FORMATS, load, load_line, merged, suitable, write
from kdlightning.export.inputs import answers, example_of
from kdlightning.modules.loading import load_student, read_checkpoint, spec_of

_MARK = "kdlightning_export.json"
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it lies.
        format: timm, transformers, sentence-transformers, safetensors or onnx.
        load_line: Python that loads it.
        difference: largest absolute difference of the logits after loading it again.
        milliseconds: of one sample, with one thread: of ONNX in onnxruntime, else None.
    """

    folder: Path
    format: str
    load_line: str
    difference: float
    milliseconds: float | None = None


def export_student(
    checkpoint: str | Path,
    output: str | Path,
    *,
    format: str = "auto",
    which: str = "student",
    student: nn.Module | None = None,
    inputs: Any = None,
    quantize: str | None = None,
) -> Exported:
    """Writes the student of a checkpoint, loads it with its library alone, and compares the answers.

    Args:
        checkpoint: a checkpoint of a run.
        output: the folder to write; new, empty, or an earlier export.
        format: "timm", "transformers", "sentence-transformers", "safetensors", "onnx", or "auto": what the student's
            own library loads.
        which: "student", or "peer1", "peer2", … of online distillation.
        student: of a run from Python, the built network.
        inputs: input shapes as `result.json` has them; by default the model's own or its run's.
        quantize: of ONNX: "int8" stores the weights of linear layers as 8-bit integers. Answers change then, and the
            difference is told, not refused.

    Raises:
        ConfigurationError: a format that does not suit the student, a folder in use, or answers that differ by more
            than 1e-6 (ONNX: 1e-4); nothing is written then.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"--format {format}{nearest(format, FORMATS)}")
    if quantize not in (None, "int8") or (quantize is not None and format != "onnx"):
        raise ConfigurationError(f"--quantize {quantize}: int8 is what there is, for --format onnx")
    target = Path(output)
    _check_folder(target)
    kept = read_checkpoint(checkpoint)
    model = merged(load_student(checkpoint, student, which=which))
    kind = suitable(model, format)
    example = example_of(model, inputs, Path(checkpoint))
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    took = None
    try:
        if kind == "onnx":
            from kdlightning.export.onnx import write_onnx

            difference, took = write_onnx(model, beside / "model.onnx", example, quantize=quantize)
        else:
            built = model if student is not None else None
            difference = _write(kind, model, beside, example, spec_of(kept, which), (checkpoint, which, built))
        _copy_tokenizer(Path(checkpoint).parent.parent / "tokenizer", beside)
        mark = {"format": kind, "checkpoint": str(checkpoint), "which": which, "difference": difference}
        mark |= {} if took is None else {"latency_ms": took, "quantize": quantize}
        (beside / _MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(target, kind, load_line(kind, target, model), difference, took)


def _write(
    kind: str, model: nn.Module, folder: Path, example: Any, spec: Mapping[str, Any], source: tuple[Any, str, Any]
) -> float:
    """Writes, loads again, and compares."""
    expected = answers(model, example)
    write(kind, model, folder, spec)
    fresh = load(kind, folder, *source)
    difference = float((answers(fresh, example) - expected).abs().max())
    if not difference <= _TOLERANCE:
        raise ConfigurationError(
            f"the exported {kind} student answers differently from the checkpoint's (by {difference:.1e}); nothing "
            "was written"
        )
    return difference


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer of a student that reads text goes with it where its run kept one."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _check_folder(target: Path) -> None:
    if target.is_file():
        raise ConfigurationError(f"--output {target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not (target / _MARK).is_file():
        raise ConfigurationError(f"--output {target} holds other files: name a new folder")
