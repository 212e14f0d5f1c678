"""Parameters, bytes and milliseconds of encoders, in torch and as ONNX in onnxruntime; see `encoders.py --sizes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paired import markdown

TOKENS = 32
"""Tokens of the one text that is timed."""


def measure(checkpoints: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Exports the student of each checkpoint for transformers and as ONNX, and times both on one thread."""
    import torch

    from kdlightning.export import export_student
    from kdlightning.latency import onnx_latency, torch_latency
    from kdlightning.modules.loading import load_exported

    found: dict[str, Any] = {}
    inputs = {"input_ids": torch.arange(1000, 1000 + TOKENS)[None], "attention_mask": torch.ones(1, TOKENS).long()}
    inputs["token_type_ids"] = torch.zeros(1, TOKENS).long()
    for name, checkpoint in checkpoints.items():
        plain = export_student(checkpoint, folder / name / "transformers", format="transformers")
        model = load_exported(plain.folder).eval()
        row: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        row["transformers"] = {"difference": plain.difference, "bytes": size(plain.folder)}
        row["transformers"]["milliseconds"] = torch_latency(model, inputs, threads=1, repeats=100).milliseconds
        for kind, quantize in (("onnx", None), ("int8", "int8")):
            made = export_student(checkpoint, folder / name / kind, format="onnx", quantize=quantize)
            file = next(made.folder.glob("*.onnx"))
            row[kind] = {"difference": made.difference, "bytes": size(made.folder)}
            row[kind]["milliseconds"] = onnx_latency(file, inputs, threads=1, repeats=100).milliseconds
        found[name] = row
    return found


def size(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx", ".data"))


def table(found: Mapping[str, Any]) -> str:
    """One row for each network."""
    head = ["network", "parameters", "torch, ms", "onnxruntime, ms", "int8, ms", "MB", "ONNX, MB", "int8, MB"]
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            *(f"{row[kind]['milliseconds']:.2f}" for kind in ("transformers", "onnx", "int8")),
            *(f"{row[kind]['bytes'] / 1e6:.1f}" for kind in ("transformers", "onnx", "int8")),
        ]
        for name, row in found.items()
    ]
    return markdown([head, *rows])
