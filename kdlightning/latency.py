"""How long a network takes for a batch: in torch, and as an ONNX file in onnxruntime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """A measurement.

    Attributes:
        milliseconds: the median of the passes that count.
        passes: how many they are.
        threads: threads of one pass; 0 is the library's own choice.
    """

    milliseconds: float
    passes: int
    threads: int


def torch_latency(
    model: nn.Module,
    inputs: Any,
    *,
    threads: int = 0,
    repeats: int = 32,
    warm_up: int = 3,
    seconds: float = float("inf"),
) -> Latency:
    """The median of forward passes without gradient, as the model stands (its device, precision and mode).

    Args:
        model: the network.
        inputs: a tensor, a tuple (positional) or a mapping (by keyword), on the model's device.
        threads: threads inside an operation; 0 leaves torch's setting.
        repeats: passes that count.
        warm_up: passes before them, which allocate memory.
        seconds: no further pass begins after so long; the first pass counts if there is no other.
    """
    from kdlightning.taps.native import call

    on_gpu = any(parameter.is_cuda for parameter in model.parameters())

    def run() -> None:
        call(model, inputs)
        if on_gpu:
            torch.cuda.synchronize()

    with torch.inference_mode(), _threads(threads):
        return _median(run, threads, repeats, warm_up, seconds)


def onnx_latency(
    file: str | Path, inputs: Mapping[str, Tensor], *, threads: int = 1, repeats: int = 32, warm_up: int = 3
) -> Latency:
    """The same of an ONNX file in onnxruntime on the CPU.

    Args:
        file: the model, as `kdlightning export --format onnx` writes it.
        inputs: by name, as `OnnxModel` takes them.
        threads: threads inside an operation; 0 leaves onnxruntime's choice.
        repeats: passes that count.
        warm_up: passes before them.

    Raises:
        MissingExtraError: without onnxruntime.
    """
    from kdlightning.export.onnx import OnnxModel

    model = OnnxModel(file, threads=threads)
    arrays = model.arrays(inputs)
    return _median(lambda: model.run(arrays), threads, repeats, warm_up, float("inf"))


def _median(run: Callable[[], Any], threads: int, repeats: int, warm_up: int, seconds: float) -> Latency:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < repeats + warm_up and (time.perf_counter() < end or not times):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    counted = times[warm_up:] or times[1:] or times
    return Latency(round(statistics.median(counted), 4), len(counted), threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
