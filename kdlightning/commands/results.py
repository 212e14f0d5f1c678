"""What a run leaves behind for `compare` and recipes: `result.json`."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import kdlightning
from kdlightning.export import input_shapes

SCHEMA = 1
_PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "transformers", "jsonargparse")
_PLACES = re.compile(r"(seed\d+|unseeded)/version_\d+")
# What says where and how loudly a run goes, and nothing about what it computes.
_NOT_HASHED = ("seed_everything", "ckpt_path", "verbose", "return_predictions", "weights_only")
_TRAINER_NOT_HASHED = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "profiler")

# What a black-box DataModule is told of the teacher, not of the records.
_TEACHERS = ("method", "generator", "recorded_fields", "store")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration apart from seed, place and logging."""
    kept = {key: value for key, value in config.items() if key not in _NOT_HASHED}
    trainer = kept.get("trainer")
    if isinstance(trainer, Mapping):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in _TRAINER_NOT_HASHED}
    return _digest(kept)


def student_hash(config: Mapping[str, Any]) -> str:
    """Names the student and its data: runs that agree in it may be compared with their run on labels alone."""
    model, data = config.get("model") or {}, dict(config.get("data") or {})
    data["init_args"] = {key: value for key, value in (data.get("init_args") or {}).items() if key not in _TEACHERS}
    return _digest({"student": (model.get("init_args") or {}).get("student"), "data": data})


def measured_hash(config: Mapping[str, Any]) -> str:
    """Names what a score is of: the model's settings and the data."""
    return _digest({"model": config.get("model"), "data": config.get("data")})


def _digest(content: Any) -> str:
    # The teacher's checkpoint lies in the run folder of its own seed: the same configuration for every seed.
    text = _PLACES.sub("seed*/version_*", json.dumps(content, sort_keys=True, default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {"kdlightning": kdlightning.__version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plain_metrics(values: Mapping[str, Any], split: str) -> dict[str, float | None]:
    """Metrics of one split by their short name; NaN and infinities, which JSON has not, become None."""
    found: dict[str, float | None] = {}
    for name, value in values.items():
        if name.startswith(f"{split}/"):
            number = float(value)
            found[name.removeprefix(f"{split}/")] = number if math.isfinite(number) else None
    return found


def describe_student(student: nn.Module, inputs: Any, *, budget: float = 1.0) -> dict[str, Any]:
    """Class, parameters, bytes, latency and input shapes of a student.

    Args:
        student: the network; left as it is.
        inputs: what it is called with, two samples or more; None leaves latency and shapes out.
        budget: seconds that measuring the latency may take.
    """
    tensors = list(student.state_dict().values())
    facts: dict[str, Any] = {
        "class": type(student).__name__,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    if inputs is not None:
        facts["inputs"] = input_shapes(inputs)
        facts["latency_ms"] = latency(student, inputs, budget)
    return facts


def latency(student: nn.Module, inputs: Any, budget: float = 1.0) -> float | None:
    """Median milliseconds of a forward pass of one sample on the CPU, of 32 at most; None if it cannot be copied."""
    from kdlightning.latency import torch_latency

    try:
        model = copy.deepcopy(student).cpu().float().eval()
    except (RuntimeError, TypeError):
        return None
    one = _map(inputs, lambda tensor: tensor[:1].cpu())
    return torch_latency(model, one, warm_up=1, seconds=budget).milliseconds


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return value


def size_on_disk(folder: Path) -> int:
    """Bytes of the weight files of an export."""
    return sum(
        path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".onnx")
    )
